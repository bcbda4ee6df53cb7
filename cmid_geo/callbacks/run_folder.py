# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Folder of a run's checkpoints: for one run at a time, and with a last one that is the last."""

from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint

from .export_backbone import ELSEWHERE, check_writable, model_checkpoint

#: Stays in the folder; the kernel lets go of it with the process.
LOCK = '.fit.lock'

#: Seconds to wait for it: workers of a run that was killed hold it until they notice.
WAIT = 10.0


class RunFolder(Checkpoint):
    """Keeps other runs out of the checkpoints' folder, and its last checkpoint up to date.

    Of itself Lightning's ``save_last=True`` saves only where a checkpoint is saved beside it: not
    where the monitored metric was better before, and not at the end of a fit that ``max_steps`` ends.
    ``save_last='link'`` is left as it is. Tasks bring one along; given to a Trainer, it stands where
    Lightning's default checkpoints would, so give a ModelCheckpoint too.
    """

    def __init__(self) -> None:
        """Initialize a new RunFolder instance."""
        self._lock: FileLock | None = None

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Refuse a folder that cannot be written, or to which another run saves."""
        given = getattr(model_checkpoint(trainer), 'dirpath', None)
        if not given or '://' in str(given) or trainer.fast_dev_run:
            return
        folder = Path(given)
        free = trainer.strategy.broadcast(
            not trainer.is_global_zero or self._take(folder)
        )
        if not free:
            raise ValueError(
                f'another run saves its checkpoints to {folder}, where it holds {LOCK}: wait for it, or choose '
                'another folder, ModelCheckpoint(dirpath=...)'
            )

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Save the last checkpoint of an epoch that was not the best."""
        for callback in trainer.checkpoint_callbacks:
            every = getattr(callback, '_every_n_epochs', 1) or 1
            due = (trainer.current_epoch + 1) % every == 0
            if getattr(callback, 'monitor', None) and due:
                _save_last(trainer, callback)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Save the last checkpoint of a fit."""
        for callback in trainer.checkpoint_callbacks:
            _save_last(trainer, callback)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Let other runs in."""
        self._release()

    def on_exception(
        self, trainer: Any, pl_module: Any, exception: BaseException
    ) -> None:
        """Let other runs in."""
        self._release()

    def _take(self, folder: Path) -> bool:
        """Take the lock; where a file system knows none, go on without."""
        # At once, not when the first checkpoint is due
        check_writable(folder, ELSEWHERE)
        # A file alone, in place of the kernel's lock, would outlive a killed run
        lock = FileLock(folder / LOCK, fallback_to_soft=False)
        try:
            lock.acquire(timeout=WAIT)
            self._lock = lock
        except Timeout:
            return False
        except (OSError, NotImplementedError):
            lock.release()
        return True

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()
        self._lock = None


def _save_last(trainer: Any, callback: Any) -> None:
    """Save the last checkpoint if it was asked for, unless the newest one is of this step."""
    wanted = isinstance(callback, ModelCheckpoint) and callback.save_last is True
    if wanted and not callback._should_skip_saving_checkpoint(trainer):
        callback._save_last_checkpoint(trainer, callback._monitor_candidates(trainer))
