# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Gradients of the three losses into the backbone, every few steps."""

from typing import Any

import torch
from lightning.pytorch import Callback
from torch import Tensor


class LossGradients(Callback):
    """Logs which loss steers the backbone, and how far its residual branches are open.

    For each loss, with its weight: the norm of its gradient into the student's backbone,
    ``gradient_norm_global``, and its cosine with the gradient of the sum,
    ``gradient_cosine_global``. And ``residual_weight``, the mean weight of the last norms of
    residual branches, which timm begins at 0, where the network has any.

    They are of the batch just trained on, after the step and before the queue takes its keys, with
    views of their own; they cost one more forward, three more backwards, none of them compiled, and
    for that time memory of several copies of the backbone's parameters. Losses are not scaled, so in
    ``16-mixed`` small gradients are lost. Statistics of batch norms and random numbers are put back:
    a run is the same, to the bit, with and without.
    """

    def __init__(self, every_n_steps: int = 200) -> None:
        """Initialize a new LossGradients instance.

        Args:
            every_n_steps: Optimizer steps between two looks; rounded up to when the Trainer writes logs.
        """
        self.every_n_steps = every_n_steps

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look, where it is time."""
        each = trainer.log_every_n_steps
        if not each:
            return
        every = -(-self.every_n_steps // each) * each
        stepped = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if trainer.global_step % every or not stepped:
            return
        buffers = {
            buffer: buffer.clone()
            for network in (pl_module.student, pl_module.teacher)
            for buffer in network.buffers()
        }
        devices = [pl_module.device] if pl_module.device.type == 'cuda' else []
        # Compiled networks throw away what a second backward would need
        eager = torch.compiler.set_stance('force_eager')
        with torch.random.fork_rng(devices), eager:
            values = self._look(trainer, pl_module, batch)
        with torch.no_grad():
            for buffer, before in buffers.items():
                buffer.copy_(before)
        opened = pl_module.student.backbone.residual_weight()
        if opened is not None:
            values['residual_weight'] = opened
        pl_module.log_dict(values, batch_size=len(batch['image']))

    def _look(self, trainer: Any, task: Any, batch: Any) -> dict[str, Tensor]:
        """Take the gradients apart."""
        with trainer.precision_plugin.forward_context():
            views = task.augmentations(batch['image'], batch.get('valid'))
            losses = task.weighted(task.compare(*views).losses)
        backbone = task.student.backbone
        inputs = [each for each in backbone.parameters() if each.requires_grad]
        gradients = {}
        for name, loss in losses.items():
            found = torch.autograd.grad(
                loss, inputs, retain_graph=True, allow_unused=True
            )
            known = zip(inputs, found)
            flat = [
                (torch.zeros_like(i) if g is None else g).flatten() for i, g in known
            ]
            gradients[name] = torch.cat(flat).float()
        total = torch.stack(list(gradients.values())).sum(0)
        values = {}
        for name, gradient in gradients.items():
            norm = gradient.norm()
            cosine = gradient @ total / (norm * total.norm()).clamp_min(1e-20)
            values |= {f'gradient_norm_{name}': norm, f'gradient_cosine_{name}': cosine}
        return values
