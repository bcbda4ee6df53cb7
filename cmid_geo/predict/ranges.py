# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""What the values of a scene mean to a task."""

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchgeo.tasks import BaseTask

from .checkpoint import Backbone
from .inputs import SceneSource

#: How many windows with data tell whether a scene's values fit.
WATCHED = 4


def check_range(
    task: nn.Module,
    source: SceneSource,
    low: Tensor | None,
    high: Tensor | None,
    told: bool,
) -> None:
    """Refuse values of which nobody said what they mean.

    Args:
        task: That shall see them.
        source: The scene.
        low: Raw value of each band, or of all, that stands for 0, where known.
        high: Likewise for 1.
        told: Whether the user or the task said so.

    Raises:
        ValueError: If it is not known, or cannot be.
    """
    held, bands = source.dates[0].dtype, len(source.bands)
    needed = isinstance(task, Backbone | BaseTask) and not told
    # Bytes alone have a range of their own
    if needed and not (isinstance(task, Backbone) and held == 'uint8'):
        raise ValueError(
            f'{source.name} holds {held} and {type(task).__name__} does not tell which raw values '
            'stand for 0 and 1: give low= and high='
        )
    if low is None or high is None:
        return
    if not {low.numel(), high.numel()} <= {1, bands} or not bool((low < high).all()):
        raise ValueError(
            f'low={low.tolist()} and high={high.tolist()} of {bands} bands: give one value a band, or '
            'one for all, and high above low'
        )
    whole = np.issubdtype(held, np.integer)
    if whole and bool((low == 0).all()) and bool((high == 1).all()):
        raise ValueError(
            f'{source.name} holds whole numbers, of which the task knows only that 0 is 0 and 1 is 1: '
            'it was trained without a datamodule that tells; give low= and high=, such as 0 and 255'
        )


class RangeWatch:
    """Looks at a scene's first windows, and warns where most of their values would be clamped."""

    def __init__(self, name: str, low: Any, high: Any) -> None:
        """Initialize a new RangeWatch instance.

        Args:
            name: Of the scene.
            low: Raw value of each band, or of all, that stands for 0; None where not known.
            high: The same for 1.
        """
        self.name, self.low, self.high = name, low, high
        self._left = 0 if low is None else WATCHED
        self._counts: list[tuple[int, int]] = []
        self._least, self._most = float('inf'), float('-inf')

    def see(self, image: Tensor, valid: Tensor, is_last: bool) -> None:
        """Look at a window; at the last of the first ones, say what was seen.

        Args:
            image: Raw values (..., bands, rows, cols).
            valid: (rows, cols).
            is_last: Whether no window follows.
        """
        if not self._left:
            return
        values = image[..., valid].cpu()
        if values.numel():
            low, high = (torch.tensor(v).view(-1, 1) for v in (self.low, self.high))
            outside = (values < low) | (values > high)
            self._counts.append((int(outside.sum()), values.numel()))
            self._least = min(self._least, float(values.min()))
            self._most = max(self._most, float(values.max()))
            self._left -= 1
        if self._counts and (is_last or not self._left):
            self._left = 0
            self._tell()

    def _tell(self) -> None:
        outside, total = map(sum, zip(*self._counts, strict=True))
        if outside <= total / 2:
            return
        warnings.warn(
            f'{100 * outside / total:.0f} % of the values of {self.name} in its first windows, from '
            f'{self._least:g} to {self._most:g}, lie outside of {_shown(self.low)} to '
            f'{_shown(self.high)}, which the network knows as 0 and 1, and are clamped: the map can say '
            'little. Give the raw values of this scene that stand for 0 and 1 by --low and --high '
            '(low= and high=)',
            stacklevel=2,
        )


def _shown(limit: Any) -> str:
    """A limit of each band, or the one that all share."""
    each = limit if isinstance(limit, list) else [limit]
    return str(each[0] if len(set(each)) == 1 else each)
