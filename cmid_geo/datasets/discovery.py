# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""From files to scenes: which files are one scene, and whether all scenes fit together."""

import functools
import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from affine import Affine

from .filenames import group_bands, parse_dates
from .grids import Grid, fit_grid, same_crs, whole_offset
from .rasters import Raster, UnreadableError, describe_raster


@dataclass(frozen=True)
class Scene:
    """One acquisition: a file, or several that hold a band each, laid on the dataset's grid.

    Attributes:
        rasters: The files, in the order of the channels.
        native: The grid of the (finest) file.
        grid: The scene's grid in the CRS and resolution of the dataset: *native* itself unless
            *needs_warp*.
        start: First instant of the date; the beginning of all time if there is no date.
        stop: Last instant of the date, likewise.
        needs_warp: Whether CRS, resolution or orientation differ from the dataset's.
        zero_is_nodata: Whether a pixel with 0 in all bands is invalid.
    """

    rasters: tuple[Raster, ...]
    native: Grid
    grid: Grid
    start: pd.Timestamp
    stop: pd.Timestamp
    needs_warp: bool
    zero_is_nodata: bool

    @property
    def files(self) -> tuple[str, ...]:
        """Paths of the files."""
        return tuple(raster.path for raster in self.rasters)

    @property
    def bands(self) -> tuple[str, ...]:
        """Names of the channels."""
        return tuple(band for raster in self.rasters for band in raster.bands)

    @property
    def positions(self) -> tuple[int, ...]:
        """Of the channels in a file that does not name them, from 1; none where it does.

        Names that two channels share, or that only count ('Band 1'), tell nothing.
        """
        named = all(raster.named for raster in self.rasters)
        counts = [
            re.fullmatch(r'(?i)(band|layer|channel)?\W*_?\d+', b) for b in self.bands
        ]
        if named and len(set(self.bands)) == len(self.bands) and not any(counts):
            return ()
        return tuple(index for raster in self.rasters for index in raster.indexes)

    @property
    def interval(self) -> pd.Interval:
        """The date as an interval, closed on both sides."""
        return pd.Interval(self.start, self.stop, closed='both')

    @property
    def is_dated(self) -> bool:
        """Whether the file name states a date."""
        return self.start != pd.Timestamp.min

    @property
    def transform(self) -> Affine:
        """From (col, row) to (x, y) in the dataset's CRS."""
        return self.grid.transform

    @property
    def width(self) -> int:
        """In pixels of the dataset's resolution."""
        return self.grid.width

    @property
    def height(self) -> int:
        """In pixels of the dataset's resolution."""
        return self.grid.height

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """(xmin, ymin, xmax, ymax) in units of the dataset's CRS."""
        return self.grid.bounds

    @property
    def dtype(self) -> str:
        """Name of the type that holds the pixels of all files."""
        names = [raster.dtype for raster in self.rasters]
        return str(functools.reduce(np.promote_types, names))

    @property
    def may_be_invalid(self) -> bool:
        """Whether a pixel inside the scene can be invalid."""
        oblique = self.needs_warp  # corners of the grid may lie outside the file
        declared = any(raster.may_be_invalid for raster in self.rasters)
        return oblique or declared or self.zero_is_nodata


def find_scenes(
    files: Iterable[str],
    bands: Sequence[str | int] | None,
    band_regex: str,
    date_regex: str,
    *,
    zero_is_nodata: bool,
    skip_unreadable: bool,
) -> list[Scene]:
    """Describe the scenes that files make up, each on its own grid.

    Args:
        files: Paths, sorted.
        bands: Names, or 1-based positions, of the bands wanted; None for all.
        band_regex: See :func:`~cmid_geo.datasets.filenames.group_bands`.
        date_regex: See :func:`~cmid_geo.datasets.filenames.parse_dates`.
        zero_is_nodata: Whether a pixel with 0 in all bands is invalid even if no file says so.
        skip_unreadable: Whether to go on, with a warning, without the files that cannot be read.

    Returns:
        Scenes with the same number of bands. Empty if there is no file, or none is readable.

    Raises:
        ValueError: If a file cannot be read or a scene lacks a CRS, a band, or has others.
    """
    found: list[tuple[Raster, ...]] = []
    for group in group_bands(files, band_regex):
        rasters = _describe_group(group, skip_unreadable)
        if rasters:
            found += _one_or_several(rasters)
    if not found:
        return []
    wanted = _wanted_bands(found[0], bands)
    scenes = []
    for rasters in found:
        if bands is None:
            _check_same_count(found[0], rasters)
        chosen = _select(rasters, wanted)
        native = min((raster.grid for raster in chosen), key=_pixel_area)
        start, stop = parse_dates(chosen[0].path, date_regex)
        zero = zero_is_nodata or any(raster.zero_is_nodata for raster in chosen)
        scenes.append(Scene(chosen, native, native, start, stop, False, zero))
    return scenes


