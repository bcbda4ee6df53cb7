# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Distillation of prototype assignments: the local loss."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .autocast import in_full_precision
from .masked import weighted_mean


class PrototypeLoss(nn.Module):
    r"""Cross-entropy between the teacher's and the student's assignment to prototypes.

    For each cell, with teacher scores :math:`t`, student scores :math:`u`, centre
    :math:`c`:

    .. math::

        -\sum_p \mathrm{softmax}((t - c) / T_t)_p \; \log \mathrm{softmax}(u / T_s)_p

    The centre keeps one prototype from taking all cells, the teacher's low temperature
    keeps the assignment from becoming uniform. It moves only through
    :meth:`update_center`: calling the loss changes nothing.
    """

    center: Tensor

    def __init__(
        self,
        num_prototypes: int,
        student_temp: float = 0.1,
        center_momentum: float = 0.9,
    ) -> None:
        """Initialize a new PrototypeLoss instance.

        Args:
            num_prototypes: Number of prototypes.
            student_temp: Temperature :math:`T_s` of the student, greater than 0.
            center_momentum: Fraction of the old centre in the new one, from 0 to 1.
        """
        super().__init__()
        self.student_temp = student_temp
        self.center_momentum = center_momentum
        self.register_buffer('center', torch.zeros(num_prototypes))

    @in_full_precision
    def forward(
        self,
        student_scores: Float[Tensor, 'cells prototypes'],
        teacher_scores: Float[Tensor, 'cells prototypes'],
        teacher_temp: float | Float[Tensor, ''],
        weight: Float[Tensor, ' cells'] | None = None,
    ) -> Float[Tensor, '']:
        """Compare the assignments of matched cells.

        Args:
            student_scores: Cosines of the student's cells with the prototypes.
            teacher_scores: The teacher's, for the cells at the same place. No gradient
                flows into them.
            teacher_temp: Temperature :math:`T_t`, greater than 0.
            weight: Weight of each cell, at least 0; all 1 by default.

        Returns:
            The weighted mean over the cells; 0 if all weights are 0.
        """
        teacher = self.assign(teacher_scores, teacher_temp)
        student = torch.log_softmax(student_scores / self.student_temp, dim=1)
        loss = -(teacher * student).sum(dim=1)
        return weighted_mean(loss, weight)

    @torch.no_grad()
    @in_full_precision
    def assign(
        self,
        teacher_scores: Float[Tensor, 'cells prototypes'],
        teacher_temp: float | Float[Tensor, ''],
    ) -> Float[Tensor, 'cells prototypes']:
        """The teacher's assignment of cells to prototypes, centred and sharpened.

        Args:
            teacher_scores: Cosines of the teacher's cells with the prototypes.
            teacher_temp: Temperature :math:`T_t`, greater than 0.

        Returns:
            Probabilities, which sum to 1 in each row.
        """
        center = self.center.to(teacher_scores.dtype)
        return torch.softmax((teacher_scores - center) / teacher_temp, dim=1)

    @torch.no_grad()
    def update_center(
        self,
        teacher_scores: Float[Tensor, 'cells prototypes'],
        weight: Float[Tensor, ' cells'] | None = None,
    ) -> None:
        """Move the centre towards the mean of the scores.

        Args:
            teacher_scores: Scores of all matched cells of a step, of both directions and
                all processes; or means of parts of them, with the parts' sizes as *weight*.
            weight: Weight of each row, at least 0; all 1 by default. With all weights 0
                the centre stays.
        """
        scores = teacher_scores.to(self.center.dtype)
        if weight is None:
            weight = scores.new_ones(len(scores))
        weight = weight.to(scores.dtype)
        mean = (scores * weight[:, None]).sum(dim=0) / weight.sum().clamp_min(1e-6)
        # No cell, no news: without a branch, which would wait for the device
        rate = (1 - self.center_momentum) * (weight.sum() > 0)
        self.center.add_(rate * (mean - self.center))
