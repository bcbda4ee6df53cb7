# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Preparation of scenes: copies in tiles that random windows are quickly read from."""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path as LocalPath

import numpy as np
import rasterio
from rasterio.errors import RasterioError
from rasterio.io import DatasetReader
from rasterio.windows import Window as Pixels
from torchgeo.datasets.utils import Path

from ..options import Compression
from .filenames import (
    DEFAULT_BAND_REGEX,
    DEFAULT_DATE_REGEX,
    find_rasters,
    group_bands,
    is_remote,
    stem,
)
from .rasters import Raster, UnreadableError, describe_raster, open_raster
from .scene import sift_scenes


@dataclass
class Prepared:
    """Scenes after preparation.

    Attributes:
        written: Files that were written now.
        kept: Files that were there already, whole.
        bad: Scenes of which there is no copy, by their (first) file, and why.
    """

    written: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    bad: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        """Return the numbers, and a line a bad scene."""
        counts = f'{len(self.written)} written, {len(self.kept)} kept, {len(self.bad)} not prepared'
        return '\n'.join(
            [counts, *(f'  {path!r} {why}' for path, why in self.bad.items())]
        )


def prepare_scenes(
    scenes: Path | Iterable[Path],
    out: Path,
    compress: Compression = 'zstd',
    blocksize: int = 256,
    band_regex: str = DEFAULT_BAND_REGEX,
) -> Prepared:
    """Copy scenes to tiled GeoTIFFs; pixels, bands, place, nodata, masks and names stay.

    Bands in files of their own become one file, in the order of the bands, named without the band;
    unless their grids, types or nodata values differ, or they have masks: then each is copied by itself.
    A copy appears when it is whole. Copies that are there are kept, whatever their tiles, and damaged
    ones made anew.

    Args:
        scenes: A folder (searched recursively), a glob, a file, a URL, or several of these. What
            lies in *out* is not among them.
        out: Folder to write to; folders below that of all scenes are kept.
        compress: Of the copies; 'none' is read fastest.
        blocksize: Side of the tiles in pixels, a multiple of 16.
        band_regex: Finds the band in the names of single-band files, in a group ``band``.

    Returns:
        What was written and kept, and which scenes are bad.

    Raises:
        ValueError: If *blocksize* is no multiple of 16, or there are no rasters.
    """
    if blocksize < 16 or blocksize % 16:
        raise ValueError(
            f'blocksize={blocksize} must be a multiple of 16, as GeoTIFF has it: give 256 or 512'
        )
    folder = LocalPath(os.fspath(out)).resolve()
    files = [f for f in find_rasters(scenes) if is_remote(f) or not _lies_in(f, folder)]
    if not files:
        raise ValueError(
            f'no raster in {scenes!r}, apart from what lies in out={str(out)!r}: give a folder of scenes, and '
            'another to write to'
        )
    options: dict[str, object] = {
        'compress': compress,
        'blockxsize': blocksize,
        'blockysize': blocksize,
    }
    done, taken = Prepared(), {}
    common = os.path.commonpath(
        [os.path.dirname(f) for f in files if not is_remote(f)] or ['.']
    )
    for group in group_bands(files, band_regex):
        found, bad = sift_scenes(group.values(), None, band_regex, DEFAULT_DATE_REGEX)
        done.bad |= bad
        for rasters in (part for scene in found for part in _stackable(scene.rasters)):
            first = rasters[0].path
            below = (
                ''
                if is_remote(first)
                else os.path.relpath(os.path.dirname(first), common)
            )
            target = folder / below / f'{_name(rasters, group)}.tif'
            if target in taken:
                done.bad[first] = (
                    f'would be {str(target)!r}, as {taken[target]!r} is: rename one'
                )
                continue
            taken[target] = first
            _prepare(rasters, target, options, done)
    return done


def _lies_in(path: str, folder: LocalPath) -> bool:
    """Whether a file lies below a folder."""
    return LocalPath(path).resolve().is_relative_to(folder)


