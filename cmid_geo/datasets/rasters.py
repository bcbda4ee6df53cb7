# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Raster files: description, safe opening, and validity of pixels."""

import functools
import math
import os
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
from affine import Affine
from pyproj import CRS
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.env import ensure_env_with_credentials
from rasterio.errors import NotGeoreferencedWarning, RasterioError, RasterioIOError
from rasterio.io import DatasetReader

from .filenames import is_remote, without_query
from .gdal import DESCRIBING, OPENING_REMOTE
from .grids import Bools, Grid

Array = npt.NDArray[Any]

#: A window of a file: (first, end) of its rows and of its columns.
Window = tuple[tuple[int, int], tuple[int, int]]

#: GDAL's drivers of files that hold their own pixels: whatever a file is called, no other is tried.
DRIVERS = (
    *('GTiff', 'COG', 'JP2OpenJPEG', 'JP2KAK', 'JP2ECW', 'JP2MrSID', 'HFA', 'ENVI'),
    *('PNG', 'JPEG', 'BMP', 'WEBP'),
)

#: Endings of files of other kinds, which are opened where a path names one, and never found in a
#: folder: a VRT reads any file and any URL it likes.
NAMED = {'.vrt': 'VRT', '.nc': 'netCDF', '.h5': 'HDF5', '.he5': 'HDF5', '.hdf5': 'HDF5'}  # fmt: skip

#: What rasterio raises for damaged files; where GDAL's words on it hold what is no text, the last.
FAILURES = (RasterioError, OSError, UnicodeDecodeError)

#: Most bytes of a block, decoded: GDAL decodes blocks whole, some at a time.
MOST_BLOCK = 2**29


@dataclass(frozen=True)
class Raster:
    """One file, and the bands to read from it.

    Attributes:
        path: Path or URL.
        grid: The file's own pixel grid.
        dtypes: Name of the pixel type of each band.
        bands: Names of the image bands: their descriptions, else B1, B2, ...
        named: Whether the names are descriptions from the file.
        indexes: 1-based positions of the bands in the file.
        nodata: Declared nodata value of each band in the pixel type; None where there is none,
            where no pixel can have it, or where it is NaN (never valid anyway).
        declares_nodata: Whether the file declares a nodata value of any kind.
        alpha: 1-based position of the alpha band, which is no image band; 0 if there is none.
        has_mask: Whether the file has a mask of its own (internal or ``.msk``).
    """

    path: str
    grid: Grid
    dtypes: tuple[str, ...]
    bands: tuple[str, ...]
    named: bool
    indexes: tuple[int, ...]
    nodata: tuple[float | int | None, ...]
    declares_nodata: bool = False
    alpha: int = 0
    has_mask: bool = False

    @property
    def dtype(self) -> str:
        """Name of the type that holds the pixels of all bands."""
        return np.result_type(*self.dtypes).name

    @property
    def zero_is_nodata(self) -> bool:
        """Whether the file declares 0 as its nodata value."""
        return 0 in self.nodata

    @property
    def may_be_invalid(self) -> bool:
        """Whether a pixel can be invalid, whatever the value of zeros."""
        declared = any(value is not None for value in self.nodata)
        return declared or self.alpha > 0 or self.has_mask or self.dtype[0] == 'f'

    def select(self, places: Sequence[int]) -> 'Raster':
        """Return the raster with some of its bands.

        Args:
            places: 0-based places among the bands, in the order wanted.

        Returns:
            A raster that reads these bands.
        """
        chosen = {
            name: tuple(getattr(self, name)[i] for i in places)
            for name in ('bands', 'indexes', 'dtypes', 'nodata')
        }
        return replace(self, **chosen)


def open_raster(path: str) -> DatasetReader:
    """Open a file without that another file, or a URL, can be reached through it.

    Only the drivers of :data:`DRIVERS` are tried, and one of :data:`NAMED` where the path ends so.
    GDAL opens overviews and masks beside a file, or named in it, with any driver: those
    that are no TIFF are refused, and so is a file that names its overviews.

    Args:
        path: Path or URL.

    Returns:
        The open file, to be closed.

    Raises:
        RasterioIOError: If it cannot be opened, or would reach for others.
    """
    ending = os.path.splitext(without_query(path))[1].lower()
    named = NAMED.get(ending)
    for beside in () if is_remote(path) else _beside(path):
        _open(beside, ('GTiff',)).close()
    with rasterio.Env(**(OPENING_REMOTE if is_remote(path) else {})):
        handle = _open_by(path, (*DRIVERS, named)) if named else _open(path, DRIVERS)
        if handle.count:
            # Looked for at the first read otherwise, outside this environment
            handle.overviews(1)
    return handle


