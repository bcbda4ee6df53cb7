# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""From chips to located, masked views."""

from typing import TYPE_CHECKING

from ..lazy import attach

if TYPE_CHECKING:
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

__getattr__, __dir__ = attach(__name__)
