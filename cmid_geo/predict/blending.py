# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Blending of overlapping windows to one map, in memory that does not grow with the scene."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

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
        fraction = torch.from_numpy(weight / total).to(mean)
        # A difference of 0 moves nothing; a sum of products would round
        mean = mean + fraction * (value - mean)
    return mean


class Spill:
    """An append-only file of arrays, each under a key.

    Several processes have a file each in one folder, on any file system that all see. Closed, a
    spill may be sent to another process, which reads it.
    """

    def __init__(self, path: Path) -> None:
        """Initialize a new Spill instance.

        Args:
            path: File to append to.
        """
        self.path = path
        self.places: dict[tuple[int, ...], list[int]] = {}
        self._file: Any = None

    def put(self, key: tuple[int, ...], *arrays: np.ndarray) -> None:
        """Append arrays.

        Args:
            key: To find them by.
            arrays: Of any types.
        """
        if self._file is None:
            self._file = open(self.path, 'w+b')  # noqa: SIM115
        for array in arrays:
            self.places.setdefault(key, []).append(self._file.seek(0, 2))
            np.save(self._file, array, allow_pickle=False)

    def take(self, key: tuple[int, ...]) -> list[np.ndarray]:
        """Read arrays back, once.

        Args:
            key: Under which they were put; it is free again.

        Returns:
            The arrays.
        """
        if self._file is None:
            self._file = open(self.path, 'rb')  # noqa: SIM115
        found = []
        for place in self.places.pop(key):
            self._file.seek(place)
            found.append(np.load(self._file, allow_pickle=False))
        return found

    def close(self) -> None:
        """Close the file; what was put can still be taken."""
        if self._file is not None:
            self._file.close()
            self._file = None


@dataclass
class Blender:
    """Joins the windows of one scene, in any order, to the same map.

    Each region of the scene is finished as soon as all windows around it have come. Those
    that wait are kept in memory up to a budget and spilled to disk beyond. Where several processes
    share a scene, what belongs to regions between them is spilled, see :meth:`join`.

    Args:
        tiling: The windows.
        finish: Turns a region's average and validity into what the map holds.
        spill: For what has to wait.
        is_mine: Which windows this process brings.
        budget: Bytes to keep in memory.
    """

    tiling: Tiling
    finish: Callable[[Tensor, Tensor], list[np.ndarray]]
    spill: Spill
    is_mine: Callable[[int], bool] = lambda window: True
    budget: int = BUDGET
    #: Parts of regions by window; None where they are spilled.
    _waiting: dict[tuple[int, int], dict[int, tuple[Tensor, Tensor] | None]] = field(
        default_factory=dict
    )
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
                continue
            self._keep(region, window, part, known)
            if len(self._waiting[region.key]) == len(region.windows):
                yield region, self._close(region)

    def _keep(self, region: Region, window: int, part: Tensor, known: Tensor) -> None:
        """Let a part wait for the others of its region."""
        # A clone: a slice would keep all of its window
        part, known = part.float().cpu().clone(), known.cpu().clone()
        shared = not all(map(self.is_mine, region.windows))
        waits = not shared and self._held + part.nbytes <= self.budget
        self._held += part.nbytes if waits else 0
        if not waits:
            self.spill.put((*region.key, window), part.numpy(), known.numpy())
        here = self._waiting.setdefault(region.key, {})
        here[window] = (part, known) if waits else None

    def _close(self, region: Region) -> list[np.ndarray]:
        """Blend a region of which all parts have come, in the order of its windows."""
        waiting = self._waiting.pop(region.key)
        self._held -= sum(part[0].nbytes for part in waiting.values() if part)
        parts = [
            waiting[window] or _take(self.spill, (*region.key, window))
            for window in region.windows
        ]
        return self._average(region, parts)

    def _average(
        self, region: Region, parts: Sequence[tuple[Tensor, Tensor]]
    ) -> list[np.ndarray]:
        weights = [self.tiling.weight(region, window) for window in region.windows]
        mean = blend([values for values, _ in parts], weights)
        # All windows read the same pixels; resampled ones may differ by a rounding
        return self.finish(mean, parts[0][1])

    def join(
        self, spills: Sequence[Spill]
    ) -> Iterator[tuple[Region, list[np.ndarray]]]:
        """Finish the regions between processes.

        Args:
            spills: Of all processes, closed; each has brought all its windows.

        Yields:
            The regions, and what the map holds there.
        """
        owners = {key: spill for spill in spills for key in spill.places}
        for region in self.tiling.all_regions():
            keys = [(*region.key, window) for window in region.windows]
            if keys[0] in owners:
                yield region, self._average(region, [_take(owners[k], k) for k in keys])


def _take(spill: Spill, key: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    values, valid = map(torch.from_numpy, spill.take(key))
    return values, valid
