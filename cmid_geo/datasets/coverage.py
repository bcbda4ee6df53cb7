# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Coverage: the valid ground of a scene, coarsely, and the chips that may lie on it."""

import numpy as np
import numpy.typing as npt

from .grids import Bools

#: Positions tried along each axis of a scene that is valid in part only.
_POSITIONS = 128


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
        self._cells = np.ones((1, 1), bool) if cells is None else cells
        self.valid_fraction = float(self._cells.mean())
        self._size = 0
        self._places: npt.NDArray[np.int32] = np.zeros((0, 2), np.int32)

    def fraction(self, col: float, row: float, size: int) -> float:
        """Estimate how much of a square window is valid.

        Args:
            col: First column, in pixels; need not be whole.
            row: First row, in pixels; need not be whole.
            size: Side in pixels.

        Returns:
            The fraction in [0, 1]; what lies outside the scene is not valid.
        """
        rows, cols = self._cells.shape
        top, down = _overlap(row, size, self.height / rows, rows)
        left, across = _overlap(col, size, self.width / cols, cols)
        part = self._cells[top : top + len(down), left : left + len(across)]
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
        rows, down = _starts_and_weights(self.height, size, self._cells.shape[0])
        cols, across = _starts_and_weights(self.width, size, self._cells.shape[1])
        row, col = np.nonzero(down @ self._cells @ across.T >= min_valid)
        self._places = np.stack([cols[col], rows[row]], 1).astype(np.int32)
        return len(row) > 0

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
        place = self._places[rng.integers(len(self._places))]
        # Spread over the ground between the positions tried, folded back at the scene's edges
        moved = []
        for start, end in zip(place, ends, strict=True):
            reach = end / max(1, 2 * min(_POSITIONS - 1, end))
            shifted = abs(round(float(start + rng.uniform(-reach, reach))))
            moved.append(end - abs(end - shifted))
        if self.fraction(*moved, self._size) < self._min_valid:
            moved = place.tolist()
        return moved[0], moved[1]


def _overlap(
    start: float, size: int, cell: float, count: int
) -> tuple[int, npt.NDArray[np.float64]]:
    """Return the first cell of an interval and the fraction of the interval in each of its cells."""
    first = min(max(int(start // cell), 0), count)
    last = min(max(int(np.ceil((start + size) / cell)), first), count)
    edges = np.clip(np.arange(first, last + 1) * cell, start, start + size)
    return first, np.diff(edges) / size


def _starts_and_weights(
    extent: int, size: int, count: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Return windows along an axis, evenly from edge to edge: first pixels, and fractions (windows, cells)."""
    end = extent - size
    starts = np.round(np.linspace(0, end, min(_POSITIONS, end + 1))).astype(np.int64)
    edges = np.arange(count + 1) * (extent / count)
    inside = np.clip(edges, starts[:, None], starts[:, None] + size)
    return starts, np.diff(inside, axis=1) / size
