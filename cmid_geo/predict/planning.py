# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""What is to be done with a scene, checked before anything is written."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torchgeo.datasets.utils import Path as PathLike

from ..datasets.filenames import is_remote
from ..datasets.gdal import gdal_settings
from ..datasets.scene import Declared
from .inputs import SceneFiles, open_source
from .job import Job, Reading
from .predictor import SceneMapper
from .tiling import cut_scene


def plan_map(
    mapper: SceneMapper,
    scene: SceneFiles,
    out: PathLike,
    *,
    size: int = 512,
    overlap: int | None = None,
    bands: Sequence[str | int] | None = None,
    zero_is_nodata: bool = False,
    nodata: float | None = None,
    file_crs: str | None = None,
    about: dict[str, Any] | None = None,
) -> Job:
    """Check that a scene can be mapped, and say how; nothing is written yet.

    Args:
        mapper: The task.
        scene: See :func:`predict_scene`.
        out: Likewise.
        size: Likewise.
        overlap: Likewise.
        bands: Likewise.
        zero_is_nodata: Likewise.
        nodata: See :func:`predict_scene`.
        file_crs: See :func:`predict_scene`.
        about: What else to note in the map.

    Returns:
        What is to be done.

    Raises:
        ValueError: If it cannot.
    """
    dates = mapper.outcome.dates
    declared = Declared(zero_is_nodata, nodata, file_crs)
    with gdal_settings(_is_remote(scene)):
        source = open_source(scene, dates, bands, declared, mapper.choose_bands)
    outcome = mapper.prepare(source, size)
    stride = outcome.stride
    mirrored = outcome.kind != 'objects'
    tiling = cut_scene(
        source.grid.height, source.grid.width, size, overlap, stride, mirrored
    )
    path = Path(out)
    endings = ('.gpkg', '.geojson') if outcome.kind == 'objects' else ('.tif', '.tiff')
    if path.suffix.lower() not in endings:
        raise ValueError(
            f'out={str(out)!r}: {type(mapper.task).__name__} gives {" or ".join(endings)}'
        )
    files = [file for date in source.dates for file in date.files]
    notes = {
        'scene': [_stamp(file) for file in files], 'zero_is_nodata': zero_is_nodata,
        'nodata': nodata, 'file_crs': file_crs, 'bands': list(source.bands), 'size': size,
        'overlap': tiling.down.overlap * stride, **mapper.notes(), **(about or {}),
    }  # fmt: skip
    job = Job(
        Reading(source, tiling, mirrored, mapper.margin),
        outcome,
        path,
        notes,
        mapper.components,
        mapper.threshold,
    )
    for each in job.files:
        if each.is_dir() or any(_same(each, file) for file in files):
            what = 'a folder' if each.is_dir() else 'the scene itself'
            raise ValueError(f'{str(each)!r} is {what}: choose another name for out=')
    return job


def _is_remote(scene: SceneFiles) -> bool:
    several = [scene] if isinstance(scene, str | os.PathLike) else scene
    return any(
        is_remote(os.fspath(each))
        if isinstance(each, str | os.PathLike)
        else _is_remote(each)
        for each in several
    )


def _same(path: Path, file: str) -> bool:
    return path.exists() and os.path.exists(file) and os.path.samefile(path, file)


def _stamp(file: str) -> list[Any]:
    """Name, size and time of a file: another one of the same name gives another map."""
    if not os.path.isfile(file):
        return [file]
    state = os.stat(file)
    return [os.path.basename(file), state.st_size, int(state.st_mtime)]
