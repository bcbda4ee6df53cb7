# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Raster files: what one holds, whether it can be read, and which of its pixels are valid."""

import functools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
from pyproj import CRS
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import RasterioError
from rasterio.io import DatasetReader
from rasterio.windows import Window

from .filenames import is_remote
from .grids import Bools, Grid

Array = npt.NDArray[Any]


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
    alpha: int = 0
    has_mask: bool = False

    @property
    def dtype(self) -> str:
        """Name of the type that holds the pixels of all bands."""
        return str(functools.reduce(np.promote_types, self.dtypes))

    @property
    def zero_is_nodata(self) -> bool:
        """Whether the file declares 0 as its nodata value."""
        return 0 in self.nodata

    @property
    def may_be_invalid(self) -> bool:
        """Whether a pixel can be invalid, whatever the value of zeros."""
        declared = any(value is not None for value in self.nodata)
        return declared or bool(self.alpha) or self.has_mask or self.dtype[0] == 'f'

    def select(self, places: Sequence[int]) -> 'Raster':
        """Return the raster with some of its bands.

        Args:
            places: 0-based places among the bands, in the order wanted.

        Returns:
            A raster that reads these bands.
        """
        return replace(
            self,
            bands=tuple(self.bands[i] for i in places),
            indexes=tuple(self.indexes[i] for i in places),
            dtypes=tuple(self.dtypes[i] for i in places),
            nodata=tuple(self.nodata[i] for i in places),
        )


def describe_raster(path: str, thorough: bool = False) -> Raster:
    """Open a file and check that it can be used.

    The first and the last block are read, since a truncated file opens without complaint.

    Args:
        path: Path or URL.
        thorough: Whether to read every block, which finds damage in the middle too.

    Returns:
        The raster, with all its image bands.

    Raises:
        ValueError: If the file cannot be read, has no CRS, no image band, or complex values.
    """
    try:
        # TorchGeo reads CRS as WKT2, too; an environment also keeps GDAL's remarks off the terminal
        options = {'OSR_WKT_FORMAT': 'WKT2_2018', **for_opening(path)}
        with rasterio.Env(**options), rasterio.open(path) as handle:
            _read_ends(handle)
            for _, window in handle.block_windows(1) if thorough else ():
                handle.read(window=window)
            return _describe(path, handle)
    except (RasterioError, OSError) as error:
        raise UnreadableError(
            f'cannot read {path!r} ({error.__cause__ or error}): every scene must be a whole raster file; replace or '
            'remove it, or go on without it by SceneDataset(skip_unreadable=True)'
        ) from error


def for_opening(path: str) -> dict[str, str]:
    """GDAL's options for opening a file.

    Args:
        path: Path or URL.

    Returns:
        Of a URL: not to list its folder, which takes long. Beside a local file lie its masks.
    """
    return {'GDAL_DISABLE_READDIR_ON_OPEN': 'EMPTY_DIR'} if is_remote(path) else {}


class UnreadableError(ValueError):
    """Raised for a file that is truncated, corrupt or no raster."""


def _describe(path: str, handle: DatasetReader) -> Raster:
    """Collect what is needed to read an open file."""
    if handle.crs is None:
        raise ValueError(
            f'{path!r} has no coordinate reference system: scenes are placed by theirs (crs= is '
            'what they are warped to, not what they are in); if you know it, write it into the '
            f'file with: rio edit-info --crs EPSG:<code> {path!r}'
        )
    alpha = _find_alpha(path, handle)
    indexes = tuple(i for i in handle.indexes if i != alpha)
    if not indexes:
        raise ValueError(
            f'{path!r} has an alpha band only: a scene needs an image band; remove the file'
        )
    dtypes = tuple(handle.dtypes[i - 1] for i in indexes)
    if any('complex' in name for name in dtypes):
        raise ValueError(
            f'{path!r} holds complex values ({dtypes[0]}): bands must be real; write amplitude or '
            'intensity to another file'
        )
    flags = handle.mask_flag_enums[indexes[0] - 1]
    crs = CRS.from_user_input(handle.crs).to_wkt()
    return Raster(
        path=path,
        grid=Grid(crs, handle.transform, handle.width, handle.height),
        dtypes=dtypes,
        bands=tuple(handle.descriptions[i - 1] or f'B{i}' for i in indexes),
        named=all(handle.descriptions[i - 1] for i in indexes),
        indexes=indexes,
        nodata=tuple(
            _as_dtype(handle.nodatavals[i - 1], handle.dtypes[i - 1]) for i in indexes
        ),
        alpha=alpha,
        has_mask=MaskFlags.per_dataset in flags and not alpha,
    )


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


def _as_dtype(nodata: float | None, dtype: str) -> float | int | None:
    """Bring a nodata value to the pixel type, so that comparing needs no cast of the pixels."""
    if nodata is None or np.isnan(nodata):
        return None
    if np.issubdtype(dtype, np.floating):
        with np.errstate(over='ignore'):
            return float(np.dtype(dtype).type(nodata))
    limits = np.iinfo(dtype)
    whole = nodata == int(nodata) if np.isfinite(nodata) else False
    return int(nodata) if whole and limits.min <= nodata <= limits.max else None


def _read_ends(handle: DatasetReader) -> None:
    """Read the first block of the first band and the last block of the last band."""
    rows, cols = handle.block_shapes[0]
    first = make_window(0, 0, min(cols, handle.width), min(rows, handle.height))
    handle.read(1, window=first)
    rows, cols = handle.block_shapes[-1]
    row, col = (handle.height - 1) // rows * rows, (handle.width - 1) // cols * cols
    last = make_window(col, row, handle.width - col, handle.height - row)
    handle.read(handle.count, window=last)


def make_window(col: int, row: int, width: int, height: int) -> Window:
    """Make a window of whole pixels.

    Args:
        col: First column.
        row: First row.
        width: In pixels.
        height: In pixels.

    Returns:
        rasterio's window, whose generated signature type checkers do not see.
    """
    return Window(col, row, width, height)  # ty: ignore[too-many-positional-arguments]


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
    out = None if shape is None else (len(raster.indexes), *shape)
    if len(set(raster.dtypes)) > 1:  # rasterio reads one type at a time
        bands = [handle.read(i, window=window, out_shape=shape) for i in raster.indexes]
        data = np.stack([band.astype(raster.dtype) for band in bands])
    else:
        data = handle.read(list(raster.indexes), window=window, out_shape=out)
    tests = []
    if raster.alpha:
        tests.append(handle.read(raster.alpha, window=window, out_shape=shape) > 0)
    elif raster.has_mask:
        mask = handle.read_masks(raster.indexes[0], window=window, out_shape=shape)
        tests.append(mask > 0)
    if data.dtype.kind == 'f':
        tests.append(np.isfinite(data).all(0))
    for band, value in zip(data, raster.nodata, strict=True):
        if value:
            tests.append(band != value)
    return data, functools.reduce(np.logical_and, tests) if tests else None
