# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Reader of any window of a scene: straight where pixels coincide, interpolated where they do not.

GDAL's WarpedVRT counts a pixel as valid where any of its sources is, and takes one file: where all sources must
be valid, and bands of one scene lie in files of several resolutions, interpolating ourselves is shorter.
"""

import errno
import functools
import math
import os
import time
import warnings
import weakref
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from rasterio.io import DatasetReader

from .coverage import Bits
from .grids import Bools, Floats, Grid, positions_on, whole_offset
from .rasters import FAILURES, Array, Raster, Window, all_of, open_raster, read_raster
from .resampling import bilinear, shrink
from .scene import Scene

Image = npt.NDArray[np.float32]

#: Seconds before a file that could not be read is tried again: network drives come back.
WAITS = (0.1, 1.0)

#: A pixel counts as valid if (up to rounding) all pixels it was interpolated from are.
_WHOLE = 0.999


@dataclass
class SceneReader:
    """Reads windows of scenes through open files that it keeps.

    Handles are never shared between processes: each process of a ``DataLoader`` opens its own,
    whether it was forked or spawned.

    Args:
        limit: How many files one process keeps open; the least recently used is closed. 0 to close
            every file after each read.
        skip: Whether windows that cannot be read are invalid, with a warning, instead of an error.

    Attributes:
        skipped: Windows that could not be read, of this process.
    """

    limit: int = 128
    skip: bool = False
    skipped: int = 0
    _handles: dict[int, dict[str, DatasetReader]] = field(default_factory=dict)
    _maps: dict[tuple[Scene, int], Bits | None] = field(default_factory=dict)
    _lost: set[str] = field(default_factory=set)

    def __getstate__(self) -> dict[str, object]:
        """Leave the open files behind, and the maps, which workers do not need."""
        return self.__dict__ | {'_handles': {}, '_maps': {}}

    def read(
        self, scene: Scene, target: Grid, dtype: npt.DTypeLike = np.float32
    ) -> tuple[Array, Bools]:
        """Read what a scene shows on a target grid.

        Args:
            scene: The scene.
            target: May overhang the scene, or be in another CRS where the scene *needs_warp*.
            dtype: Type of the values: the scene's own, or float32.

        Returns:
            Raw values (bands, height, width), 0 where invalid, interpolated ones rounded where *dtype*
            is of whole numbers; and bool (height, width).

        Raises:
            ValueError: If a file cannot be read, unless such windows are to be skipped.
        """
        try:
            image, valid = self._read(scene, target)
        except ValueError as error:
            if not self.skip:
                raise
            self._count(error)
            image, valid = _nothing(scene, target.height, target.width)
        whole = image.dtype.kind == 'f' and np.dtype(dtype).kind in 'iu'
        image = np.rint(image) if whole else image
        return image.astype(dtype, copy=False), valid

    def overview(
        self, scene: Scene, side: int, most: int | None = None
    ) -> tuple[Array, Bools]:
        """Read all of a scene on its own grid, decimated: from its overviews where it has some.

        Args:
            scene: The scene.
            side: Longest side of what is wanted, in pixels.
            most: Most values of a file that may be decoded because it has no overviews.

        Returns:
            Raw values (bands, rows, cols), and where they are valid.

        Raises:
            ValueError: If a file cannot be read, or is larger than *most* and has no overviews.
        """
        native = scene.native
        factor = max(1.0, max(native.width, native.height) / side)
        shape = max(1, int(native.height / factor)), max(1, int(native.width / factor))
        parts, tests = [], []
        for raster in scene.rasters:
            # Bands of a scene show the same ground, whatever their resolution
            high, wide = raster.grid.height, raster.grid.width
            if most is not None and high * wide * len(raster.indexes) > most:
                _check_overviews(raster)
            data, valid = self._read_file(raster, ((0, high), (0, wide)), shape)
            parts.append(data)
            tests.append(valid)
        image = np.concatenate(parts)
        known = all_of([*tests, *((image != value).any(0) for value in scene.fills)])
        return image, np.ones(shape, bool) if known is None else known

    def close(self) -> None:
        """Close the files of this process, so that workers forked from it inherit none."""
        _close_all(self._handles.get(os.getpid(), {}), os.getpid())

    def _count(self, error: ValueError) -> None:
        """Count a window that is skipped, and tell it now and then."""
        self.skipped += 1
        if self.skipped & (self.skipped - 1) == 0:
            warnings.warn(
                f'{self.skipped} windows skipped so far: {error}', stacklevel=2
            )

    def _read(self, scene: Scene, target: Grid) -> tuple[Array, Bools]:
        """Read straight where pixels coincide, else interpolate."""
        offset = None if scene.needs_warp else whole_offset(scene.grid, target)
        if offset is None:
            return self._resample(scene, target)
        return self._read_own(scene, *offset, target.width, target.height)

    def validity(self, scene: Scene, cells: int) -> Bools | None:
        """Map roughly where a scene is valid.

        Args:
            scene: The scene.
            cells: At most so many cells on a side.

        Returns:
            Bool (rows, cols), each cell a single pixel's word for all of it; None if no pixel of
            the scene can be invalid.
        """
        if not scene.may_be_invalid:
            return None
        # Statistics, training and validation ask the same, and each look decodes the whole file
        if (scene, cells) not in self._maps:
            found = self._map(scene, cells)
            self._maps[scene, cells] = None if found is None else Bits(found)
        kept = self._maps[scene, cells]
        return None if kept is None else kept.unpack()

    def _map(self, scene: Scene, cells: int) -> Bools | None:
        """Read decimated and, for another grid, look up the nearest pixel."""
        native, coarse = scene.native, scene.native.coarse(cells)
        shape = coarse.height, coarse.width
        _, valid = self._read_native(scene, 0, 0, native.width, native.height, shape)
        if not scene.needs_warp:
            return valid
        cols, rows = positions_on(coarse, scene.grid.coarse(cells))
        inside = is_inside(coarse, cols, rows)
        return inside if valid is None else inside & valid[nearest(shape, cols, rows)]

    def _read_own(
        self, scene: Scene, col: int, row: int, width: int, height: int
    ) -> tuple[Array, Bools]:
        """Read whole pixels of a scene's own grid; what overhangs the scene is invalid."""
        left, upper = max(col, 0), max(row, 0)
        right = min(col + width, scene.native.width)
        lower = min(row + height, scene.native.height)
        if right <= left or lower <= upper:
            return _nothing(scene, height, width)
        window = left, upper, right - left, lower - upper
        image, valid = _zeroed(*self._read_native(scene, *window))
        if valid.shape == (height, width):
            return image, valid
        beyond = (upper - row, row + height - lower), (left - col, col + width - right)
        return np.pad(image, ((0, 0), *beyond)), np.pad(valid, beyond)

    def _resample(self, scene: Scene, target: Grid) -> tuple[Image, Bools]:
        """Interpolate a scene at a target's pixels; coarser targets average first."""
        cols, rows = positions_on(scene.native, target)
        inside = is_inside(scene.native, cols, rows)
        if not inside.any():
            return _nothing(scene, target.height, target.width)
        image, whole = self._interpolate(scene, cols, rows, inside)
        return _filled(image, whole & inside)

    def _interpolate(
        self, scene: Scene, cols: Floats, rows: Floats, inside: Bools
    ) -> tuple[Array, Bools]:
        """Interpolate at positions on a scene's own grid, of which those inside count."""
        factor = max(1, int(_spacing(cols, rows) + 0.01))
        wanted = cols[inside], rows[inside]
        col, row, width, height = around(scene.native, *wanted, factor)
        factor = min(factor, width, height)
        image, valid = _filled(*self._read_native(scene, col, row, width, height))
        if factor > 1:
            image, valid = shrink(image, valid, factor)
        cols, rows = (cols - col) / factor, (rows - row) / factor
        image, weight = bilinear(image, valid, cols, rows)
        return image, weight > _WHOLE

    def _read_native(
        self,
        scene: Scene,
        col: int,
        row: int,
        width: int,
        height: int,
        shape: tuple[int, int] | None = None,
    ) -> tuple[Array, Bools | None]:
        """Read a window inside the scene's own grid, decimated to *shape* if given."""
        parts, tests = [], []
        for raster in scene.rasters:
            if raster.grid == scene.native:
                window = ((row, row + height), (col, col + width))
                data, valid = self._read_file(raster, window, shape)
            else:
                target = scene.native.window(col, row, width, height)
                target = target if shape is None else target.divided(*shape)
                data, valid = self._refine(scene, raster, target)
            parts.append(data)
            tests.append(valid)
        data = parts[0] if len(parts) == 1 else np.concatenate(parts)
        # Most windows hold no 0 at all, which is several times quicker to see
        fills = [value for value in scene.fills if value or _has_zero(data)]
        return data, all_of([*tests, *((data != value).any(0) for value in fills)])

    def _refine(
        self, scene: Scene, raster: Raster, target: Grid
    ) -> tuple[Image, Bools]:
        """Bring a band whose file is coarser than the scene's finest to the finest grid."""
        cols, rows = positions_on(raster.grid, target)
        col, row, width, height = around(raster.grid, cols, rows)
        window = ((row, row + height), (col, col + width))
        data, valid = _filled(*self._read_file(raster, window, None))
        cols, rows = cols - col, rows - row
        _, weight = bilinear(data[:0], valid, cols, rows)
        # What may be no data must not darken its neighbours; alone it stays what it is
        usable = functools.reduce(
            np.logical_and, [(data != value).any(0) for value in scene.fills], valid
        )
        image, seen = bilinear(data, usable, cols, rows)
        at = nearest(valid.shape, cols, rows)
        return np.where(seen > 0, image, data[:, *at]), weight > _WHOLE

    def _read_file(
        self, raster: Raster, window: Window, shape: tuple[int, int] | None
    ) -> tuple[Array, Bools | None]:
        """Read from the file's open handle, again if that fails, and name the file in the end."""
        # What was given up once is not waited for again
        waits = () if raster.path in self._lost else WAITS
        for wait in (*waits, None):
            try:
                handle = self._open(raster.path)
                try:
                    return read_raster(handle, raster, window, shape)
                finally:
                    if not self.limit:
                        handle.close()
            except FAILURES as error:
                why = str(error.__cause__ or error)
                # Whatever is wrong, a handle opened anew may be well; and too many may be open
                self.close()
                if wait is None:
                    self._lost.add(raster.path)
                    raise ValueError(_unreadable(raster.path, window, why)) from error
                time.sleep(wait)
        raise AssertionError

    def _open(self, path: str) -> DatasetReader:
        """Return this process's handle of a file."""
        if not self.limit:
            return open_raster(path)
        # A forked child leaves its parent's handles alone: even closing one can disturb the parent
        pid = os.getpid()
        handles = self._handles.get(pid)
        if handles is None:
            handles = self._handles[pid] = {}
            # GDAL complains of files that are still open when Python is half gone
            weakref.finalize(self, _close_all, handles, pid)
        # The most recently used comes last
        handles[path] = handle = handles.pop(path, None) or open_raster(path)
        if len(handles) > self.limit:
            handles.pop(next(iter(handles))).close()
        return handle