def place(scene: Scene, crs: str, res: tuple[float, float], origin: Affine) -> Scene:
    """Lay a scene on the grid of a dataset.

    Args:
        scene: The scene.
        crs: The dataset's CRS, WKT.
        res: The dataset's resolution (x, y) in units of *crs*.
        origin: A transform whose first corner is a corner of the dataset's pixels.

    Returns:
        The scene with its own grid if that has this CRS and resolution, else one that *needs_warp*.
    """
    native = scene.native
    t = native.transform
    if native.is_north_up and same_crs(native.crs, crs):
        wished = Affine(res[0], 0.0, t.c, 0.0, -res[1], t.f)
        target = Grid(crs, wished, native.width, native.height)
        if whole_offset(native, target) == (0, 0):
            own = Grid(crs, t, native.width, native.height)
            return replace(scene, grid=own, needs_warp=False)
    return replace(scene, grid=fit_grid(native, crs, res, origin), needs_warp=True)


def _describe_group(group: dict[str, str], skip_unreadable: bool) -> dict[str, Raster]:
    """Describe the files of a candidate scene; none of them if one cannot be read."""
    rasters = {}
    for band, path in group.items():
        try:
            rasters[band] = describe_raster(path, thorough=skip_unreadable)
        except UnreadableError as error:
            if not skip_unreadable:
                raise
            others = len(group) - 1
            also = (
                f', and with it the {others} other bands of its scene' if others else ''
            )
            warnings.warn(f'skipped {path!r}{also}: {error}', stacklevel=2)
            return {}
    return rasters


def _one_or_several(rasters: dict[str, Raster]) -> list[tuple[Raster, ...]]:
    """Tell bands of one scene from files that are merely named alike, such as map sheets."""
    first = next(iter(rasters.values()))
    if len(rasters) == 1:
        return [(first,)]
    if all(len(r.bands) == 1 and _same_ground(first, r) for r in rasters.values()):
        return [tuple(replace(r, bands=(b,), named=True) for b, r in rasters.items())]
    return [(raster,) for raster in rasters.values()]


def _same_ground(first: Raster, second: Raster) -> bool:
    """Tell whether two files show the same ground, to a pixel of the coarser one."""
    if not same_crs(first.grid.crs, second.grid.crs):
        return False
    pixel = max(_pixel_area(first.grid), _pixel_area(second.grid)) ** 0.5
    return bool(
        np.allclose(first.grid.bounds, second.grid.bounds, rtol=0, atol=2 * pixel)
    )


def _pixel_area(grid: Grid) -> float:
    """Return the area of a pixel in squared units of the CRS."""
    t = grid.transform
    return abs(t.a * t.e - t.b * t.d)


def _names(rasters: tuple[Raster, ...]) -> list[str]:
    """Return the names of all bands of a scene."""
    return [band for raster in rasters for band in raster.bands]


def _wanted_bands(
    rasters: tuple[Raster, ...], bands: Sequence[str | int] | None
) -> list[str | int]:
    """Resolve the default: all bands, by name where the files name them."""
    names = _names(rasters)
    if bands is None:
        named = all(raster.named for raster in rasters) and len(set(names)) == len(
            names
        )
        return list(names) if named else list(range(1, len(names) + 1))
    if not bands:
        raise ValueError(
            'bands=[] selects nothing: name a band, or give bands=None for all'
        )
    return list(bands)


def _check_same_count(first: tuple[Raster, ...], other: tuple[Raster, ...]) -> None:
    """Refuse scenes with different numbers of bands."""
    counts = len(_names(first)), len(_names(other))
    if counts[0] != counts[1]:
        raise ValueError(
            f'{first[0].path!r} has {counts[0]} bands but {other[0].path!r} has {counts[1]}: all '
            'scenes must have the same; choose bands that all have by '
            f'bands={list(range(1, min(counts) + 1))}, or leave files out by a glob in paths'
        )


def _select(rasters: tuple[Raster, ...], wanted: list[str | int]) -> tuple[Raster, ...]:
    """Return the rasters that read the wanted bands in their order."""
    names = _names(rasters)
    owners = [(r, i) for r in rasters for i in range(len(r.bands))]
    chosen: list[tuple[Raster, list[int]]] = []
    for band in wanted:
        if isinstance(band, int) and 1 <= band <= len(names):
            raster, place = owners[band - 1]
        elif band in names:
            raster, place = owners[names.index(str(band))]
        else:
            raise ValueError(
                f'{rasters[0].path!r} has no band {band!r}: bands must be names or positions (from '
                f'1) of {names}; an alpha band is not counted; or bands=[positions] if files name '
                'their bands differently'
            )
        if chosen and chosen[-1][0] is raster:
            chosen[-1][1].append(place)
        else:
            chosen.append((raster, [place]))
    return tuple(raster.select(places) for raster, places in chosen)