def _open(path: str, drivers: Sequence[str]) -> DatasetReader:
    """Open a file that may not name its overviews; they are looked for only later."""
    handle = _open_by(path, drivers)
    other = handle.tags(ns='OVERVIEWS').get('OVERVIEW_FILE')
    if other is None:
        return handle
    handle.close()
    raise RasterioIOError(
        f'{path} says that its overviews are in {other!r}: a file may not send GDAL to others; take '
        'OVERVIEW_FILE out of its tags or its .aux.xml'
    )


@ensure_env_with_credentials
def _open_by(path: str, drivers: Sequence[str]) -> DatasetReader:
    """Open a file with some of GDAL's drivers, which rasterio.open itself takes one at a time."""
    if os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path)):
        # To open a pipe waits until somebody writes into it
        raise RasterioIOError(f'{path} is a pipe, socket or device: scenes are files')
    try:
        return DatasetReader(path, driver=list(drivers))
    except RasterioIOError as error:
        if 'not recognized' not in str(error):
            raise
        raise RasterioIOError(
            f'{path} is none of {", ".join(drivers)}: files must hold their own pixels, and a VRT be named as '
            'one; write others to GeoTIFF with gdal_translate'
        ) from None


def _beside(path: str) -> list[str]:
    """List the overviews and masks beside a file, and those of these, as GDAL finds them."""
    folder, name = os.path.split(path)
    try:
        changed = os.stat(folder or '.').st_mtime_ns
        return _overviews_and_masks(folder, changed).get(name.lower(), [])
    except OSError:
        return []


@functools.lru_cache(maxsize=64)
def _overviews_and_masks(folder: str, changed: int) -> dict[str, list[str]]:
    """Paths of a folder's overviews and masks by the name of their file, lower case."""
    found: dict[str, list[str]] = {}
    for name in sorted(os.listdir(folder or '.')):
        own = re.sub(r'(\.ovr|\.msk)+$', '', name.lower())
        if own != name.lower():
            found.setdefault(own, []).append(os.path.join(folder, name))
    return found


def describe_raster(
    path: str, thorough: bool = False, file_crs: CRS | None = None
) -> Raster:
    """Open a file and check that it can be used.

    The first and the last block are read, since a truncated file opens without complaint.

    Args:
        path: Path or URL.
        thorough: Whether to read every block, which finds damage in the middle too.
        file_crs: The coordinate reference system of a file that states none.

    Returns:
        The raster, with all its image bands.

    Raises:
        UnreadableError: If the file cannot be read, has no CRS, no place, no image band, blocks
            that are too large, or complex values.
    """
    try:
        # An environment also keeps GDAL's remarks off the terminal
        with warnings.catch_warnings(), rasterio.Env(**DESCRIBING):
            # It is refused below, in our words
            warnings.simplefilter('ignore', NotGeoreferencedWarning)
            with open_raster(path) as handle:
                _check_size(path, handle)
                _read_ends(handle)
                for _, window in handle.block_windows(1) if thorough else ():
                    handle.read(window=window)
                return _describe(path, handle, file_crs)
    except FAILURES as error:
        raise UnreadableError(
            path,
            f'cannot be read ({error.__cause__ or error}): every scene must be a whole raster file; '
            'replace or remove it',
        ) from error


class UnreadableError(ValueError):
    """Raised for a file that cannot be used: damaged, no raster, or without a place on Earth.

    Attributes:
        path: The file.
        why: What is wrong with it, and what to do.
    """

    def __init__(self, path: str, why: str) -> None:
        """Initialize a new UnreadableError instance.

        Args:
            path: The file.
            why: What is wrong with it, and what to do, without the path.
        """
        super().__init__(f'{path!r} {why}')
        self.path, self.why = path, why


