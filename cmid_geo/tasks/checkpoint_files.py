# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Checkpoints of runs as files: saved whole or not at all, read safely, found again."""

import contextlib
import os
import pickle
from collections.abc import Generator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.plugins import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_warn

from ..atomic_files import write_atomically
from ..models.weights.checkpoint import (
    check_archive,
    check_finite,
    open_checkpoint,
    refuse_url,
)


class CheckpointFiles(TorchCheckpointIO):
    """Checkpoints that a Trainer saves and restores: files, never URLs.

    Of what comes from a URL, Lightning runs whatever program is in it, and torch keeps it by the
    last part of its address alone: the next run's ``last.ckpt`` would be this one's. And it saves
    by way of the system's temporary folder, from where a file is not moved at once to another disk.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        """Write a checkpoint beside its path, to the disk, and rename it.

        Args:
            checkpoint: To be saved.
            path: A file; what fsspec has protocols for is left to Lightning.
            storage_options: Of such a protocol.

        Raises:
            OSError: If it cannot be written; the checkpoint of that name before it is left.
        """
        if '://' in str(path) or storage_options is not None:
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        try:
            write_atomically(Path(path), lambda beside: _save(checkpoint, beside))
        except OSError as error:
            raise OSError(
                f'the checkpoint {path} could not be saved ({error.strerror or error}): what was saved before '
                'is whole. Free space or make the folder writable, and go on with --resume (ckpt_path=)'
            ) from error

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Read a checkpoint.

        Args:
            path: A file.
            *args: As Lightning has them.
            **kwargs: As Lightning has them; ``weights_only=False`` is the user's consent.

        Returns:
            What was saved.

        Raises:
            ValueError: If it is a URL, is damaged, or holds weights that are not finite or more than
                tensors and plain values.
        """
        with told_in_a_sentence(path):
            check_file(path)
            content = super().load_checkpoint(path, *args, **kwargs)
        check_finite(content, path)
        return content


def restore_from_files(trainer: Trainer) -> None:
    """Let a Trainer restore from files alone, unless it was given a plugin for that.

    Args:
        trainer: Not yet restored.
    """
    if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
        trainer.strategy.checkpoint_io = CheckpointFiles()


def check_file(file: Any) -> None:
    """Refuse a file that is damaged; one that is missing is told later.

    Args:
        file: Open, or a path.

    Raises:
        ValueError: If a part of it is not what was written.
    """
    if not isinstance(file, str | os.PathLike):
        check_archive(file)
    elif os.path.isfile(file):
        with open(file, 'rb') as opened:
            check_archive(opened)


@contextlib.contextmanager
def told_in_a_sentence(path: object) -> Generator[None]:
    """Refuse URLs, and files that are damaged or hold a program, with value, rule and cure.

    Args:
        path: That is read.

    Raises:
        ValueError: If so.
    """
    refuse_url(path)
    try:
        yield
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError):
        if isinstance(path, str | os.PathLike) and os.path.isfile(path):
            # Says what is wrong with it; if nothing is, the error is another one
            open_checkpoint(path)
        raise


def find_checkpoint(folder: str | os.PathLike[str], names: str = '*.ckpt') -> Path:
    """Find the newest whole checkpoint of a run, and warn of newer ones that are not whole.

    Args:
        folder: Searched with all folders in it.
        names: Pattern of the files' names.

    Returns:
        The file that was written last, exported backbones apart.

    Raises:
        FileNotFoundError: If there is none.
    """
    files = [path for path in Path(folder).rglob(names) if path.is_file()]
    for path in sorted(files, key=lambda path: path.stat().st_mtime_ns, reverse=True):
        try:
            content = open_checkpoint(path)
        except ValueError as error:
            rank_zero_warn(f'passed over: {error}')
            continue
        if 'loops' in content:
            return path
    raise FileNotFoundError(
        f'{folder} holds no whole checkpoint of a run ({names}): give the folder of one, or start anew without '
        'resuming'
    )


def _save(checkpoint: dict[str, Any], path: Path) -> None:
    """Save by an open file: of its own torch would not tell why it cannot write."""
    with open(path, 'wb') as file:
        try:
            torch.save(checkpoint, file)
        except RuntimeError as error:
            cause = error.__context__
            raise cause if isinstance(cause, OSError) else error from None
