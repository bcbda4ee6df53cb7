# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""From chips to located, masked views."""

from .boxes import BoxAugmentation
from .masking import expand_mask, hide_cells, random_cell_mask
from .pairs import PairAugmentation
from .rotated import RandomTurns
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
