# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Scenes of a procedural landscape, photographed at several dates."""

import json
import os
from collections.abc import Sequence
from datetime import date as Date
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy import ndarray
from numpy.random import default_rng
from rasterio.enums import ColorInterp
from rasterio.transform import from_origin

from ..rasters import open_raster
from ..scenes import SceneDataset
from .landscape import CHARACTERS, CLASSES, INNER, Landscape
from .photograph import photograph

# Of the classes, in pictures of the masks.
COLOURS = (
    *((190, 170, 140), (220, 210, 110), (40, 120, 50)),
    *((50, 110, 200), (90, 90, 90), (210, 60, 50)),
)


def _check(scenes: int, size: int, dates: Sequence[str], seed: int) -> list[Date]:
    """Return the days, or say what is wrong with the parameters."""
    limits = {'scenes': (scenes, 1), 'size': (size, 128), 'seed': (seed, 0)}
    for name, (value, least) in limits.items():
        if value < least:
            raise ValueError(
                f'{name}={value} but {least} is the least that there is: raise {name}='
            )
    days = []
    for text in [dates] if isinstance(dates, str) else dates:
        try:
            days.append(Date.fromisoformat(text if text.isdecimal() else ''))
        except ValueError:
            raise ValueError(
                f"dates hold {text!r} but must be days YYYYMMDD: give '20230615'"
            ) from None
    if len(days) < 2 or sorted(set(days)) != days:
        raise ValueError(
            f'dates={dates} but two or more are needed, each after the one before: '
            "give dates=('20230615', '20240921')"
        )
    return days


def _missing(root: Path, paths: list[Path], stamp: str) -> set[Path]:
    """Make the folders and return the files still to write, if no others are there."""
    try:
        for folder in {path.parent for path in paths}:
            folder.mkdir(parents=True, exist_ok=True)
            if not os.access(folder, os.W_OK | os.X_OK):
                raise PermissionError(f'no permission to write in {folder}')
    except OSError as error:
        raise ValueError(
            f'root={root} must be a folder that can be written, but {error}: '
            'give another root='
        ) from error
    found = {file for path in paths for file in path.parent.glob('*.tif')}
    for path in sorted(found):
        with open_raster(str(path)) as source:
            there = source.tags().get('synthetic')
        if there != stamp:
            raise ValueError(
                f'{path} was written with {there or "something else"} but {stamp} is '
                'asked for, and a folder holds one set of scenes: give another root=, '
                'or delete this one'
            )
    return set(paths) - found


def _write(path: Path, array: ndarray, scene: int, stamp: str) -> None:
    """Write (bands, size, size) so that nobody ever sees half a file."""
    bands, size, _ = array.shape
    # Scenes lie on a lattice with at least 500 pixels between two of them.
    step = (size // 500 + 2) * 500
    west, north = 400_000 + scene % 16 * step, 5_400_000 + scene // 16 * step
    part = path.with_name(f'{path.name}.{os.getpid()}.part')
    profile = {
        'driver': 'GTiff', 'count': bands, 'height': size, 'width': size,
        'dtype': 'uint8', 'crs': 'EPSG:32632', 'compress': 'deflate', 'tiled': True,
        'transform': from_origin(west, north, 1, 1),
        'blockxsize': 256, 'blockysize': 256, 'interleave': 'pixel',
    }  # fmt: skip
    names = ('red', 'green', 'blue', 'nir') if bands == 4 else (path.parent.name[:-1],)
    try:
        with rasterio.open(part, 'w', **profile) as target:
            if bands == 4:
                # Else GDAL takes a fourth band of bytes for transparency.
                target.colorinterp = [*list(ColorInterp)[3:6], ColorInterp.undefined]
            elif names == ('mask',):
                target.write_colormap(1, dict(enumerate(COLOURS)))
                target.update_tags(**{f'class_{i}': c for i, c in enumerate(CLASSES)})
            target.descriptions = names
            target.update_tags(synthetic=stamp)
            target.write(array)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_synthetic_scenes(
    root: str | Path,
    *,
    scenes: int = 3,
    size: int = 1024,
    dates: Sequence[str] = ('20230615', '20240921'),
    seed: int = 0,
) -> list[Path]:
    """Write scenes with their class masks and change masks; what exists is kept.

    ``images/scene_00_20230615.tif`` has red, green, blue and near infrared as uint8
    above 0, pixels of 1 m. ``masks/`` beside it holds the classes of the same pixels
    (0 other, 1 field, 2 wood, 3 water, 4 road, 5 building), and
    ``changes/scene_00_20230615_20240921.tif`` is 1 where the class changed between
    two dates that follow each other: season and light are no change.

    Args:
        root: Folder to write to.
        scenes: Number of places, in turn farmed, wooded and built up.
        size: Height and width in pixels, 128 or more.
        dates: Days as YYYYMMDD, in order.
        seed: The same seed gives the same pixels, and a scene does not depend on how
            many there are.

    Returns:
        The images, scene by scene.

    Raises:
        ValueError: If a parameter is out of its range, or if the folder cannot be
            written or holds scenes of other parameters.
    """
    days, root = _check(scenes, size, dates, seed), Path(root)
    asked = {'scenes': scenes, 'size': size, 'dates': list(dates), 'seed': seed}
    stamp = json.dumps(asked | {'version': 1})
    steps = [f'{old}_{new}' for old, new in pairwise(dates)]
    places = [
        [
            root / kind / f'scene_{scene:02}_{when}.tif'
            for kind, times in (('images', dates), ('masks', dates), ('changes', steps))
            for when in times
        ]
        for scene in range(scenes)
    ]
    missing = _missing(root, list(chain(*places)), stamp)
    for scene, paths in enumerate(places):
        if missing.isdisjoint(paths):
            continue
        character = CHARACTERS[scene % len(CHARACTERS)]
        land = Landscape(default_rng([seed, scene, 0]), size, character, len(days))
        # Every photograph has a stream of its own: one more date moves no noise.
        rasters = [
            photograph(land, default_rng([seed, scene, 1 + date]), date, day)
            for date, day in enumerate(days)
        ]
        masks = [land.classes(date)[None, INNER, INNER] for date in range(len(days))]
        changes = [(old != new).astype(np.uint8) for old, new in pairwise(masks)]
        for path, raster in zip(paths, [*rasters, *masks, *changes], strict=True):
            if path in missing:
                _write(path, raster, scene, stamp)
    return [path for paths in places for path in paths[: len(days)]]


class SyntheticScenes(SceneDataset):
    """Scenes of a procedural landscape, written at first use.

    The images are four bands (red, green, blue, nir) of each place at each date;
    :func:`write_synthetic_scenes` says what lies beside them.
    """

    def __init__(
        self,
        root: str | Path = 'data',
        *,
        scenes: int = 3,
        size: int = 1024,
        dates: Sequence[str] = ('20230615', '20240921'),
        seed: int = 0,
        **options: Any,
    ) -> None:
        """Write the scenes where they are missing and open the images.

        Args:
            root: Folder of the scenes.
            scenes: Number of places.
            size: Height and width of a scene in pixels (1 m).
            dates: Days as YYYYMMDD, in order.
            seed: Seed of the landscape.
            **options: Passed on to :class:`SceneDataset`, such as ``bands``.
        """
        write_synthetic_scenes(root, scenes=scenes, size=size, dates=dates, seed=seed)
        super().__init__(Path(root) / 'images', **options)
