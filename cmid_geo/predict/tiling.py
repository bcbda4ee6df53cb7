# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Overlapping windows that cover a scene, and the regions in which they share places.

Everything is counted in *units*: pixels of the scene, or the places of vectors, one for each
*stride* x *stride* pixels.
"""

import bisect
import functools
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from ..ops.window_starts import window_starts


@dataclass(frozen=True)
class Axis:
    """Windows along one side of a scene.

    Attributes:
        length: Of the side, in units.
        size: Side of a window.
        overlap: What neighbours share at least.
        starts: First unit of each window, rising; below 0, and behind the end, a window holds the
            scene's mirror image.
    """

    length: int
    size: int
    overlap: int
    starts: tuple[int, ...]

    @functools.cached_property
    def segments(self) -> tuple[tuple[int, int, tuple[int, ...]], ...]:
        """Parts (first, last + 1, windows) in which the same windows lie, in order."""
        ends = [start + self.size for start in self.starts]
        cuts = sorted({min(max(cut, 0), self.length) for cut in (*self.starts, *ends)})
        found = []
        for low, high in itertools.pairwise(cuts):
            # Ends rise with starts: the windows around a place are neighbours
            first = bisect.bisect_right(ends, low)
            last = bisect.bisect_right(self.starts, low)
            found.append((low, high, tuple(range(first, last))))
        return tuple(found)

    def segments_of(self, window: int) -> list[int]:
        """Find the segments of a window.

        Args:
            window: Its number.

        Returns:
            Numbers of the segments, rising.
        """
        return [n for n, segment in enumerate(self.segments) if window in segment[2]]

    @functools.cached_property
    def weights(self) -> Float[np.ndarray, 'size']:
        """How much each unit of a window counts: a cosine's rise over the overlap, then 1."""
        inwards = np.minimum(np.arange(self.size), np.arange(self.size)[::-1]) + 0.5
        rise = np.minimum(inwards / max(self.overlap, 0.5), 1)
        return (np.sin(math.pi / 2 * rise) ** 2).astype(np.float32)


def cut_axis(
    length: int, size: int, overlap: int, margin: int, centred: bool = True
) -> Axis:
    """Place windows along a side, so that all but the scene's own ends lie inside some window.

    Windows begin a margin before the scene and end a margin behind it: with half an overlap, where
    they hold the scene's mirror image, a place at the edge is as far from its window's edge as
    any. The last window is moved back rather than hanging over further.

    Args:
        length: Of the side, in units.
        size: Side of a window.
        overlap: What neighbours share at least; below half of *size*.
        margin: How far windows reach beyond the scene.
        centred: Whether a scene no longer than a window is in its middle, or at its beginning.

    Returns:
        The axis.
    """
    starts = window_starts(length, size, size - overlap, margin, centred)
    return Axis(length, size, overlap, starts)


@dataclass(frozen=True)
class Region:
    """A part of a scene in which the same windows lie.

    Attributes:
        rows: First row and last + 1.
        cols: First column and last + 1.
        windows: Numbers of the windows, rising.
    """

    rows: tuple[int, int]
    cols: tuple[int, int]
    windows: tuple[int, ...]

    @property
    def key(self) -> tuple[int, int]:
        """Where it begins, which no two regions share."""
        return self.rows[0], self.cols[0]


@dataclass(frozen=True)
class Tiling:
    """Windows over a scene, numbered row by row.

    Attributes:
        down: Windows from north to south (of the grid, whatever its rotation).
        across: Windows from west to east.
        stride: Pixels a unit.
    """

    down: Axis
    across: Axis
    stride: int = 1

    def __len__(self) -> int:
        """Return the number of windows."""
        return len(self.down.starts) * len(self.across.starts)

    def all_regions(self) -> Iterator[Region]:
        """Return all regions, which together are the scene."""
        numbers = (range(len(axis.segments)) for axis in (self.down, self.across))
        return itertools.starmap(self.region, itertools.product(*numbers))

    def corner(self, window: int) -> tuple[int, int]:
        """Return the first (row, col) of a window, in units.

        Args:
            window: Its number.

        Returns:
            May lie outside the scene.
        """
        row, col = divmod(window, len(self.across.starts))
        return self.down.starts[row], self.across.starts[col]

    def regions(self, window: int) -> Iterator[Region]:
        """Find the regions of a window.

        Args:
            window: Its number.

        Returns:
            The regions, which together are the window's part of the scene.
        """
        row, col = divmod(window, len(self.across.starts))
        segments = self.down.segments_of(row), self.across.segments_of(col)
        return itertools.starmap(self.region, itertools.product(*segments))

    def region(self, row: int, col: int) -> Region:
        """Get a region.

        Args:
            row: Number of its segment downwards.
            col: Number of its segment across.

        Returns:
            The region.
        """
        top, bottom, above = self.down.segments[row]
        left, right, beside = self.across.segments[col]
        wide = len(self.across.starts)
        windows = tuple(r * wide + c for r in above for c in beside)
        return Region((top, bottom), (left, right), windows)

    def weight(self, region: Region, window: int) -> Float[np.ndarray, 'rows cols']:
        """How much a window counts in a region.

        Args:
            region: One of the window's.
            window: Its number.

        Returns:
            Above 0; relative to the other windows.
        """
        row, col = self.corner(window)
        rows = self.down.weights[slice(*(place - row for place in region.rows))]
        cols = self.across.weights[slice(*(place - col for place in region.cols))]
        return rows[:, None] * cols


def cut_scene(
    height: int,
    width: int,
    size: int,
    overlap: int | None,
    stride: int = 1,
    mirrored: bool = True,
) -> Tiling:
    """Cover a scene with windows of whole pixels.

    Args:
        height: Height of the scene in pixels.
        width: Width of the scene in pixels.
        size: Side of a window, in pixels.
        overlap: What neighbouring windows share at least, in pixels; an eighth of *size* by default.
        stride: Pixels a unit; *size* and *overlap* must be multiples of it.
        mirrored: Whether windows reach half an overlap beyond the scene.

    Returns:
        The tiling.

    Raises:
        ValueError: If a number is off.
    """
    if size < 1 or size % stride:
        raise ValueError(
            f'size={size} is the side of a window: give a positive multiple of {stride} pixels'
        )
    if overlap is None:
        overlap = size // 8 // stride * stride
    if not 0 <= overlap < size / 2:
        raise ValueError(
            f'overlap={overlap} of windows of size={size}: give at least 0 and less than half of the '
            'size, or raise size='
        )
    if overlap % stride:
        raise ValueError(
            f'overlap={overlap}: this network gives one vector for each {stride}x{stride} pixels, give '
            f'a multiple of {stride}'
        )
    shared = overlap // stride
    margin = shared // 2 if mirrored else 0
    sides = (math.ceil(side / stride) for side in (height, width))
    axes = (cut_axis(side, size // stride, shared, margin, mirrored) for side in sides)
    return Tiling(*axes, stride)
