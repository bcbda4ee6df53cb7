# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""What is to be done with a scene, and where its map is made."""

import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from ..datasets.filenames import is_remote
from ..datasets.grids import Grid
from .cog import is_cut_off, read_raster_about
from .inputs import SceneSource
from .outputs import Outcome
from .tiling import Tiling
from .vectors import read_about

#: Seconds after which a lock is held by a program that writes, not by one that looks.
LOOK = 1.0


def folder_lock(folder: Path) -> FileLock:
    """The lock of a run whose processes share the scenes of a folder of maps.

    Such a run holds no map's own lock: thousands would be as many open files.

    Args:
        folder: Of the maps.

    Returns:
        The lock, not yet taken.
    """
    return FileLock(folder / '.cmid_geo.lock')


@dataclass(frozen=True)
class Reading:
    """How a scene is read; may be sent to other processes.

    Attributes:
        source: The scene, or two dates.
        tiling: The windows.
        mirrored: Whether the scene's mirror image is around it. Not for objects: one at the edge
            and its image would be one larger object.
        margin: Pixels that are read around each window, see :attr:`SceneMapper.margin`.
    """

    source: SceneSource
    tiling: Tiling
    mirrored: bool = True
    margin: int = 0

    @property
    def size(self) -> int:
        """Side of a window in pixels, without the margin."""
        return self.tiling.down.size * self.tiling.stride

    @property
    def read_size(self) -> int:
        """Side of what is read of a window in pixels, with the margin."""
        return self.size + 2 * self.margin

    @property
    def is_remote(self) -> bool:
        """Whether a file is read by URL."""
        return any(is_remote(file) for date in self.source.dates for file in date.files)

    def read(self, window: int) -> tuple[np.ndarray, np.ndarray]:
        """Read a window of the scene.

        Args:
            window: Its number.

        Returns:
            Raw values, and where they are valid, both on the scene's pixels, of the window and
            the margin around it.

        Raises:
            ValueError: If a file cannot be read any more.
        """
        row, col = (
            place * self.tiling.stride - self.margin
            for place in self.tiling.corner(window)
        )
        return self.source.read(row, col, self.read_size, self.mirrored)


@dataclass(frozen=True)
class Job:
    """A scene, and the map that is to be made of it.

    Attributes:
        reading: The scene and its windows.
        outcome: What is written.
        out: Where to.
        about: How the map is made, for its tags.
        components: How many principal components, if so.
        threshold: Least score of an object.
    """

    reading: Reading
    outcome: Outcome
    out: Path
    about: dict[str, Any]
    components: int | None = None
    threshold: float = 0.5

    @property
    def source(self) -> SceneSource:
        """The scene, or two dates."""
        return self.reading.source

    @property
    def tiling(self) -> Tiling:
        """The windows."""
        return self.reading.tiling

    @property
    def files(self) -> list[Path]:
        """The map's files: one a layer, or one of objects."""
        suffixes = [layer.suffix for layer in self.outcome.layers] or ['']
        return [self.out.with_stem(f'{self.out.stem}{each}') for each in suffixes]

    @property
    def aside(self) -> Path:
        """The folder in which the map is made."""
        return self.out.with_name(f'.{self.out.name}.part')

    @property
    def grid(self) -> Grid:
        """The map's pixels: the scene's, or the cells that cover it."""
        grid, stride = self.source.grid, self.tiling.stride
        rows, cols = self.tiling.down.length, self.tiling.across.length
        if stride == 1:
            return grid
        return grid.window(0, 0, cols * stride, rows * stride).divided(rows, cols)

    @property
    def pixels(self) -> int:
        """Number of the scene's pixels."""
        return self.source.grid.width * self.source.grid.height

    @property
    def is_finished(self) -> bool:
        """Whether the map is there, all files of it.

        Raises:
            ValueError: If one of them is there that was made otherwise, or by others.
        """
        there = [path for path in self.files if path.exists()]
        for path in there:
            self._check_notes(path)
        rasters = self.outcome.kind != 'objects'
        return there == self.files and not (
            rasters and any(map(is_cut_off, self.files))
        )

    def _check_notes(self, path: Path) -> None:
        """Refuse a file that was made otherwise, or by others."""
        objects = self.outcome.kind == 'objects'
        text = read_about(path) if objects else read_raster_about(path)
        try:
            found = dict(json.loads(text or ''))
        except (ValueError, TypeError):
            found = {}
        wanted = json.loads(json.dumps(self.about))
        other = [name for name in sorted(wanted) if found.get(name) != wanted[name]]
        if other:
            why = (
                f'{", ".join(other)} differ' if found else 'it is damaged, or not ours'
            )
            raise ValueError(
                f'{path} is there already and was made otherwise ({why}): choose another folder, or '
                'overwrite it by --overwrite true'
            )

    def begin(self, shared: bool = False) -> FileLock:
        """Make the folder aside, empty, and keep other programs out of it.

        Args:
            shared: Whether this program holds the lock of the folder of maps: its processes share
                the scenes.

        Returns:
            The lock, to be released when all is done.

        Raises:
            ValueError: If another program is making the map, or shares scenes over this folder, or
                the folder cannot be written.
        """
        lock = FileLock(self.aside / 'lock')
        try:
            self._wait_for_folder(shared)
            self.aside.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
            # What came between has its files here; what comes from now on meets the lock
            self._wait_for_folder(shared)
        except Timeout as error:
            lock.release()
            raise ValueError(
                f'{self.out} is being written by another program: wait for it, or choose another path'
            ) from error
        except OSError as error:
            raise ValueError(
                f'{self.aside} cannot be written ({error.strerror}): choose another path for {self.out.name}'
            ) from error
        # What a run that was killed left behind
        for left in self.aside.iterdir():
            if left.name != 'lock':
                left.unlink()
        return lock

    def _wait_for_folder(self, shared: bool) -> None:
        """Raise Timeout where another program holds the folder's lock for longer than a look."""
        lock = folder_lock(self.out.parent)
        if not shared and Path(lock.lock_file).exists():
            lock.acquire(timeout=LOOK)
            lock.release()

    def publish(self, files: Iterable[Path]) -> list[Path]:
        """Give finished files their names; the map itself comes last.

        Args:
            files: In the folder aside.

        Returns:
            Where they are now.
        """
        ordered = sorted(files, key=lambda path: path.name == self.out.name)
        final = [self.out.with_name(path.name) for path in ordered]
        # Names of an earlier map's classes
        beside = self.out.with_name(f'{self.out.name}.aux.xml')
        if beside not in final:
            beside.unlink(missing_ok=True)
        for path, target in zip(ordered, final, strict=True):
            os.replace(path, target)
        return final

    def sweep(self, shared: bool = False) -> None:
        """Take away what a run that was killed left behind, unless it is another's.

        Args:
            shared: See :meth:`begin`.

        Raises:
            ValueError: If another program is making the map.
        """
        if self.aside.exists():
            self.end(self.begin(shared))

    def end(self, lock: FileLock | None = None) -> None:
        """Take the folder aside away.

        Args:
            lock: From :meth:`begin`.
        """
        shutil.rmtree(self.aside, ignore_errors=True)
        if lock is not None:
            lock.release()