def _check_size(path: str, handle: DatasetReader) -> None:
    """Refuse a file without bands, or of blocks that no memory holds, before one is read."""
    if not handle.count:
        inside = ', '.join(map(repr, handle.subdatasets)) or 'none'
        raise UnreadableError(
            path,
            f'holds no bands of its own but data sets ({inside}): a scene is one raster; write the wanted '
            'ones to files named alike but for the band, such as: rio convert NAME scene_B02.tif',
        )
    # Asked for by name: to list all that GDAL knows, it parses the whole of a JP2, damaged or not
    several = handle.count > 1
    interleave = several and handle.get_tag_item('INTERLEAVE', 'IMAGE_STRUCTURE')
    together = handle.count if interleave == 'PIXEL' else 1
    for (rows, cols), dtype in zip(handle.block_shapes, handle.dtypes, strict=True):
        size = rows * cols * np.dtype(dtype).itemsize * together
        if size > MOST_BLOCK:
            raise UnreadableError(
                path,
                f'declares blocks of {rows}x{cols} pixels, {size / 2**20:.0f} MiB each: a block is read whole '
                f'and may have {MOST_BLOCK // 2**20} MiB; if the file is sound, write it in small tiles with '
                'gdal_translate -of COG',
            )


def _describe(path: str, handle: DatasetReader, file_crs: CRS | None) -> Raster:
    """Collect what is needed to read an open file."""
    wkt = _place_of(path, handle, file_crs)
    alpha = _find_alpha(path, handle)
    indexes = tuple(i for i in handle.indexes if i != alpha)
    if not indexes:
        raise UnreadableError(
            path, 'has an alpha band only: a scene needs an image band; remove the file'
        )
    dtypes = tuple(handle.dtypes[i - 1] for i in indexes)
    if any('complex' in name for name in dtypes):
        raise UnreadableError(
            path,
            f'holds complex values ({dtypes[0]}): bands must be real; write amplitude or intensity to '
            'another file',
        )
    nodata = [handle.nodatavals[i - 1] for i in indexes]
    flags = handle.mask_flag_enums[indexes[0] - 1]
    return Raster(
        path=path,
        grid=Grid(wkt, handle.transform, handle.width, handle.height),
        dtypes=dtypes,
        bands=tuple(handle.descriptions[i - 1] or f'B{i}' for i in indexes),
        named=all(handle.descriptions[i - 1] for i in indexes),
        indexes=indexes,
        nodata=tuple(map(as_dtype, nodata, dtypes)),
        declares_nodata=any(value is not None for value in nodata),
        alpha=alpha,
        # A band that is no alpha after all is no mask either
        has_mask=MaskFlags.per_dataset in flags and MaskFlags.alpha not in flags,
    )


def _place_of(path: str, handle: DatasetReader, file_crs: CRS | None) -> str:
    """Say where a file lies: return the WKT of its CRS, or refuse it where it has no transform."""
    t = handle.transform
    points, points_crs = handle.gcps
    # What GDAL gives where a file has none
    nowhere, enough = t == Affine.identity(), len(points) >= 3
    if nowhere and (enough or handle.rpcs):
        known, how = 'RPCs', '-rpc -to RPC_DEM=<elevation model>'
        if enough:
            known = f'{len(points)} ground control points (GCPs)'
            how = '-tps' if points_crs else '-tps -s_srs EPSG:<code of the points>'
        raise UnreadableError(
            path,
            f'is placed by {known} alone: scenes need pixels on a grid of a CRS; bring them there with: '
            f'gdalwarp {how} -t_srs EPSG:<code> IN OUT.tif',
        )
    if nowhere:
        raise UnreadableError(
            path,
            'has no geotransform: nothing tells where its pixels lie; give it a place with: gdal_translate '
            '-a_srs EPSG:<code> -a_ullr <left> <top> <right> <bottom> IN OUT.tif',
        )
    known_crs = handle.crs or file_crs
    if known_crs is None:
        raise UnreadableError(
            path,
            'has no coordinate reference system: scenes are placed by theirs (crs= is what they are '
            'warped to); if you know it, declare it by file_crs=',
        )
    if not _is_finite(handle):
        raise UnreadableError(
            path,
            f'has the geotransform {tuple(t[:6])}: pixels need a finite place, and a size above 0; correct '
            f'it with: gdal_translate -a_ullr <left> <top> <right> <bottom> IN OUT.tif',
        )
    return _as_pyproj_writes(known_crs.to_wkt())


def _is_finite(handle: DatasetReader) -> bool:
    """Tell whether pixels have a finite place, and a size that numbers can hold."""
    t = handle.transform
    sizes = (t.determinant, math.hypot(t.a, t.d), math.hypot(t.b, t.e))
    # One over a size so small that it is lost beside any coordinate is not finite
    inverse = [1 / (size or math.nan) for size in sizes]
    return all(map(math.isfinite, (*t[:6], *handle.bounds, *sizes, *inverse)))


