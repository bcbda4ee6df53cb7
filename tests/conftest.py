# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""What all tests share."""

import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Processes that share the cores may not each take all of them
if 'PYTEST_XDIST_WORKER' in os.environ:
    os.environ.setdefault('OMP_NUM_THREADS', '1')

import matplotlib
import pytest
import torch
from chips import SMALL, Chips

# Before the package is imported: its shape annotations are checked in the tests only
from jaxtyping import install_import_hook
from torch.utils.data import DataLoader

install_import_hook('cmid_geo', 'checker.check')
matplotlib.use('Agg')


#: Files that take minutes: begun last, one would keep the other cores waiting.
LONG = (
    'test_stopping',
    'test_resuming',
    'test_benchmarks_quality',
    'test_api',
    'test_instruments',
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.stem not in LONG)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def make_task() -> Callable[..., Any]:
    from cmid_geo.tasks import CMID

    def make(**options: Any) -> CMID:
        torch.manual_seed(0)
        return CMID(**(SMALL | options))

    return make


@pytest.fixture
def real_data() -> Path:
    folder = os.environ.get('CMID_GEO_DATA')
    if not folder:
        pytest.skip('set CMID_GEO_DATA to a folder of real imagery to run this test')
    return Path(folder)


@pytest.fixture
def unused_port() -> int:
    # Asking the system for a free one would need a socket, which tests may not open
    return 20000 + os.getpid() % 20000


@pytest.fixture
def loader() -> DataLoader:
    return DataLoader(Chips(), batch_size=4, drop_last=True)


@pytest.fixture
def make_trainer(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    def make(**options: Any) -> Any:
        from lightning.pytorch import Trainer
        from lightning.pytorch.callbacks import Checkpoint

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
    # What is left are a million objects of libraries, at which it need not look each time
    gc.freeze()