def _unreadable(path: str, window: Window, why: str) -> str:
    """Say what is wrong with a file, and what to do."""
    cure = 'the file is damaged or went away; replace it, or leave it out of paths'
    if os.strerror(errno.EMFILE).lower() in why.lower():
        cure = 'this process may open no more files: raise the limit (ulimit -n), or lower num_workers'
    return f'cannot read {window} of {path!r} ({why}): {cure}'


def _check_overviews(raster: Raster) -> None:
    """Refuse a file that has to be decoded whole to see little of it."""
    try:
        with open_raster(raster.path) as handle:
            has_some = bool(handle.overviews(raster.indexes[0]))
    except FAILURES as error:
        window = ((0, raster.grid.height), (0, raster.grid.width))
        why = str(error.__cause__ or error)
        raise ValueError(_unreadable(raster.path, window, why)) from error
    if not has_some:
        raise ValueError(
            f'{raster.path!r} is large and has no overviews: add some by gdaladdo, or write it with '
            'gdal_translate -of COG'
        )


def _close_all(handles: dict[str, DatasetReader], pid: int) -> None:
    """Close the files of a reader that is gone, in the process that opened them."""
    if os.getpid() == pid:
        while handles:
            handles.popitem()[1].close()


def _has_zero(data: Array) -> bool:
    """Tell whether any value is 0, fast for the unsigned pixels of most sensors."""
    return not bool(np.min(data) if data.dtype.kind == 'u' else np.all(data))


