# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Losses of CMID: mathematics without Lightning, TorchGeo or side effects."""

from ..metrics.collapse import (
    entropy,
    fresh_rank,
    key_rank,
    pairwise_cosine,
    standard_deviation,
)
from .contrastive import info_nce
from .distillation import PrototypeLoss
from .masked import DenseLoss
from .matching import nearest_cells, take_cells
from .reconstruction import ReconstructionLoss, focal_frequency, focal_l1

__all__ = (
    'DenseLoss',
    'PrototypeLoss',
    'ReconstructionLoss',
    'entropy',
    'focal_frequency',
    'focal_l1',
    'fresh_rank',
    'info_nce',
    'key_rank',
    'nearest_cells',
    'pairwise_cosine',
    'standard_deviation',
    'take_cells',
)
