# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""What is mapped: a scene, or two dates of one place, read in windows of the first one's pixels."""

import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from torchgeo.datasets.utils import Path

from ..datasets.filenames import DEFAULT_BAND_REGEX, DEFAULT_DATE_REGEX, find_rasters
from ..datasets.grids import Grid, positions_on, same_crs, whole_offset
from ..datasets.reader import SceneReader
from ..datasets.scene import NOTHING_DECLARED, Declared, Scene, find_scenes

#: A scene's file, folder or files; or two dates of these.
SceneFiles = Path | Sequence[Path] | Sequence[Sequence[Path]]


@dataclass
class SceneSource:
    """Windows of a scene's own grid; of several dates on the grid of the first.

    Attributes:
        dates: The scenes. All but the first are resampled where their pixels lie elsewhere.
    """

    dates: tuple[Scene, ...]
    _readers: dict[tuple[int, int], SceneReader] = field(default_factory=dict)

    def __getstate__(self) -> dict[str, object]:
        """Leave open files behind."""
        return {'dates': self.dates, '_readers': {}}

    @property
    def grid(self) -> Grid:
        """The grid of the first date, which maps have too."""
        return self.dates[0].native

    @property
    def name(self) -> str:
        """What to call it in messages."""
        return ' and '.join(repr(scene.files[0]) for scene in self.dates)

    @property
    def bands(self) -> tuple[str, ...]:
        """Names of the bands of a date."""
        return self.dates[0].bands

    def close(self) -> None:
        """Close the files of this process."""
        # They are closed as their readers go
        self._readers.clear()

    def read(
        self, row: int, col: int, size: int, mirrored: bool = True
    ) -> tuple[Float[np.ndarray, '*dates bands size size'], Bool[np.ndarray, 'size size']]:  # fmt: skip
        """Read a square window.

        Args:
            row: First row; may lie outside.
            col: First column; may lie outside.
            size: Side in pixels.
            mirrored: Whether the scene's mirror image is around it, or nothing valid.

        Returns:
            Raw values float32, 0 where not valid; of several dates each. And where all dates are
            valid.

        Raises:
            ValueError: If a file cannot be read any more.
        """
        rows = mirror(np.arange(row, row + size), self.grid.height)
        cols = mirror(np.arange(col, col + size), self.grid.width)
        top, left = int(rows.min()), int(cols.min())
        height, width = int(rows.max()) - top + 1, int(cols.max()) - left + 1
        pairs = [self._read(date, left, top, width, height) for date in self.dates]
        valid = np.logical_and.reduce([valid for _, valid in pairs])
        image = np.stack([image for image, _ in pairs])
        if len(pairs) > 1:
            # What one date lacks shows no change, as in training
            image *= valid
        if (height, width) != (size, size):
            image = image[..., rows[:, None] - top, cols - left]
            valid = valid[rows[:, None] - top, cols - left]
        if not mirrored:
            down, across = np.arange(row, row + size), np.arange(col, col + size)
            valid = valid & ((rows == down)[:, None] & (cols == across))
            image = image * valid
        return (image if len(pairs) > 1 else image[0]), valid

    def _read(
        self, scene: Scene, col: int, row: int, width: int, height: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Read a window inside the first date's grid, through files of this thread's own."""
        # GDAL's handles serve one thread at a time
        key = os.getpid(), threading.get_ident()
        reader = self._readers.setdefault(key, SceneReader())
        if scene is self.dates[0]:
            return reader.read_own(scene, col, row, width, height)
        return reader.read(scene, self.grid.window(col, row, width, height))


def mirror(places: np.ndarray, length: int) -> np.ndarray:
    """Fold places back into a side at both ends, as often as needed.

    Args:
        places: Whole numbers.
        length: Of the side.

    Returns:
        Places from 0 to *length* - 1: -1 becomes 1, *length* becomes *length* - 2.
    """
    period = max(2 * (length - 1), 1)
    folded = places % period
    return np.where(folded < length, folded, period - folded).clip(0, length - 1)


def open_source(
    scene: SceneFiles,
    dates: int = 1,
    bands: Sequence[str | int] | None = None,
    declared: Declared = NOTHING_DECLARED,
    choose: Callable[[Scene], Sequence[str | int] | None] | None = None,
) -> SceneSource:
    """Open what is to be mapped.

    Args:
        scene: A file, URL, or folder of one file a band; of two dates a pair of these.
        dates: How many there must be.
        bands: Names or 1-based positions, in the order wanted; all by default.
        declared: What the files do not say.
        choose: Where *bands* is None, chooses those of each date; None for all.

    Returns:
        The source.

    Raises:
        ValueError: If there is not one scene a date, a file cannot be read or has no CRS, or the
            dates share no ground.
    """
    if dates == 1:
        return SceneSource((_open_one(scene, bands, declared, choose),))
    if isinstance(scene, str | os.PathLike) or len(scene) != dates:
        raise ValueError(
            f'scene={scene!r} for a task that compares {dates} dates: give (before, after)'
        )
    first, *others = (_open_one(date, bands, declared, choose) for date in scene)
    return SceneSource((first, *(_align(first, other) for other in others)))


def _open_one(
    paths: Any,
    bands: Sequence[str | int] | None,
    declared: Declared,
    choose: Callable[[Scene], Sequence[str | int] | None] | None = None,
) -> Scene:
    found = find_scenes(
        find_rasters(paths), bands, DEFAULT_BAND_REGEX, DEFAULT_DATE_REGEX, declared
    )
    if len(found) != 1:
        raise ValueError(
            f'{str(paths)!r} holds {len(found)} scenes: give one, or map several with '
            'cmid-geo map'
        )
    chosen = choose(found[0]) if choose is not None and bands is None else None
    return found[0] if chosen is None else _open_one(paths, chosen, declared)


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
