# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Scenes: files of one acquisition, found, checked against each other and laid on one grid."""

import itertools
import operator
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from affine import Affine
from pyproj import CRS
from pyproj.exceptions import ProjError

from .dates import parse_dates
from .filenames import group_bands
from .grids import Grid, fit_grid, natural_res, same_crs, whole_offset
from .header_cache import kept_headers
from .headers import Headers
from .rasters import Raster, UnreadableError, as_dtype

#: Names of bands that only count.
_COUNTED = re.compile(r'(?i)(band|layer|channel)?\W*_?\d+')


@dataclass(frozen=True)
class Scene:
    """One acquisition: a file, or several that hold a band each, laid on the dataset's grid.

    Attributes:
        rasters: The files, in the order of the channels.
        native: The grid of the (finest) file.
        grid: The scene's grid in the CRS and resolution of the dataset: *native* itself unless
            *needs_warp*.
        start: First instant of the date; the beginning of all time if there is no date.
        stop: Last instant of the date; the end of all time if there is no date.
        needs_warp: Whether CRS, resolution or orientation differ from the dataset's.
        zero_is_nodata: Whether a pixel with 0 in all bands is invalid.
        fill: A pixel with this value in all bands is invalid; None for no value.
    """

    rasters: tuple[Raster, ...]
    native: Grid
    grid: Grid
    start: pd.Timestamp
    stop: pd.Timestamp
    needs_warp: bool
    zero_is_nodata: bool
    fill: float | int | None = None

    def _repr_html_(self) -> str:
        """Table and picture in a notebook."""
        from .tables import scene_table

        return scene_table(self)

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
        counted = any(map(_COUNTED.fullmatch, self.bands))
        if named and len(set(self.bands)) == len(self.bands) and not counted:
            return ()
        return tuple(index for raster in self.rasters for index in raster.indexes)

    @property
    def is_dated(self) -> bool:
        """Whether the file name states a date."""
        return self.start != pd.Timestamp.min

    @property
    def date(self) -> str:
        """The day, or the first and the last one; nothing if there is no date."""
        if not self.is_dated:
            return ''
        days = [f'{instant:%Y-%m-%d}' for instant in (self.start, self.stop)]
        return ' to '.join(dict.fromkeys(days))

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
        return np.result_type(*(raster.dtype for raster in self.rasters)).name

    @property
    def may_be_invalid(self) -> bool:
        """Whether a pixel inside the scene can be invalid."""
        declared = any(raster.may_be_invalid for raster in self.rasters)
        # Corners of a warped grid may lie outside the file
        return self.needs_warp or declared or bool(self.fills)

    @property
    def fills(self) -> tuple[float | int, ...]:
        """Values that mean no data where all bands have them."""
        zero = (0,) if self.zero_is_nodata else ()
        return zero if self.fill is None else (*zero, self.fill)


@dataclass(frozen=True)
class Declared:
    """What a user says of files that do not say it themselves.

    Attributes:
        zero_is_nodata: Whether a pixel with 0 in all bands is invalid.
        nodata: Value that, in all bands, means no data in files that declare none.
        crs: Coordinate reference system of files that state none.
    """

    zero_is_nodata: bool = False
    nodata: float | None = None
    crs: CRS | str | None = None

    def __post_init__(self) -> None:
        """Read the CRS."""
        if self.crs is None:
            return
        try:
            object.__setattr__(self, 'crs', CRS.from_user_input(self.crs))
        except ProjError as error:
            raise ValueError(
                f'file_crs={self.crs!r} is no coordinate reference system ({error}): give one such as '
                'EPSG:32633'
            ) from error


#: The files say everything.
NOTHING_DECLARED = Declared()


def find_scenes(
    files: Iterable[str],
    bands: Sequence[str | int] | None,
    band_regex: str,
    date_regex: str,
    declared: Declared = NOTHING_DECLARED,
) -> list[Scene]:
    """Describe the scenes that files make up, each on its own grid.

    Args:
        files: Paths, sorted.
        bands: Names, or 1-based positions, of the bands wanted; None for all.
        band_regex: Finds the band in the names of single-band files, in a group ``band``.
        date_regex: Finds the date in file names, in a group ``date``.
        declared: What the files do not say.

    Returns:
        Scenes with the same number of bands. Empty if there is no file.

    Raises:
        ValueError: If files cannot be used, with all their names: damaged ones, those without CRS
            or place, or without a band, and those with others.
    """
    scenes, bad = sift_scenes(files, bands, band_regex, date_regex, declared)
    tell_bad(bad)
    return scenes