def _stackable(rasters: Sequence[Raster]) -> list[tuple[Raster, ...]]:
    """The files of a scene that become one: all, or each by itself."""
    kinds = {(r.grid, r.dtypes[0], r.nodata[0], r.alpha, r.has_mask) for r in rasters}
    alike = len(kinds) == 1 and not (rasters[0].alpha or rasters[0].has_mask)
    return [tuple(rasters)] if alike else [(raster,) for raster in rasters]


def _name(rasters: Sequence[Raster], group: dict[str, str]) -> str:
    """Name of a copy: that of the file, without the band where several become one."""
    name = stem(rasters[0].path)
    if len(rasters) == 1:
        return name
    band = next(band for band, path in group.items() if path == rasters[0].path)
    before, _, after = name.rpartition(band)
    return f'{before.rstrip("_-. ")}{after}'.strip('_-. ') or 'scene'


def _prepare(
    rasters: Sequence[Raster],
    target: LocalPath,
    options: dict[str, object],
    done: Prepared,
) -> None:
    """Write one copy, unless it is there, and note what became of it."""
    first, part = rasters[0].path, target.with_name(f'.{target.name}.part')
    try:
        if _is_there(rasters, target):
            done.kept.append(str(target))
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        _write(rasters, part, options)
        os.replace(part, target)
        done.written.append(str(target))
    except UnreadableError as error:
        done.bad[error.path] = error.why
    except (RasterioError, OSError) as error:
        why = error.__cause__ or error
        done.bad[first] = (
            f'cannot be copied to {str(target)!r} ({why}): replace it, or mend the folder'
        )
    finally:
        part.unlink(missing_ok=True)


def _is_there(rasters: Sequence[Raster], target: LocalPath) -> bool:
    """Whether a whole copy is there; another scene in its place is not overwritten."""
    try:
        there = describe_raster(str(target))
    except UnreadableError:
        return False
    count = sum(len(raster.indexes) for raster in rasters)
    if (there.grid, len(there.indexes)) == (rasters[0].grid, count):
        return True
    raise UnreadableError(
        rasters[0].path,
        f'would be {str(target)!r}, where another scene is: move that, or write to another folder',
    )


def _write(
    rasters: Sequence[Raster], part: LocalPath, options: dict[str, object]
) -> None:
    """Copy files to the bands of one, a row of tiles at a time."""
    with ExitStack() as stack:
        stack.enter_context(rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True))
        sources = [stack.enter_context(open_raster(r.path)) for r in rasters]
        first = sources[0]
        profile = {
            'driver': 'GTiff', 'width': first.width, 'height': first.height, 'crs': first.crs,
            'transform': first.transform, 'nodata': first.nodata, 'tiled': True, 'bigtiff': 'if_safer',
            'count': sum(source.count for source in sources), 'num_threads': 'all_cpus',
            'dtype': np.result_type(*first.dtypes).name, **options,
        }  # fmt: skip
        file = stack.enter_context(rasterio.open(part, 'w', **profile))
        file.update_tags(**first.tags())
        file.colorinterp = [color for source in sources for color in source.colorinterp]
        for number, text in enumerate(_descriptions(rasters, sources), 1):
            file.set_band_description(number, text or '')
        file.scales = [scale for source in sources for scale in source.scales]
        file.offsets = [offset for source in sources for offset in source.offsets]
        for rows in _rows(first, int(str(options['blockysize']))):
            file.write(
                np.concatenate([source.read(window=rows) for source in sources]),
                window=rows,
            )
            if rasters[0].has_mask:
                file.write_mask(
                    first.read_masks(rasters[0].indexes[0], window=rows), window=rows
                )


def _descriptions(
    rasters: Sequence[Raster], sources: Sequence[DatasetReader]
) -> list[str | None]:
    """What the bands are called: by the names of files where several become one."""
    if len(rasters) == 1:
        return list(sources[0].descriptions)
    return [band for raster in rasters for band in raster.bands]


def _rows(file: DatasetReader, height: int) -> Iterator[Pixels]:
    """Windows as wide as a file, from top to bottom."""
    for row in range(0, file.height, height):
        end = min(row + height, file.height)
        yield Pixels.from_slices((row, end), (0, file.width))