@functools.lru_cache(maxsize=256)
def _as_pyproj_writes(wkt: str) -> str:
    """Bring a CRS to the words in which all are compared; most scenes have one of a few."""
    return CRS.from_wkt(wkt).to_wkt()


def _find_alpha(path: str, handle: DatasetReader) -> int:
    """Return the position of the alpha band, 0 if there is none.

    GDAL declares the fourth of any four 8-bit bands as alpha unless told otherwise, near infrared
    included. A band whose values mostly lie between transparent and opaque is no alpha.
    """
    color = handle.colorinterp
    alpha = color.index(ColorInterp.alpha) + 1 if ColorInterp.alpha in color else 0
    if not alpha or not np.issubdtype(handle.dtypes[alpha - 1], np.integer):
        return alpha
    shape = (min(64, handle.height), min(64, handle.width))
    values = handle.read(alpha, out_shape=shape)
    most = np.iinfo(values.dtype).max
    if ((values > 0) & (values < most)).mean() <= 0.5:
        return alpha
    warnings.warn(
        f'band {alpha} of {path!r} is declared alpha but looks like an image band and is used as '
        f'one: correct it by gdal_edit -colorinterp_{alpha} undefined, or choose others by bands=',
        stacklevel=2,
    )
    return 0


def as_dtype(nodata: float | None, dtype: str) -> float | int | None:
    """Bring a nodata value to the pixel type, so that comparing needs no cast of the pixels.

    Args:
        nodata: The value.
        dtype: Name of the type.

    Returns:
        The value; None where there is none, it is NaN, or no pixel can have it.
    """
    if nodata is None or np.isnan(nodata):
        return None
    with np.errstate(over='ignore', invalid='ignore'):
        value = np.array(nodata).astype(dtype)
    return value.item() if value.dtype.kind == 'f' or value == nodata else None


def _read_ends(handle: DatasetReader) -> None:
    """Read the first block of the first band and the last block of the last band."""
    rows, cols = handle.block_shapes[-1]
    last = (handle.height - 1) // rows, (handle.width - 1) // cols
    # One and the same in small files, of which there are many
    for band, *block in dict.fromkeys([(1, 0, 0), (handle.count, *last)]):
        handle.read(band, window=handle.block_window(band, *block))


def read_raster(
    handle: DatasetReader,
    raster: Raster,
    window: Window,
    shape: tuple[int, int] | None = None,
) -> tuple[Array, Bools | None]:
    """Read a window and tell which pixels are valid.

    A pixel is invalid where the mask or the alpha band is 0, where *any* band is NaN, Inf or the
    declared nodata value. A nodata value of 0 is left to the caller, who sees all bands: dark water
    has a 0 in one band, no data has it in all.

    Args:
        handle: The open file.
        raster: Its description.
        window: Inside the file.
        shape: (rows, cols) to decimate to by nearest neighbour, from overviews if there are any.

    Returns:
        The pixels (bands, rows, cols) in the file's type, and bool (rows, cols), None for all valid.
    """
    where: dict[str, Any] = {'window': window, 'out_shape': shape}
    if len(set(raster.dtypes)) > 1:  # rasterio reads one type at a time
        bands = [handle.read(i, **where) for i in raster.indexes]
        data = np.stack([band.astype(raster.dtype) for band in bands])
    else:
        out = None if shape is None else (len(raster.indexes), *shape)
        data = handle.read(list(raster.indexes), window=window, out_shape=out)
    tests = [
        band != value for band, value in zip(data, raster.nodata, strict=True) if value
    ]
    if raster.alpha:
        tests.append(handle.read(raster.alpha, **where) > 0)
    elif raster.has_mask:
        tests.append(handle.read_masks(raster.indexes[0], **where) > 0)
    if data.dtype.kind == 'f':
        tests.append(np.isfinite(data).all(0))
    return data, all_of(tests)


def all_of(tests: Sequence[Bools | None]) -> Bools | None:
    """Combine tests that pixels must pass.

    Args:
        tests: Bool (rows, cols) each, or None where all pixels pass.

    Returns:
        Which pixels pass all; None if all do.
    """
    strict = [test for test in tests if test is not None]
    return functools.reduce(np.logical_and, strict) if strict else None
