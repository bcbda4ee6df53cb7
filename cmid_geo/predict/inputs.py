# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Scenes to map, or two dates of one place, read in windows of the first one's pixels."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from torchgeo.datasets.utils import Path

from ..datasets.filenames import DEFAULT_BAND_REGEX, DEFAULT_DATE_REGEX, find_rasters
from ..datasets.grids import Grid, positions_on, same_crs, whole_offset
from ..datasets.reader import SceneReader
from ..datasets.scene import (
    NOTHING_DECLARED,
    Declared,
    Scene,
    compose_scene,
    find_scenes,
)

#: A scene, or its file, folder or files.
SceneFile = Path | Sequence[Path] | Scene

#: What is mapped: a scene, or two dates.
SceneFiles = SceneFile | Sequence[SceneFile]

#: Bands that a task takes of a scene, by name or position from 1; None for all in their order.
Choice = Callable[[Scene], Sequence[str | int] | None]


@dataclass(frozen=True)
class SceneSource:
    """Windows of a scene's own grid; of several dates on the grid of the first.

    Attributes:
        dates: The scenes. All but the first are resampled where their pixels lie elsewhere.
    """

    dates: tuple[Scene, ...]

    @property
    def grid(self) -> Grid:
        """The grid of the first date, which maps have too."""
        return self.dates[0].grid

    @property
    def name(self) -> str:
        """What to call it in messages."""
        return ' and '.join(repr(scene.files[0]) for scene in self.dates)

    @property
    def bands(self) -> tuple[str, ...]:
        """Names of the bands of a date."""
        return self.dates[0].bands

    @property
    def files(self) -> list[str]:
        """Paths of all dates' files."""
        return [file for date in self.dates for file in date.files]

    @property
    def shape(self) -> tuple[int, ...]:
        """Dates, if there are several, and bands."""
        several, bands = len(self.dates), len(self.bands)
        return (several, bands) if several > 1 else (bands,)

    def read(
        self,
        row: int,
        col: int,
        size: int,
        mirrored: bool = True,
        reader: SceneReader | None = None,
    ) -> tuple[Float[np.ndarray, '*dates bands size size'], Bool[np.ndarray, 'size size']]:  # fmt: skip
        """Read a square window.

        Args:
            row: First row; may lie outside.
            col: First column; may lie outside.
            size: Side in pixels.
            mirrored: Whether the scene's mirror image is around it, or nothing valid.
            reader: Of this thread, which keeps files open; by default they are closed.

        Returns:
            Raw values float32, 0 where not valid; of several dates each. And where all dates are
            valid.

        Raises:
            ValueError: If a file cannot be read any more.
        """
        reader = reader or SceneReader(0)
        down, across = np.arange(row, row + size), np.arange(col, col + size)
        rows, cols = mirror(down, self.grid.height), mirror(across, self.grid.width)
        top, left = int(rows.min()), int(cols.min())
        height, width = int(rows.max()) - top + 1, int(cols.max()) - left + 1
        target = self.grid.window(left, top, width, height)
        images, valids = zip(*(reader.read(date, target) for date in self.dates))
        image, valid = np.stack(images), np.logical_and.reduce(valids)
        if len(self.dates) > 1:
            # What one date lacks shows no change, as in training
            image *= valid
        if (height, width) != (size, size):
            image = image[..., rows[:, None] - top, cols - left]
            valid = valid[rows[:, None] - top, cols - left]
        if not mirrored:
            valid = valid & ((rows == down)[:, None] & (cols == across))
            image = image * valid
        return image.reshape(*self.shape, size, size), valid


def mirror(places: np.ndarray, length: int) -> np.ndarray:
    """Fold places back into a side at both ends, as often as needed.

    Args:
        places: Whole numbers.
        length: Of the side.

    Returns:
        Places from 0 to *length* - 1: -1 becomes 1, *length* becomes *length* - 2.
    """
    last = length - 1
    return abs((places + last) % max(2 * last, 1) - last)


def open_source(
    scene: SceneFiles,
    dates: int = 1,
    bands: Sequence[str | int] | None = None,
    declared: Declared = NOTHING_DECLARED,
    choose: Choice | None = None,
) -> SceneSource:
    """Open what is to be mapped.

    Args:
        scene: A file, URL, folder of one file a band, or a scene that was found; of two dates a
            pair of these.
        dates: How many there must be.
        bands: Names or 1-based positions, in the order wanted; all by default.
        declared: What the files do not say.
        choose: Where *bands* is None, chooses those of each date.

    Returns:
        The source.

    Raises:
        ValueError: If there is not one scene a date, a file cannot be read or has no CRS, or the
            dates share no ground.
    """
    if dates == 1:
        return SceneSource((_open_one(scene, bands, declared, choose),))
    if isinstance(scene, str | os.PathLike | Scene) or len(scene) != dates:
        raise ValueError(
            f'scene={scene!r} for a task that compares {dates} dates: give (before, after)'
        )
    first, *others = (_open_one(date, bands, declared, choose) for date in scene)
    return SceneSource((first, *(_align(first, other) for other in others)))


def scenes_of(files: Sequence[str], declared: Declared) -> list[Scene]:
    """Read which scenes files make up, on their own grids.

    Args:
        files: Paths and URLs.
        declared: What the files do not say.

    Returns:
        The scenes.

    Raises:
        ValueError: If a file cannot be read, or they do not fit together.
    """
    return find_scenes(files, None, DEFAULT_BAND_REGEX, DEFAULT_DATE_REGEX, declared)


def _open_one(
    given: Any,
    bands: Sequence[str | int] | None,
    declared: Declared,
    choose: Choice | None,
) -> Scene:
    if not isinstance(given, Scene):
        found = scenes_of(find_rasters(given), declared)
        if len(found) != 1:
            raise ValueError(
                f'{str(given)!r} holds {len(found)} scenes: give one, or map several with '
                'cmid-geo map'
            )
        given = found[0]
    if bands is None and choose is not None:
        bands = choose(given)
    if bands is None:
        return given
    return compose_scene(given.rasters, bands, DEFAULT_DATE_REGEX, declared)


def _align(first: Scene, other: Scene) -> Scene:
    """Say whether a date's pixels are the first one's; if not, it is resampled to them."""
    own, target = other.native, first.native
    if len(other.bands) != len(first.bands):
        raise ValueError(
            f'{first.files[0]!r} has {len(first.bands)} bands and {other.files[0]!r} {len(other.bands)}: dates '
            'need the same; choose those that both have by bands='
        )
    # Centres of so small parts that they nearly reach the edges
    cols, rows = positions_on(own, target.divided(256, 256))
    low = np.maximum([cols.min(), rows.min()], 0)
    if not (low < np.minimum([cols.max(), rows.max()], [own.width, own.height])).all():
        raise ValueError(
            f'{other.files[0]!r} shows none of the ground of {first.files[0]!r}: give two dates of one '
            'place'
        )
    alike = same_crs(own.crs, target.crs) and whole_offset(own, target) is not None
    return replace(other, needs_warp=not alike)
