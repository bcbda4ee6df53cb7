# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Small tasks and chips that tests of tasks share."""

import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from chips import Chips
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Checkpoint
from torch.utils.data import DataLoader


@pytest.fixture
def loader() -> DataLoader:
    return DataLoader(Chips(), batch_size=4, drop_last=True)


@pytest.fixture
def make_trainer(tmp_path: Path) -> Iterator[Callable[..., Trainer]]:
    def make(**options: Any) -> Trainer:
        defaults = {
            'accelerator': 'cpu',
            'devices': 1,
            'logger': False,
            'default_root_dir': tmp_path,
            # A checkpoint of the smallest task is 150 MB: only where one is asked for
            'enable_checkpointing': any(
                isinstance(callback, Checkpoint)
                for callback in options.get('callbacks', ())
            ),
            'enable_progress_bar': False,
            'enable_model_summary': False,
        }
        return Trainer(**(defaults | options))

    yield make
    # Trainers and tasks point at each other: hundreds of networks would wait for the collector
    gc.collect()
