# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Monitoring of a run: signs of collapse, and throughput."""

import math
import time
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor


class CollapseAlarm(Callback):
    r"""Warns when a run learns nothing because all outputs became alike.

    Three signs, each of which must last for *patience* batches, after the warm-up:

    * ``embedding_std`` below a tenth of :math:`1 / \sqrt{dim}`, the value of vectors all over
      the sphere. As :math:`dim \cdot std^2 = 1 - |mean|^2`, that is a mean cosine above 0.99:
      all images have one embedding.
    * ``assignment_entropy`` below log 2: all cells of a batch share fewer than two
      prototypes.
    * ``teacher_entropy`` above 99 % of log(prototypes): the teacher sends every cell to all
      prototypes alike, so there is nothing to match.
    """

    def __init__(self, patience: int = 20) -> None:
        """Initialize a new CollapseAlarm instance.

        Args:
            patience: Batches for which a sign must last.
        """
        self.patience = patience
        self.raised: dict[str, int] = {}
        self._lasting: Tensor | None = None

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count for how long the signs have lasted; look at the count when logs are written."""
        metrics = trainer.callback_metrics
        # Other tasks log no such thing, and have no warm-up
        if 'embedding_std' not in metrics:
            return
        if trainer.global_step <= pl_module.horizon.warmup:
            return
        given = pl_module.hparams
        dim, prototypes = given['output_dim'], given['num_prototypes']
        spread, used = metrics['embedding_std'], metrics['assignment_entropy']
        doubt = metrics['teacher_entropy'] > 0.99 * math.log(prototypes)
        signs = torch.stack([spread < 0.1 / dim**0.5, used < math.log(2), doubt])
        before = torch.zeros_like(signs, dtype=torch.long)
        before = before if self._lasting is None else self._lasting
        # Counted on the device: only now and then does the host wait for it
        self._lasting = torch.where(signs, before + 1, 0)
        if trainer.global_step % (trainer.log_every_n_steps or 50) == 0:
            self._look(trainer.global_step, metrics)

    def _look(self, step: int, metrics: Any) -> None:
        causes = {
            'embedding_std': 'all images get one embedding',
            'assignment_entropy': 'all cells share one prototype',
            'teacher_entropy': 'the teacher tells no prototype from another',
        }
        lasting = self._lasting.tolist() if self._lasting is not None else []
        for (name, cause), batches in zip(causes.items(), lasting):
            if batches >= self.patience and name not in self.raised:
                self.raised[name] = step
                rank_zero_warn(
                    f'collapse at step {step}: {cause} ({name} {metrics[name].item():.3g} for {batches} '
                    'batches). Lower CMID(lr=...), raise momentum or the batch size, or check '
                    'that the chips differ'
                )


class Throughput(Callback):
    """Logs ``images_per_second`` over all processes, waiting for data included."""

    def __init__(self) -> None:
        """Initialize a new Throughput instance."""
        self._last: float | None = None

    def on_train_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Forget the time between epochs."""
        self._last = None

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the rate since the batch before."""
        now, last, self._last = time.perf_counter(), self._last, time.perf_counter()
        if last is not None:
            images = outputs['keys'].shape[1] * trainer.world_size
            # Filled, not copied, which would wait for the device
            rate = torch.full((), images / (now - last), device=pl_module.device)
            pl_module.log('images_per_second', rate, prog_bar=True)
