# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Stop at a loss that is not finite."""

import math
from collections.abc import Mapping
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor


class StopOnNonFinite(Callback):
    """Stops the run at a loss that is not finite, and names it.

    On a GPU the losses are read one step late, so that the host need not wait; but always
    before a checkpoint is written.
    """

    def __init__(self) -> None:
        """Initialize a new StopOnNonFinite instance."""
        self.pending: tuple[str, Tensor, torch.cuda.Event | None] | None = None

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: STEP_OUTPUT,
        batch: object,
        batch_idx: int,
    ) -> None:
        """Look at the losses of the batch before, and start to fetch this one's."""
        where = f'batch {batch_idx} of epoch {trainer.current_epoch}'
        losses, event = cast(Mapping[str, Tensor], outputs)['losses'].detach(), None
        self.check(trainer)
        if losses.device.type == 'cuda':
            losses, event = losses.to('cpu', non_blocking=True), torch.cuda.Event()
            event.record()
        self.pending = (where, losses, event)
        if event is None:
            self.check(trainer)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Let no weights out that a bad loss has spoilt."""
        self.check(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the last batch too."""
        self.check(trainer)

    def check(self, trainer: Trainer) -> None:
        """Raise if the losses at hand are not finite.

        Args:
            trainer: Knows the last checkpoint.

        Raises:
            FloatingPointError: Names losses and batch.
        """
        if self.pending is None:
            return
        where, losses, event = self.pending
        self.pending = None
        if event is not None:
            event.synchronize()
        named = zip(('reconstruction', 'global', 'local'), losses.tolist())
        bad = [f'{name} {value}' for name, value in named if not math.isfinite(value)]
        if bad:
            names, saved = ('last', 'best'), trainer.checkpoint_callback
            paths = [getattr(saved, f'{name}_model_path', '') for name in names]
            last = paths[0] or paths[1]
            anew = (
                f', weights={last!r} to start from the last checkpoint' if last else ''
            )
            raise FloatingPointError(
                f'loss not finite in {where}: {", ".join(bad)}. Look for NaN in the data, train with '
                "precision='bf16-mixed' rather than 16-mixed, or start anew with other arguments, such as "
                f'CMID(lr=..., warmup_steps=...{anew}): a resumed run keeps those it was begun with'
            )
