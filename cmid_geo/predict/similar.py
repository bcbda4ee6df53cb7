# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Search for places like given ones in maps of a backbone's features."""

import contextlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from affine import Affine
from jaxtyping import Bool, Float32, Float64
from pyproj import CRS, Transformer
from pyproj.exceptions import CRSError

from ..atomic_files import write_atomically
from ..datasets.filenames import is_remote, stem
from ..datasets.gdal import gdal_settings
from ..datasets.grids import Grid, same_crs
from ..datasets.rasters import (
    FAILURES,
    Raster,
    UnreadableError,
    describe_raster,
    open_raster,
    read_raster,
)
from .api import check_counts
from .cog import RasterFile, read_raster_notes
from .outputs import Layer
from .vectors import check_closed, write_polygons
from .written import WrittenMap

#: Most bytes of a window, all bands of it.
WINDOW = 2**25

#: Name of the layer of found cells.
LAYER = 'similar'

#: A cell: number of its raster, row and column.
Cell = tuple[int, int, int]

#: Cells found, with their similarity.
FOUND = np.dtype([('score', 'f4'), ('raster', 'i8'), ('row', 'i8'), ('col', 'i8')])


@dataclass(frozen=True)
class Similar:
    """Files of a search.

    Attributes:
        maps: Cosine similarity of each raster's cells, in the order of the rasters; paths that show themselves in
            notebooks.
        cells: The best cells of all rasters.
    """

    maps: tuple[WrittenMap, ...]
    cells: Path


def find_similar(
    paths: Sequence[str | os.PathLike[str]] | str | os.PathLike[str],
    points: Sequence[tuple[float, float]],
    out: str | os.PathLike[str] = 'similar',
    crs: str | None = None,
    number: int = 100,
    window: int | None = None,
) -> Similar:
    """Find cells whose features are like those of the cells under given points.

    The query is the mean of the unit vectors of the points' cells; each cell of each raster is
    compared with it by the cosine, in [-1, 1]. A cell without data, or whose vector is zero, has no
    data in the map and is never found. Rasters are read once, in windows: memory does not grow with
    them. Each of the best cells is a polygon of its own, also where several neighbours lie on one
    large object: dissolve those that touch to count objects. The points' own cells are left out.

    Args:
        paths: Rasters of features, a float vector a cell, such as
            :func:`~cmid_geo.predict.map_scenes` writes for a backbone; all from one backbone.
        points: (x, y) of places to look for more of, at least one. The first raster that has data at
            a point gives its vector.
        out: Folder for the results: ``NAME_similar.tif`` of each raster, float32, NaN for no data, and
            ``similar.gpkg``, in the first raster's CRS, with the columns ``score`` and ``raster``.
            Earlier results are replaced.
        crs: The coordinate reference system of the points, such as EPSG:4326, always (x, y), so
            longitude before latitude; by default the rasters' own.
        number: How many of the best cells to keep, over all rasters.
        window: Side of a window in cells; by default such that it takes at most 32 MiB.

    Returns:
        The files.

    Raises:
        ValueError: If a raster cannot be read or holds no features, rasters do not fit together, a
            point lies outside of all rasters or on no data, a number is off, or another program has
            the GeoPackage open.
    """
    check_counts(number=number, window=1 if window is None else window)
    package = Path(out) / f'{LAYER}.gpkg'
    check_closed(package)
    files = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    names = [str(os.fspath(file)) for file in files]
    with gdal_settings(any(map(is_remote, names))):
        rasters = _describe(names)
        maps = _name_maps(names, Path(out))
        cells = [_find_cell(rasters, x, y, crs) for x, y in points]
        query = _mean_direction(rasters, cells, points)
        notes = {
            'points': [list(point) for point in points],
            'crs': crs,
            'rasters': names,
        }
        best = np.zeros(0, FOUND)
        for place, (raster, path) in enumerate(zip(rasters, maps, strict=True)):
            search = _Search(raster, place, query, cells, number, window)
            write_atomically(path, partial(search.write, notes=notes))
            best = _best_of(np.concatenate([best, search.best]), number)
    # It may have been opened meanwhile
    check_closed(package)
    write_atomically(package, partial(_write_cells, best, rasters, names, notes))
    return Similar(tuple(map(WrittenMap, maps)), package)


def _describe(names: Sequence[str]) -> list[Raster]:
    """Describe the rasters, and refuse those that cannot be compared."""
    if not names:
        raise ValueError('paths=[]: give at least one raster of features')
    rasters = [describe_raster(name) for name in names]
    for raster in rasters:
        count, dtype = len(raster.bands), raster.dtype
        if count < 2 or dtype[0] != 'f':
            raise ValueError(
                f'{raster.path} holds {count} bands of {dtype} but features are several float bands: give '
                'what cmid-geo map BACKBONE SCENE writes'
            )
        if count != len(rasters[0].bands):
            raise ValueError(
                f'{raster.path} has {count} bands but {rasters[0].path} has {len(rasters[0].bands)}: vectors of '
                'one length can be compared; give maps by one backbone, with the same --components'
            )
    _check_makers(names)
    return rasters


