# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Export of the backbone at the end of a fit."""

import os
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_info

from ..models.weights.export import export_backbone

#: How to choose another folder for a run.
ELSEWHERE = 'ModelCheckpoint(dirpath=...) or Trainer(default_root_dir=...)'


class ExportBackbone(Callback):
    """Ends each fit with a backbone file, beside the checkpoints or else the logs."""

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Refuse a folder that cannot be written, before a logger tries."""
        if stage != 'fit':
            return
        # Asked by all processes: it is agreed upon between them
        folder = output_folder(trainer)
        if trainer.is_global_zero and not trainer.fast_dev_run:
            check_writable(folder, ELSEWHERE)

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Write ``backbone.ckpt``."""
        path = output_folder(trainer) / 'backbone.ckpt'
        if trainer.is_global_zero and not trainer.fast_dev_run:
            source = pl_module.hparams['export_source']
            export_backbone(pl_module, path, source)
            rank_zero_info(f'wrote the backbone of the {source}: weights={str(path)!r}')


def output_folder(trainer: Trainer) -> Path:
    """Folder in which a run leaves its files.

    Args:
        trainer: Of the run, started.

    Returns:
        That of the checkpoints, else of the logs, else the root.
    """
    callback = model_checkpoint(trainer)
    if callback is not None and callback.dirpath:
        return Path(callback.dirpath)
    return Path(trainer.log_dir or trainer.default_root_dir)


def model_checkpoint(trainer: Trainer) -> ModelCheckpoint | None:
    """The first callback of a run that saves by Lightning's rules.

    Args:
        trainer: Of the run; its ``checkpoint_callback`` may be one of ours.

    Returns:
        The callback, or None.
    """
    found = trainer.checkpoint_callbacks
    return next((each for each in found if isinstance(each, ModelCheckpoint)), None)


def check_writable(folder: Path, cure: str) -> None:
    """Make a folder, and refuse it if it cannot be written.

    Args:
        folder: To be made and written.
        cure: How to choose another.

    Raises:
        ValueError: If it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f'.writable.{os.getpid()}'
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ValueError(
            f'the output folder {folder} cannot be written ({error.strerror}): make it writable, or '
            f'choose another with {cure}'
        ) from error
