# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Coverage: the valid ground of a scene, coarsely, and the chips that may lie on it."""

import zlib

import numpy as np
import numpy.typing as npt

from .grids import Bools

#: Positions tried along each axis of a scene that is valid in part only.
_POSITIONS = 128


class Bits:
    """A bool raster that takes little memory, as every process keeps one of each scene."""

    def __init__(self, cells: Bools) -> None:
        """Initialize a new Bits instance.

        Args:
            cells: Bool (rows, cols).
        """
        self._shape = cells.shape
        # Valid ground lies together: a map of 512x512 cells takes one KiB or two
        self._data = zlib.compress(np.packbits(cells).tobytes(), level=1)

    def unpack(self) -> Bools:
        """Return the raster, bool (rows, cols)."""
        data = np.frombuffer(zlib.decompress(self._data), np.uint8)
        count = self._shape[0] * self._shape[1]
        return np.unpackbits(data, count=count).reshape(self._shape).view(bool)


class Coverage:
    """The valid ground of a scene on a coarse raster of cells.

    Attributes:
        width: Of the scene, in pixels.
        height: Of the scene, in pixels.
        valid_fraction: Fraction of the scene that is valid, in [0, 1].
    """

    def __init__(self, cells: Bools | None, width: int, height: int) -> None:
        """Initialize a new Coverage instance.

        Args:
            cells: Bool (rows, cols) over the whole scene; None if all of it is valid.
            width: Of the scene, in pixels.
            height: Of the scene, in pixels.
        """
        self.width, self.height = width, height
        self._whole = cells is None or bool(cells.all())
        kept = np.ones((1, 1), bool) if cells is None or self._whole else cells
        self._cells = self._places = Bits(kept)
        self.valid_fraction = float(kept.mean())
        self._size = 0

    def fraction(self, col: float, row: float, size: int) -> float:
        """Estimate how much of a square window is valid.

        Args:
            col: First column, in pixels; need not be whole.
            row: First row, in pixels; need not be whole.
            size: Side in pixels.

        Returns:
            The fraction in [0, 1]; what lies outside the scene is not valid.
        """
        cells = self._cells.unpack()
        rows, cols = cells.shape
        top, down = _overlap(row, size, self.height / rows, rows)
        left, across = _overlap(col, size, self.width / cols, cols)
        part = cells[top : top + len(down), left : left + len(across)]
        return float(down @ part @ across)

    def restrict(self, size: int, min_valid: float) -> bool:
        """Find where windows have enough valid ground; :meth:`draw` draws from there.

        Args:
            size: Side of a window in pixels.
            min_valid: Least fraction of it that must be valid.

        Returns:
            Whether there is such a window.
        """
        self._size, self._min_valid = size, min_valid
        if self._whole or min(self.width, self.height) < size:
            return min(self.width, self.height) >= size
        cells = self._cells.unpack()
        down = _weights(self.height, size, cells.shape[0])
        across = _weights(self.width, size, cells.shape[1])
        enough = down @ cells @ across.T >= min_valid
        self._places = Bits(enough)
        # Of a scene without any no window is drawn, however little is asked for
        return self.valid_fraction > 0 and bool(enough.any())

    def draw(self, rng: np.random.Generator) -> tuple[int, int]:
        """Draw a window with enough valid ground, evenly over all of them.

        Args:
            rng: Source of randomness.

        Returns:
            (col, row) of its first pixel.
        """
        ends = (self.width - self._size, self.height - self._size)
        if self._whole:
            return int(rng.integers(0, ends[0] + 1)), int(rng.integers(0, ends[1] + 1))
        places = self._places.unpack()
        numbers = np.flatnonzero(places)
        row, col = divmod(numbers[rng.integers(len(numbers))], places.shape[1])
        place = (_starts(self.width, self._size)[col], _starts(self.height, self._size)[row])  # fmt: skip
        # Spread over the ground between the positions tried, folded back at the scene's edges
        moved = []
        for start, end in zip(place, ends, strict=True):
            reach = end / max(1, 2 * min(_POSITIONS - 1, end))
            shifted = abs(round(float(start + rng.uniform(-reach, reach))))
            moved.append(end - abs(end - shifted))
        if self.fraction(*moved, self._size) < self._min_valid:
            moved = [int(start) for start in place]
        return moved[0], moved[1]


def _overlap(
    start: float, size: int, cell: float, count: int
) -> tuple[int, npt.NDArray[np.float64]]:
    """Return the first cell of an interval and the fraction of the interval in each of its cells."""
    first = min(max(int(start // cell), 0), count)
    last = min(max(int(np.ceil((start + size) / cell)), first), count)
    edges = np.clip(np.arange(first, last + 1) * cell, start, start + size)
    return first, np.diff(edges) / size


def _starts(extent: int, size: int) -> npt.NDArray[np.int64]:
    """Return the first pixels of windows along an axis, evenly from edge to edge."""
    end = extent - size
    return np.round(np.linspace(0, end, min(_POSITIONS, end + 1))).astype(np.int64)


def _weights(extent: int, size: int, count: int) -> npt.NDArray[np.float64]:
    """Return the fractions (windows, cells) of cells in the windows along an axis."""
    starts = _starts(extent, size)
    edges = np.arange(count + 1) * (extent / count)
    inside = np.clip(edges, starts[:, None], starts[:, None] + size)
    return np.diff(inside, axis=1) / size