def _check_makers(names: Sequence[str]) -> None:
    """Refuse maps by different networks; one that does not tell its own fits to any."""
    known = [(name, maker) for name in names if (maker := _maker(name)) is not None]
    for name, maker in known:
        first, its_maker = known[0]
        if maker != its_maker:
            raise ValueError(
                f'{name} was made by {maker} but {first} by {its_maker}: features of different networks, or '
                'components of different scenes, cannot be compared; map all scenes with one backbone'
            )


def _maker(name: str) -> str | None:
    """Say which network made a map's features, where its tags tell."""
    notes: dict[str, Any] = {}
    # Tags of other programs' files hold anything
    with contextlib.suppress(ValueError, TypeError):
        notes = dict(json.loads(read_raster_notes(name) or ''))
    if notes.get('network') is None:
        return None
    # Principal axes are those of one scene
    own = f' as principal components of {name}' if notes.get('components') else ''
    return f'network {str(notes["network"])[:8]}{own}'


def _name_maps(names: Sequence[str], folder: Path) -> list[Path]:
    """Choose where the maps go, no two to one place and none over a raster."""
    stems = [stem(name) for name in names]
    twice = [name for name, count in Counter(stems).items() if count > 1]
    if twice:
        raise ValueError(
            f'two rasters are called {twice[0]!r} and would have one map: rename one, or search them one by one '
            'with an --out each'
        )
    maps = [folder / f'{name}_similar.tif' for name in stems]
    for path in maps:
        if any(path.exists() and os.path.exists(n) and path.samefile(n) for n in names):
            raise ValueError(f'{path} is a raster to search in: choose another --out')
    return maps


def _find_cell(rasters: Sequence[Raster], x: float, y: float, crs: str | None) -> Cell:
    """Find the cell under a point in the first raster that has data there."""
    own = rasters[0].grid.crs
    if crs is None and not all(same_crs(own, raster.grid.crs) for raster in rasters):
        raise ValueError(
            'the rasters have different coordinate reference systems: say that of X Y by --crs, such as EPSG:4326'
        )
    try:
        given = CRS.from_user_input(own if crs is None else crs)
    except CRSError as error:
        raise ValueError(
            f'crs={crs!r} is no coordinate reference system: give one such as EPSG:4326 ({error})'
        ) from error
    empty = []
    for place, raster in enumerate(rasters):
        grid = raster.grid
        moved = Transformer.from_crs(given, grid.crs, always_xy=True).transform(x, y)
        if not np.isfinite(moved).all():
            continue
        col, row = (int(np.floor(each)) for each in _apply(grid.inverse, *moved))
        if 0 <= col < grid.width and 0 <= row < grid.height:
            if _vector(raster, row, col) is not None:
                return place, row, col
            empty.append(raster.path)
    if empty:
        raise ValueError(
            f'point ({x}, {y}) lies on no data, or on a vector of zeros, in {", ".join(empty)}: choose a place with data'
        )
    boxes = '; '.join(
        f'{raster.path} covers x {box[0]:.9g} to {box[2]:.9g}, y {box[1]:.9g} to {box[3]:.9g}'
        for raster in rasters
        for box in [
            Transformer.from_crs(
                raster.grid.crs, given, always_xy=True
            ).transform_bounds(*raster.grid.bounds)
        ]
    )
    raise ValueError(
        f'point ({x}, {y}) in {given.name} lies outside of every raster ({boxes}): give X Y inside, or say their '
        'system by --crs, such as EPSG:4326 for longitude and latitude'
    )


def _apply(transform: Affine, x: float, y: float) -> tuple[float, float]:
    """Apply an affine transform to a point."""
    t = transform
    return t.a * x + t.b * y + t.c, t.d * x + t.e * y + t.f


def _vector(raster: Raster, row: int, col: int) -> Float64[np.ndarray, 'bands'] | None:
    """Read the unit vector of a cell; None if it has none."""
    with open_raster(raster.path) as file:
        data, valid = _read(file, raster, ((row, row + 1), (col, col + 1)))
    vector = data[:, 0, 0].astype(np.float64)
    length = np.linalg.norm(vector)
    return vector / length if valid.all() and length > 0 else None


def _read(
    file: Any, raster: Raster, window: tuple[tuple[int, int], tuple[int, int]]
) -> tuple[np.ndarray, Bool[np.ndarray, 'rows cols']]:
    """Read a window, and where it has data."""
    try:
        data, valid = read_raster(file, raster, window)
    except FAILURES as error:
        raise UnreadableError(
            raster.path, f'cannot be read ({error}): make the map again'
        ) from error
    return data, np.ones(data.shape[1:], np.bool_) if valid is None else valid


def _mean_direction(
    rasters: Sequence[Raster],
    cells: Sequence[Cell],
    points: Sequence[tuple[float, float]],
) -> Float64[np.ndarray, 'bands']:
    """Return the unit vector along the mean of the cells' unit vectors."""
    if not cells:
        raise ValueError('points=[]: give X Y of at least one place')
    vectors = [_vector(rasters[place], row, col) for place, row, col in cells]
    mean = np.sum([vector for vector in vectors if vector is not None], axis=0)
    length = np.linalg.norm(mean)
    if length < 1e-6:
        raise ValueError(
            f'the features under {list(points)} cancel each other out: give points of one kind of place'
        )
    return mean / length


