# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""From overlapping windows to one map, in memory that does not grow with the scene."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .shelf import Shelf
from .tiling import Region, Tiling

#: What waits in memory for neighbours, in bytes; the rest waits on disk.
BUDGET = 2**27


def blend(
    values: Sequence[Float[Tensor, 'channels rows cols']],
    weights: Sequence[Float[np.ndarray, 'rows cols']],
) -> Float[Tensor, 'channels rows cols']:
    """Average by weight, such that what is equal stays what it is to the last bit.

    Args:
        values: Of each window; the first is overwritten.
        weights: Of each window, above 0.

    Returns:
        The average.
    """
    mean, total = values[0], weights[0]
    for value, weight in zip(values[1:], weights[1:], strict=True):
        total = total + weight
        share = torch.from_numpy(weight / total).to(mean)
        # A difference of 0 moves nothing; a sum of products would round
        mean = mean + share * (value - mean)
    return mean


@dataclass
class Blender:
    """Joins the windows of one scene, in any order, to the same map.

    Each region of the scene is finished as soon as all windows around it have come. Those
    that wait are kept in memory up to a budget and on a shelf beyond. Where several processes share
    a scene, what belongs to regions between them goes to the shelf, see :meth:`join`.

    Args:
        tiling: The windows.
        finish: Turns a region's average and validity into what the map holds.
        shelf: For what has to wait.
        is_mine: Which windows this process brings.
        budget: Bytes to keep in memory.
    """

    tiling: Tiling
    finish: Callable[[Tensor, Tensor], list[np.ndarray]]
    shelf: Shelf
    is_mine: Callable[[int], bool] = lambda window: True
    budget: int = BUDGET
    _waiting: dict[tuple[int, int], dict[int, tuple[Tensor, Tensor]]] = field(
        default_factory=dict
    )
    _shelved: dict[tuple[int, int], set[int]] = field(default_factory=dict)
    _held: int = 0

    def add(
        self,
        window: int,
        values: Float[Tensor, 'channels size size'],
        valid: Bool[Tensor, 'size size'],
    ) -> Iterator[tuple[Region, list[np.ndarray]]]:
        """Add what a network says of a window.

        Args:
            window: Its number.
            values: On any device.
            valid: Where the scene holds data.

        Yields:
            Regions that are finished now, and what the map holds there.
        """
        row, col = self.tiling.corner(window)
        for region in self.tiling.regions(window):
            rows = slice(region.rows[0] - row, region.rows[1] - row)
            cols = slice(region.cols[0] - col, region.cols[1] - col)
            part, known = values[:, rows, cols], valid[rows, cols]
            if region.windows == (window,):
                yield region, self.finish(part, known)
            elif not all(map(self.is_mine, region.windows)):
                part, known = part.float().cpu(), known.cpu()
                self.shelf.put((*region.key, window), part.numpy(), known.numpy())
            elif self._keep(region, window, part, known):
                yield region, self._close(region)

    def _keep(self, region: Region, window: int, part: Tensor, known: Tensor) -> bool:
        """Let a part wait; tell whether it was the last that its region needed."""
        # A clone: a slice would keep all of its window
        part, known = part.float().cpu().clone(), known.cpu().clone()
        here = self._waiting.setdefault(region.key, {})
        there = self._shelved.setdefault(region.key, set())
        if self._held + part.nbytes > self.budget:
            self.shelf.put((*region.key, window), part.numpy(), known.numpy())
            there.add(window)
        else:
            here[window] = part, known
            self._held += part.nbytes
        return len(here) + len(there) == len(region.windows)

    def _close(self, region: Region) -> list[np.ndarray]:
        """Blend a region of which all parts have come, in the order of its windows."""
        parts = self._waiting.pop(region.key)
        self._held -= sum(part.nbytes for part, _ in parts.values())
        for window in self._shelved.pop(region.key):
            parts[window] = _tensors(self.shelf.take((*region.key, window)))
        return self._average(region, parts)

    def _average(
        self, region: Region, parts: dict[int, tuple[Tensor, Tensor]]
    ) -> list[np.ndarray]:
        ordered = [parts[window] for window in region.windows]
        weights = [self.tiling.weight(region, window) for window in region.windows]
        mean = blend([values for values, _ in ordered], weights)
        # All windows read the same pixels; resampled ones may differ by a rounding
        return self.finish(mean, ordered[0][1])

    def join(
        self, shelves: Sequence[Shelf]
    ) -> Iterator[tuple[Region, list[np.ndarray]]]:
        """Finish the regions between processes.

        Args:
            shelves: Of all processes, closed.

        Yields:
            The regions, and what the map holds there.

        Raises:
            ValueError: If a window is missing.
        """
        found: dict[tuple[int, int], dict[int, Shelf]] = {}
        for shelf in shelves:
            for key in shelf:
                if len(key) == 3:
                    found.setdefault(key[:2], {})[key[2]] = shelf
        for row in range(len(self.tiling.down.segments)):
            for col in range(len(self.tiling.across.segments)):
                region = self.tiling.region(row, col)
                parts = found.get(region.key)
                if parts is None:
                    continue
                if set(parts) != set(region.windows):
                    raise ValueError(
                        f'windows {sorted(set(region.windows) - set(parts))} of a map are missing: a process '
                        'ended early; run again'
                    )
                loaded = {
                    window: _tensors(shelf.take((*region.key, window)))
                    for window, shelf in parts.items()
                }
                yield region, self._average(region, loaded)


def _tensors(arrays: list[np.ndarray]) -> tuple[Tensor, Tensor]:
    values, valid = map(torch.from_numpy, arrays)
    return values, valid