def sift_scenes(
    files: Iterable[str],
    bands: Sequence[str | int] | None,
    band_regex: str,
    date_regex: str,
    declared: Declared = NOTHING_DECLARED,
    thorough: bool = False,
) -> tuple[list[Scene], dict[str, str]]:
    """Describe the scenes that files make up, and say which files cannot be used.

    Args:
        files: Paths, sorted.
        bands: Names, or 1-based positions, of the bands wanted; None for all.
        band_regex: Finds the band in the names of single-band files, in a group ``band``.
        date_regex: Finds the date in file names, in a group ``date``.
        declared: What the files do not say.
        thorough: Whether to read every file through.

    Returns:
        Scenes with the same number of bands, that which most have; and what is wrong with the
        other files.
    """
    found: list[tuple[Raster, ...]] = []
    bad: dict[str, str] = {}
    groups = group_bands(files, band_regex)
    crs = declared.crs.to_wkt() if isinstance(declared.crs, CRS) else None
    paths = [path for group in groups for path in group.values()]
    headers = kept_headers(paths, thorough, crs)
    for remark in (text for texts in headers.remarks.values() for text in texts):
        warnings.warn(remark, stacklevel=2)
    for group in groups:
        rasters = _usable_group(group, headers, bad)
        if rasters:
            found += _one_or_several(rasters)
    if not found:
        return [], bad
    counts = [len(_names(rasters)) for rasters in found]
    # Of several that are as frequent, the first
    usual = found[counts.index(Counter(counts).most_common(1)[0][0])]
    wanted = _wanted_bands(usual, bands)
    scenes = []
    for rasters in found:
        try:
            if bands is None:
                check_same_count(usual, rasters)
            scenes.append(compose_scene(rasters, wanted, date_regex, declared))
        except UnreadableError as error:
            bad[error.path] = error.why
    return scenes, bad


def compose_scene(
    rasters: tuple[Raster, ...],
    bands: Sequence[str | int] | None,
    date_regex: str,
    declared: Declared = NOTHING_DECLARED,
) -> Scene:
    """Compose a scene of some bands of its files.

    Args:
        rasters: The files.
        bands: Names, or 1-based positions, of the bands wanted; None for all.
        date_regex: Finds the date in file names, in a group ``date``.
        declared: What the files do not say.

    Returns:
        The scene, on its own grid.

    Raises:
        UnreadableError: If it has not all of these bands.
    """
    chosen = _select(rasters, _wanted_bands(rasters, bands))
    native = chosen[0].grid
    if len(chosen) > 1:
        native = min((raster.grid for raster in chosen), key=_pixel_area)
    start, stop = parse_dates(chosen[0].path, date_regex)
    zero = declared.zero_is_nodata or any(r.zero_is_nodata for r in chosen)
    scene = Scene(chosen, native, native, start, stop, False, zero)
    if declared.nodata is None or all(r.declares_nodata for r in chosen):
        return scene
    return replace(scene, fill=as_dtype(declared.nodata, scene.dtype))


def tell_bad(bad: Mapping[str, str], skip: bool | None = None) -> None:
    """Say which files cannot be used, all at once.

    Args:
        bad: Files, and what is wrong with them.
        skip: Whether to go on without them, with a warning; None where that is not offered.

    Raises:
        ValueError: If there are any, unless *skip*.
    """
    if not bad:
        return
    alike: dict[str, list[str]] = {}
    for path, why in bad.items():
        alike.setdefault(why, []).append(repr(path))
    told = [f'{", ".join(paths)} {why}' for why, paths in alike.items()]
    if len(bad) > 1:
        told = [f'{len(bad)} files cannot be used:', *told]
    text = '\n  '.join(told)
    if not skip:
        also = '; or go on without by skip_unreadable=True' if skip is False else ''
        raise ValueError(text + also)
    warnings.warn(f'skipped {text}', stacklevel=2)


def place(
    scene: Scene, crs: str, res: tuple[float, float] | None, origin: Affine
) -> Scene:
    """Bring a scene to the grid of a dataset.

    Args:
        scene: The scene.
        crs: The dataset's CRS, WKT.
        res: The dataset's resolution (x, y) in units of *crs*; None for the scene's own.
        origin: A transform whose first corner is a corner of the dataset's pixels.

    Returns:
        The scene with its own grid if that has this CRS and resolution, else one that *needs_warp*.

    Raises:
        UnreadableError: If its CRS cannot be brought to the dataset's, or it lies where that has no
            coordinates.
    """
    native = scene.native
    try:
        size = res or natural_res(native, crs)
        if native.is_north_up and same_crs(native.crs, crs):
            own = native if native.crs == crs else replace(native, crs=crs)
            t = native.transform
            wished = Affine(size[0], 0.0, t.c, 0.0, -size[1], t.f)
            # All but a few scenes end here: they need no copy, nor any sums
            alike = wished == t or whole_offset(
                native, replace(own, transform=wished)
            ) == (0, 0)
            if alike and scene.grid is own and not scene.needs_warp:
                return scene
            if alike:
                return replace(scene, grid=own, needs_warp=False)
        return replace(scene, grid=fit_grid(native, crs, size, origin), needs_warp=True)
    # Coordinates that the CRS does not know are infinite: no whole number of pixels fits
    except (ProjError, OverflowError, ValueError) as error:
        raise UnreadableError(
            scene.files[0],
            f'cannot be brought from {CRS.from_wkt(native.crs).name!r} to {CRS.from_wkt(crs).name!r} '
            f'({error}): scenes of one dataset need CRS between which there is a way, and to lie where these '
            'are valid; leave the file out, or correct its CRS or geotransform',
        ) from error