def _nothing(scene: Scene, height: int, width: int) -> tuple[Image, Bools]:
    """Return an image without a valid pixel."""
    image = np.zeros((len(scene.bands), height, width), np.float32)
    return image, np.zeros((height, width), bool)


def is_inside(grid: Grid, cols: Floats, rows: Floats) -> Bools:
    """Tell which positions lie on a grid.

    Args:
        grid: The grid.
        cols: In pixels.
        rows: In pixels.

    Returns:
        Bool of their shape.
    """
    across = (cols >= 0) & (cols <= grid.width)
    return across & (rows >= 0) & (rows <= grid.height)


def around(
    grid: Grid, cols: Floats, rows: Floats, factor: int = 1
) -> tuple[int, int, int, int]:
    """Find the window of pixels that interpolation at some positions needs.

    Args:
        grid: The grid on which they lie.
        cols: In pixels.
        rows: In pixels.
        factor: Side of the blocks that are averaged first. They begin where they begin for all
            windows, so that neighbours see the same means.

    Returns:
        First column, first row, width and height.
    """
    col, width = _span(cols, factor, grid.width)
    row, height = _span(rows, factor, grid.height)
    return col, row, width, height


def _span(positions: Floats, factor: int, size: int) -> tuple[int, int]:
    """Return the first pixel and the number of pixels of :func:`around` along an axis."""
    first = min(max(math.floor(positions.min()) - factor - 1, 0), size - 1)
    first -= first % factor
    last = min(math.ceil(positions.max()) + factor + 1, size)
    return first, max(last - first, 1)


