# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Transforms on batches: located and masked views, and augmentation of labelled images."""

from ..ops.cells import expand_mask, hide_cells, random_cell_mask
from .change import PairAugmentation
from .detection import BoxAugmentation
from .oriented import RandomTurns
from .views import TwoViews, View

__all__ = (
    'BoxAugmentation',
    'PairAugmentation',
    'RandomTurns',
    'TwoViews',
    'View',
    'expand_mask',
    'hide_cells',
    'random_cell_mask',
)
