# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Pixel grids, and where the pixels of one lie on another.

Pixel coordinates are (col, row), float64, with (0, 0) the outer corner of the first pixel, so that
pixel centres lie at half numbers.
"""

import functools
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from affine import Affine
from pyproj import CRS, Transformer

Floats = npt.NDArray[np.floating]
Bools = npt.NDArray[np.bool_]

#: Grids whose pixels differ by less than this fraction of a pixel are one grid.
TOLERANCE = 0.01


@dataclass(frozen=True)
class Grid:
    """A raster's pixels on the ground.

    Attributes:
        crs: The coordinate reference system, in WKT (strings compare and pickle cheaply).
        transform: From (col, row) to (x, y) in units of the CRS, float64.
        width: In pixels.
        height: In pixels.
    """

    crs: str
    transform: Affine
    width: int
    height: int

    def _repr_html_(self) -> str:
        """Table in a notebook."""
        from .tables import grid_rows, html_table

        return html_table(grid_rows(self))

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """The box (xmin, ymin, xmax, ymax) around the grid, in units of the CRS."""
        t, w, h = self.transform, self.width, self.height
        # Arrays of four numbers would take several times as long
        x = [t.a * col + t.b * row + t.c for col in (0, w) for row in (0, h)]
        y = [t.d * col + t.e * row + t.f for col in (0, w) for row in (0, h)]
        return min(x), min(y), max(x), max(y)

    @functools.cached_property
    def inverse(self) -> Affine:
        """From (x, y) to (col, row); computed once, as every read asks for it."""
        return ~self.transform

    @property
    def is_north_up(self) -> bool:
        """Whether columns run east and rows run south."""
        t = self.transform
        return t.b == 0 and t.d == 0 and t.a > 0 and t.e < 0

    @property
    def res(self) -> tuple[float, float]:
        """Pixel size (x, y) of a grid that is north up, in units of the CRS."""
        return self.transform.a, -self.transform.e

    def window(self, col: int, row: int, width: int, height: int) -> 'Grid':
        """Return the part of a grid that a window covers.

        Args:
            col: First column; may lie outside.
            row: First row; may lie outside.
            width: In pixels.
            height: In pixels.

        Returns:
            The window's grid.
        """
        t = self.transform
        # Products of Affine take longer than a chip's other sums together
        x, y = t.a * col + t.b * row + t.c, t.d * col + t.e * row + t.f
        return Grid(self.crs, Affine(t.a, t.b, x, t.d, t.e, y), width, height)

    def divided(self, rows: int, cols: int) -> 'Grid':
        """Return a grid of other pixels over the same ground.

        Args:
            rows: Number of rows.
            cols: Number of columns.

        Returns:
            The grid.
        """
        t, across, down = self.transform, self.width / cols, self.height / rows
        scaled = Affine(t.a * across, t.b * down, t.c, t.d * across, t.e * down, t.f)
        return Grid(self.crs, scaled, cols, rows)

    def coarse(self, cells: int) -> 'Grid':
        """Return a grid of few pixels over the same ground.

        Args:
            cells: At most so many pixels on a side.

        Returns:
            The grid.
        """
        return self.divided(min(cells, self.height), min(cells, self.width))


def same_crs(crs: str, other: str) -> bool:
    """Tell whether two WKT strings mean one coordinate reference system.

    Args:
        crs: WKT.
        other: WKT.

    Returns:
        True if they do, whatever the order of their axes (rasters are always x, y).
    """
    return crs == other or _transformer(crs, other) is None


def whole_offset(grid: Grid, target: Grid) -> tuple[int, int] | None:
    """Find where a target begins on a grid, if their pixels coincide.

    Args:
        grid: Of any rotation.
        target: Of the same CRS.

    Returns:
        (col, row) of the target's first pixel; None if no pixel coincides within 0.01 px.
    """
    # The target's pixels, counted in the grid's
    g, t = grid.inverse, target.transform
    across = max(abs(g.a * t.a + g.b * t.d - 1), abs(g.d * t.a + g.e * t.d))
    down = max(abs(g.a * t.b + g.b * t.e), abs(g.d * t.b + g.e * t.e - 1))
    if max(across * target.width, down * target.height) > TOLERANCE:
        return None
    x, y = g.a * t.c + g.b * t.f + g.c, g.d * t.c + g.e * t.f + g.f
    col, row = round(x), round(y)
    return (col, row) if max(abs(x - col), abs(y - row)) <= TOLERANCE else None


def fit_grid(grid: Grid, crs: str, res: tuple[float, float], origin: Affine) -> Grid:
    """Make a grid of another CRS or resolution over a raster.

    Args:
        grid: The raster's own.
        crs: Target CRS, WKT.
        res: Target pixel size (x, y) in units of *crs*.
        origin: A transform whose first corner is a corner of the target's pixels.

    Returns:
        The largest such grid inside the raster's box in *crs*, at least one pixel.
    """
    left, bottom, right, top = _box_in(grid, crs)
    # A hair of tolerance: 99.9999999 pixels are 100
    first = math.ceil((left - origin.c) / res[0] - TOLERANCE)
    last = math.floor((right - origin.c) / res[0] + TOLERANCE)
    upper = math.ceil((origin.f - top) / res[1] - TOLERANCE)
    lower = math.floor((origin.f - bottom) / res[1] + TOLERANCE)
    pixels = Grid(crs, Affine(res[0], 0.0, origin.c, 0.0, -res[1], origin.f), 1, 1)
    return pixels.window(first, upper, max(1, last - first), max(1, lower - upper))


def natural_res(grid: Grid, crs: str) -> tuple[float, float]:
    """Find the pixel size that a raster has in another CRS.

    Args:
        grid: The raster's own.
        crs: WKT.

    Returns:
        (x, y) in units of *crs*: its own where it can be, else square pixels as many along the
        diagonal as there were.
    """
    if grid.is_north_up and same_crs(grid.crs, crs):
        return grid.res
    left, bottom, right, top = _box_in(grid, crs)
    side = math.hypot(right - left, top - bottom) / math.hypot(grid.width, grid.height)
    return side, side


def positions_on(grid: Grid, target: Grid, step: int = 16) -> tuple[Floats, Floats]:
    """Find where the centres of a target's pixels lie on another grid.

    Args:
        grid: The grid to look up.
        target: The grid whose pixel centres are wanted.
        step: In target pixels. Between CRS, positions are exact on a lattice of this step and
            linear between: the error is far below a hundredth of a pixel at these distances.

    Returns:
        Columns and rows on *grid*, each (target.height, target.width), in pixels. Far outside
        where a point has no image.
    """
    transformer = _transformer(target.crs, grid.crs)
    if transformer is None:
        cols, rows = np.arange(target.width) + 0.5, np.arange(target.height) + 0.5
        x, y = _apply(target.transform, *np.meshgrid(cols, rows))
        return _apply(grid.inverse, x, y)
    nodes_across, across = _lattice(target.width, step)
    nodes_down, down = _lattice(target.height, step)
    x, y = _apply(target.transform, *np.meshgrid(nodes_across, nodes_down))
    places = np.stack(_apply(grid.inverse, *transformer.transform(x, y)))
    # Infinities would spread through the products; a far number stays where it is
    places = np.nan_to_num(places, nan=1e9, posinf=1e9, neginf=1e9)
    cols, rows = down @ places @ across.T
    return cols, rows


@functools.lru_cache(maxsize=64)
def _transformer(source: str, target: str) -> Transformer | None:
    """Return the transformer between two CRS in WKT, None if they are the same."""
    if source == target:
        return None
    one, other = CRS.from_wkt(source), CRS.from_wkt(target)
    if one.equals(other, ignore_axis_order=True):
        return None
    return Transformer.from_crs(one, other, always_xy=True)


def _box_in(grid: Grid, crs: str) -> tuple[float, float, float, float]:
    """Return a grid's box in another CRS, following the edges between the corners."""
    transformer = _transformer(grid.crs, crs)
    if transformer is None:
        return grid.bounds
    left, bottom, right, top = transformer.transform_bounds(*grid.bounds)
    if left > right:  # across the antimeridian
        left, right = -180.0, 180.0
    return left, bottom, right, top


def _apply(transform: Affine, x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Apply an affine transform to arrays."""
    t = transform
    return t.a * x + t.b * y + t.c, t.d * x + t.e * y + t.f


def _lattice(size: int, step: int) -> tuple[Floats, Floats]:
    """Return lattice nodes along an axis and the weights (size, nodes) of each pixel centre."""
    count = max(2, math.ceil(size / step) + 1)
    nodes = np.linspace(0, size, count)
    place = (np.arange(size) + 0.5) * (count - 1) / size
    return nodes, np.maximum(0, 1 - np.abs(place[:, None] - np.arange(count)))
