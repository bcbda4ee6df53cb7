# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Types of what tasks take and give."""

from collections.abc import Mapping
from typing import Any, Literal, TypedDict

from torch import Tensor

#: Part of a run whose metrics are logged together.
Stage = Literal['train', 'val', 'test']


#: A batch as datamodules deliver it: ``image`` (B, C, H, W) or (B, dates, C, H, W) in [0, 1], and what a
#: task learns from and measures by: ``valid`` and ``mask`` (B, H, W), ``label`` (B), or lists over the images
#: of boxes, ``bbox_xyxy`` (N, 4) or ``bbox`` (N, 8), of their ``label`` (N), and ``difficult`` (N).
Batch = Mapping[str, Any]


#: Arguments, or other values by name, as checkpoints hold them.
Hyperparameters = Mapping[str, Any]

#: A checkpoint as Lightning saves it.
Checkpoint = dict[str, Any]


class StepOutput(TypedDict):
    """What a step of pretraining gives to the callbacks.

    Attributes:
        loss: Weighted sum of the losses.
        losses: Reconstruction, global and local loss, (3), without gradient.
        keys: The teacher's unit vectors of both views, (2, B, dim).
        scores: Mean scores of the matched cells, (1, prototypes).
        cells: Number of cells they are the mean of, (1).
    """

    loss: Tensor
    losses: Tensor
    keys: Tensor
    scores: Tensor
    cells: Tensor