def nearest(
    shape: tuple[int, ...], cols: Floats, rows: Floats
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Find the pixels in which positions lie.

    Args:
        shape: Rows and columns of the pixels.
        cols: In pixels.
        rows: In pixels.

    Returns:
        Indices of rows and of columns; of positions beyond the pixels those of their edges.
    """
    row, col = rows.clip(0, shape[0] - 1), cols.clip(0, shape[1] - 1)
    return row.astype(np.int64), col.astype(np.int64)


def _filled(data: Array, valid: Bools | None) -> tuple[Image, Bools]:
    """Copy to float32, 0 where not valid."""
    return _zeroed(data.astype(np.float32), valid)


def _zeroed(image: Array, valid: Bools | None) -> tuple[Array, Bools]:
    """Set what is not valid to 0, in place."""
    if valid is None:
        return image, np.ones(image.shape[1:], bool)
    image[:, ~valid] = 0
    return image, valid


def _spacing(cols: Floats, rows: Floats) -> float:
    """Return the distance between neighbours in the middle, along the wider axis, in pixels."""
    row, col = cols.shape[0] // 2, cols.shape[1] // 2
    across = np.hypot(np.diff(cols[row]), np.diff(rows[row]))
    down = np.hypot(np.diff(cols[:, col]), np.diff(rows[:, col]))
    return max((float(np.median(d)) for d in (across, down) if len(d)), default=1.0)