def lay_out(
    scenes: Sequence[Scene], crs: str | None, res: tuple[float, float] | None
) -> tuple[list[Scene], str, tuple[float, float], dict[str, str]]:
    """Bring scenes to one CRS and resolution, by default those of the first that can be brought there.

    Args:
        scenes: On their own grids.
        crs: WKT; by default the first scene's.
        res: Pixel size (x, y) in units of *crs*; by default the first scene's.

    Returns:
        The scenes that can be brought there, CRS and resolution, and what is wrong with the others.
        Without scenes CRS and resolution mean nothing.
    """
    laid: dict[int, Scene] = {}
    bad: dict[str, str] = {}
    origin = None
    # A plan's own coordinates are no place on Earth, to which others could be brought
    local = [scene.native.crs.startswith('ENGCRS') for scene in scenes]
    for number in np.argsort(local, kind='stable').tolist():
        native = scenes[number].native
        crs = crs or native.crs
        # Pixels of warped scenes coincide with those of the first
        first = origin or native.transform
        try:
            laid[number] = place(scenes[number], crs, res, first)
        except UnreadableError as error:
            bad[error.path] = error.why
        else:
            res, origin = res or laid[number].grid.res, first
    return [laid[number] for number in sorted(laid)], crs or '', res or (1.0, 1.0), bad


def _usable_group(
    group: dict[str, str], headers: Headers, bad: dict[str, str]
) -> dict[str, Raster]:
    """Return the files of a candidate scene; none of them if one cannot be used."""
    failed = {path: headers.bad[path] for path in group.values() if path in headers.bad}
    rasters = {
        b: headers.rasters[path] for b, path in group.items() if path not in failed
    }
    also = f' (and with it go {len(rasters)} other bands of its scene)'
    bad |= {path: why + (also if rasters else '') for path, why in failed.items()}
    return {} if failed else rasters


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
    one, other = first.grid, second.grid
    pixel = max(_pixel_area(one), _pixel_area(other)) ** 0.5
    try:
        alike = same_crs(one.crs, other.crs)
    except ProjError:  # There is no way between the two
        return False
    return alike and np.allclose(one.bounds, other.bounds, rtol=0, atol=2 * pixel)


def _pixel_area(grid: Grid) -> float:
    """Return the area of a pixel in squared units of the CRS."""
    return abs(grid.transform.determinant)


def _names(rasters: tuple[Raster, ...]) -> list[str]:
    """Return the names of all bands of a scene."""
    return [band for raster in rasters for band in raster.bands]


def _wanted_bands(
    rasters: tuple[Raster, ...], bands: Sequence[str | int] | None
) -> list[str | int]:
    """Resolve the default: all bands, by name where the files name them."""
    names = _names(rasters)
    if bands is None:
        named = all(raster.named for raster in rasters)
        distinct = len(set(names)) == len(names)
        return [*names] if named and distinct else [*range(1, len(names) + 1)]
    if not bands:
        raise ValueError(
            'bands=[] selects nothing: name a band, or give bands=None for all'
        )
    return list(bands)


def check_same_count(first: tuple[Raster, ...], other: tuple[Raster, ...]) -> None:
    """Refuse scenes with different numbers of bands.

    Args:
        first: Files of a scene.
        other: Files of another.

    Raises:
        UnreadableError: If the other one has more bands, or fewer.
    """
    counts = len(_names(first)), len(_names(other))
    if counts[0] != counts[1]:
        raise UnreadableError(
            other[0].path,
            f'has {counts[1]} bands but {first[0].path!r} has {counts[0]}: all scenes must have the same; '
            f'choose bands that all have by bands={list(range(1, min(counts) + 1))}, or leave files out by a '
            'glob in paths',
        )


def _select(rasters: tuple[Raster, ...], wanted: list[str | int]) -> tuple[Raster, ...]:
    """Return the rasters that read the wanted bands in their order."""
    names = _names(rasters)
    distinct = len({*names}) == len(names)
    if wanted == [*range(1, len(names) + 1)] or (distinct and wanted == names):
        return rasters
    owners = [(r, i) for r in rasters for i in range(len(r.bands))]
    chosen = []
    for band in wanted:
        number = names.index(band) + 1 if band in names else band
        if not isinstance(number, int) or not 1 <= number <= len(names):
            raise UnreadableError(
                rasters[0].path,
                f'has no band {band!r}: bands must be names or positions (from 1) of {names}; an alpha band is '
                'not counted; or bands=[positions] if files name their bands differently',
            )
        chosen.append(owners[number - 1])
    # Neighbours of one file are read at once
    runs = itertools.groupby(chosen, operator.itemgetter(0))
    return tuple(raster.select([i for _, i in run]) for raster, run in runs)