class _Search:
    """Search of one raster, window by window."""

    def __init__(
        self,
        raster: Raster,
        place: int,
        query: Float64[np.ndarray, 'bands'],
        asked: Sequence[Cell],
        number: int,
        window: int | None,
    ) -> None:
        self.raster, self.place, self.query = raster, place, query
        self.asked, self.number = set(asked), number
        self.side = window or _window_side(raster)
        self.best = np.zeros(0, FOUND)

    def write(self, path: Path, notes: dict[str, Any]) -> None:
        """Write the map, and keep the best cells."""
        layer = Layer('', 1, 'float32', float('nan'), names=('cosine similarity',))
        file = RasterFile(path.parent, path.name, layer, self.raster.grid)
        try:
            for row, col, scores in self._windows():
                file.write((row, col), scores[None])
                self._keep(row, col, scores)
            file.close(notes)
        except BaseException:
            file.drop()
            raise

    def _windows(self) -> Iterator[tuple[int, int, Float32[np.ndarray, 'rows cols']]]:
        """Similarities of each window, with its first row and column."""
        grid, side = self.raster.grid, self.side
        with open_raster(self.raster.path) as file:
            for row in range(0, grid.height, side):
                for col in range(0, grid.width, side):
                    end = min(row + side, grid.height), min(col + side, grid.width)
                    data, valid = _read(
                        file, self.raster, ((row, end[0]), (col, end[1]))
                    )
                    yield row, col, _cosine(data, valid, self.query)

    def _keep(
        self, row: int, col: int, scores: Float32[np.ndarray, 'rows cols']
    ) -> None:
        rows, cols = np.nonzero(np.isfinite(scores))
        found = np.zeros(len(rows), FOUND)
        found['score'], found['raster'] = scores[rows, cols], self.place
        found['row'], found['col'] = rows + row, cols + col
        if len(found) > self.number + len(self.asked):
            # Ties stay, or which of them are found would hang on the windows
            kept = self.number + len(self.asked)
            least = np.partition(found['score'], -kept)[-kept]
            found = found[found['score'] >= least]
        cells = zip(
            *(found[name].tolist() for name in ('raster', 'row', 'col')), strict=True
        )
        new = np.array([cell not in self.asked for cell in cells], np.bool_)
        self.best = _best_of(np.concatenate([self.best, found[new]]), self.number)


def _window_side(raster: Raster) -> int:
    """Choose the side of a window, a power of two, as blocks of maps have."""
    side, cell = 512, len(raster.bands) * np.dtype(raster.dtype).itemsize
    while side > 16 and side * side * cell > WINDOW:
        side //= 2
    return side


def _cosine(
    data: np.ndarray,
    valid: Bool[np.ndarray, 'rows cols'],
    query: Float64[np.ndarray, 'bands'],
) -> Float32[np.ndarray, 'rows cols']:
    """Compare the vectors (bands, rows, cols) of a window with a unit vector; NaN without data."""
    dots, squares = np.zeros((2, *data.shape[1:]))
    # Band by band: a product of matrices sums in an order that hangs on the window's shape
    with np.errstate(invalid='ignore', over='ignore'):
        for weight, band in zip(query, data, strict=True):
            values = band.astype(np.float64)
            dots += weight * values
            squares += values * values
    known = valid & (squares > 0) & np.isfinite(squares)
    cosines = dots / np.sqrt(squares, where=known, out=np.ones_like(squares))
    return np.where(known, cosines.clip(-1, 1), np.nan).astype(np.float32)


def _best_of(found: np.ndarray, number: int) -> np.ndarray:
    """Keep the best, by falling score and then by raster and position."""
    order = np.lexsort([found['col'], found['row'], found['raster'], -found['score']])
    return found[order[:number]]


def _write_cells(
    best: np.ndarray,
    rasters: Sequence[Raster],
    names: Sequence[str],
    notes: dict[str, Any],
    path: Path,
) -> None:
    """Write cells as polygons in the first raster's CRS."""
    crs = rasters[0].grid.crs
    polygons = np.array(
        [
            _outline(rasters[place].grid, row, col, crs)
            for _, place, row, col in best.tolist()
        ],
        dtype=object,
    )
    raster = np.array([stem(names[place]) for place in best['raster']], dtype=object)
    columns = {'score': best['score'], 'raster': raster}
    write_polygons(
        polygons, columns, path, crs, LAYER, json.dumps(notes, sort_keys=True)
    )


def _outline(grid: Grid, row: int, col: int, crs: str) -> shapely.Polygon:
    """A cell's outline in a coordinate reference system."""
    corners = [(col, row), (col + 1, row), (col + 1, row + 1), (col, row + 1)]
    x, y = zip(*(_apply(grid.transform, *each) for each in corners), strict=True)
    if not same_crs(grid.crs, crs):
        x, y = Transformer.from_crs(grid.crs, crs, always_xy=True).transform(x, y)
    return shapely.Polygon(list(zip(x, y, strict=True)))
