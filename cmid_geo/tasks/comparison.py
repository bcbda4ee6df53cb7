# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""What comes of comparing two views."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Comparison:
    """What came of comparing two views.

    Attributes:
        losses: Reconstruction, global and local loss.
        keys: The teacher's unit vectors of the first and the second view.
        embedding: The student's unit vectors of the first view.
        scores: The teacher's cosines with the prototypes, of the matched cells both ways.
        weight: Weight of each of those cells.
    """

    losses: Float[Tensor, '3']
    keys: Float[Tensor, '2 batch dim']
    embedding: Float[Tensor, 'batch dim']
    scores: Float[Tensor, 'cells prototypes']
    weight: Float[Tensor, ' cells']
