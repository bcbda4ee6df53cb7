# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Stop at a signal, with a checkpoint to resume from."""

import os
import signal
import subprocess
import threading
from typing import Any

import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities import rank_zero_warn
from torch import distributed

from .export_backbone import model_checkpoint, output_folder

#: Those that ask a run to end; SLURM sends SIGUSR1 where it is told to, before the time is up.
SIGNALS = [getattr(signal, name) for name in ('SIGTERM', 'SIGINT', 'SIGUSR1') if hasattr(signal, name)]  # fmt: skip


class StopOnSignal(Checkpoint):
    """Ends a fit at SIGTERM, SIGINT or SIGUSR1 with a checkpoint.

    The exit code is 143, and 130 after SIGINT. The batch at work is ended, ``last.ckpt`` saved beside
    the other checkpoints, and all processes end, whichever of them the signal reached. Before training
    there is nothing to save, and a second SIGINT does not wait: the program ends at once. During
    validation the signal waits for its end, and for what other checkpoints have to save of the epoch:
    being one itself, it comes after them. Tasks bring one along; given to a Trainer, it stands where
    Lightning's default checkpoints would, so give a ModelCheckpoint too.
    """

    def __init__(self) -> None:
        """Initialize a new StopOnSignal instance."""
        self.received = 0
        self.training = False
        self._before: dict[int, Any] = {}
        self._group: Any = None

    def on_sanity_check_start(self, trainer: Any, pl_module: Any) -> None:
        """Listen from here on: Lightning, which restores the handlers, has put its own before."""
        self._listen()

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """From here on there is something to save."""
        self._listen()
        self.training = True
        if trainer.world_size > 1 and distributed.is_initialized():
            # On the host, so that no step waits for the device
            self._group = distributed.new_group(backend='gloo')

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop between two batches; after an epoch's last one only when it is validated."""
        last = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        if not last and self._agree():
            self._stop(trainer)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Stop after an epoch."""
        if self._agree():
            self._stop(trainer)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Listen no more."""
        self.training, self._before, self._group = False, {}, None

    def _listen(self) -> None:
        main = threading.current_thread() is threading.main_thread()
        if main and not self._before:
            self._before = {
                each: signal.signal(each, self._receive) for each in SIGNALS
            }

    def _receive(self, number: int, frame: object) -> None:
        again = self.received and number == signal.SIGINT
        if again or not self.training:
            raise SystemExit(exit_code(number))
        self.received = self.received or number

    def _agree(self) -> bool:
        """Whether a signal reached any of the processes, of which all then know it."""
        if self._group is not None:
            received = torch.tensor(self.received)
            distributed.all_reduce(received, distributed.ReduceOp.MAX, self._group)
            self.received = int(received)
        return self.received > 0

    def _stop(self, trainer: Any) -> None:
        """Save and end."""
        name = signal.Signals(self.received).name
        folder = output_folder(trainer)
        saved = ''
        if not trainer.fast_dev_run:
            path = str(folder / 'last.ckpt')
            callback = model_checkpoint(trainer)
            if callback is not None:
                # The resumed run's next one takes its place
                callback.last_model_path = path
            trainer.save_checkpoint(path)
            saved = f': cmid-geo fit ... --resume {folder} goes on from last.ckpt'
        rank_zero_warn(f'stopped by {name} at step {trainer.global_step}{saved}')
        if name == 'SIGUSR1' and trainer.is_global_zero and _requeues(trainer):
            _requeue()
        raise SystemExit(exit_code(self.received))


def exit_code(number: int) -> int:
    """Exit code of a run that a signal ended.

    Args:
        number: Of the signal.

    Returns:
        What shells tell of a program that SIGINT ended, else that of SIGTERM: schedulers know it.
    """
    return 128 + (number if number == signal.SIGINT else signal.SIGTERM)


def _requeues(trainer: Any) -> bool:
    """Whether SLURM shall start the job again."""
    environment = trainer._accelerator_connector.cluster_environment
    return getattr(environment, 'auto_requeue', False)


def _requeue() -> None:
    """Ask SLURM to start the job again.

    Not by Lightning's handler: it leaves a checkpoint in the folder in which the job began, with
    which any later job goes on that begins there, whatever it is to train.
    """
    array, job = (
        os.environ.get('SLURM_ARRAY_JOB_ID'),
        os.environ.get('SLURM_JOB_ID', ''),
    )
    if array:
        job = f'{array}_{os.environ["SLURM_ARRAY_TASK_ID"]}'
    try:
        code = subprocess.run(['scontrol', 'requeue', job], check=False).returncode
    except OSError as error:
        code = error.strerror
    if code:
        rank_zero_warn(
            f'scontrol requeue {job} failed ({code}): start the job again yourself'
        )
