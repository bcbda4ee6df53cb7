# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Maps to make: checked before anything is written, locked, made in a folder beside, published whole."""

import contextlib
import json
import os
import shutil
import warnings
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from torchgeo.datasets.utils import Path as PathLike

from ..datasets.filenames import is_remote
from ..datasets.gdal import gdal_settings
from ..datasets.grids import Grid
from ..datasets.reader import SceneReader
from ..datasets.scene import Declared, Scene
from .class_polygons import is_own_package
from .cog import is_cut_off, read_raster_notes
from .inputs import SceneFiles, SceneSource, open_source
from .outputs import Layer, Product
from .predictor import SceneMapper
from .style import ENDING, is_own_style
from .tiling import Tiling, cut_scene
from .vectors import FORMATS, check_closed, read_notes

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


@contextlib.contextmanager
def locking(path: Path, lock: FileLock) -> Generator[None]:
    """Say in a sentence that a lock is another's, or that its place cannot be written.

    Args:
        path: What is to be written.
        lock: It is released if it was taken nevertheless.

    Yields:
        Nothing.

    Raises:
        ValueError: If so.
    """
    try:
        yield
    except OSError as error:
        lock.release()
        why = f'cannot be written ({error.strerror}):'
        if isinstance(error, Timeout):
            why = 'is being written by another program: wait for it, or'
        raise ValueError(f'{path} {why} choose another path') from error


@dataclass(frozen=True)
class Job:
    """A scene, and the map that is to be made of it.

    Attributes:
        source: The scene, or two dates.
        tiling: The windows.
        product: What is written.
        out: Where to.
        notes: How the map is made, for its tags.
        margin: Pixels that are read around each window, see :attr:`SceneMapper.margin`.
    """

    source: SceneSource
    tiling: Tiling
    product: Product
    out: Path
    notes: dict[str, Any]
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
    def files(self) -> list[Path]:
        """The map's files: one a layer, or one of objects."""
        suffixes = [layer.suffix for layer in self.product.layers] or ['']
        return [self.out.with_stem(f'{self.out.stem}{each}') for each in suffixes]

    @property
    def written(self) -> list[Layer]:
        """The layers as their files hold them: components where these are wanted."""
        count = self.product.components
        if count is None:
            return list(self.product.layers)
        # As :func:`~cmid_geo.predict.pca.write_components` writes them
        return [replace(each, count=count, dtype='float32') for each in self.product.layers]  # fmt: skip

    @property
    def folder(self) -> Path:
        """The folder in which the map is made."""
        return self.out.with_name(f'.{self.out.name}.part')

    @property
    def grid(self) -> Grid:
        """The map's pixels: the scene's, or the vectors' places that cover it."""
        stride = self.tiling.stride
        rows, cols = self.tiling.down.length, self.tiling.across.length
        covered = self.source.grid.window(0, 0, cols * stride, rows * stride)
        return covered.divided(rows, cols)

    def read(
        self, window: int, reader: SceneReader | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Read a window of the scene.

        Args:
            window: Its number.
            reader: Of this thread, see :meth:`SceneSource.read`.

        Returns:
            Raw values, and where they are valid, both on the scene's pixels, of the window and
            the margin around it.

        Raises:
            ValueError: If a file cannot be read any more.
        """
        corner = self.tiling.corner(window)
        row, col = (place * self.tiling.stride - self.margin for place in corner)
        mirrored = self.product.mirrored
        with gdal_settings(any(map(is_remote, self.source.files))):
            return self.source.read(row, col, self.read_size, mirrored, reader)

    @property
    def is_finished(self) -> bool:
        """Whether the map is there, all files of it.

        Raises:
            ValueError: If one of them is there that was made otherwise, or by others.
        """
        there = [path for path in self.files if path.exists()]
        for path in there:
            self._check_notes(path)
        if self.product.kind != 'objects' and any(map(is_cut_off, there)):
            return False
        return there == self.files

    def _check_notes(self, path: Path) -> None:
        """Refuse a file that was made otherwise, or by others."""
        read = read_notes if self.product.kind == 'objects' else read_raster_notes
        found: dict[str, Any] = {}
        with contextlib.suppress(ValueError, TypeError):
            found = dict(json.loads(read(path) or ''))
        wanted = json.loads(json.dumps(self.notes))
        other = [name for name in sorted(wanted) if found.get(name) != wanted[name]]
        if other:
            differ = f'{", ".join(other)} differ'
            why = differ if found else 'it is damaged, or not ours'
            raise ValueError(
                f'{path} is there already and was made otherwise ({why}): choose another folder, or '
                'overwrite it by --overwrite true'
            )

    def check_closed(self) -> None:
        """Refuse to replace a GeoPackage, of objects or an earlier map's polygons, that is open elsewhere.

        Raises:
            ValueError: If one is.
        """
        polygons = self.out.with_suffix('.gpkg')
        if self.product.kind == 'objects':
            check_closed(self.out)
        elif is_own_package(polygons):
            check_closed(polygons)

    def begin(self, shared: bool = False) -> FileLock:
        """Make the folder, empty, and keep other programs out of it.

        Args:
            shared: Whether this program holds the lock of the folder of maps: its processes share
                the scenes.

        Returns:
            The lock, to be released when all is done.

        Raises:
            ValueError: If another program is making the map, or shares scenes over this folder, or
                has a GeoPackage open that is to go, or the folder cannot be written.
        """
        self.check_closed()
        return self._hold_folder(shared)

    def _hold_folder(self, shared: bool) -> FileLock:
        """Make the folder, or empty it, and hold its lock."""
        lock = FileLock(self.folder / 'lock')
        with locking(self.out, lock):
            self._wait_for_folder(shared)
            self.folder.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
            # What came between has its files here; what comes from now on meets the lock
            self._wait_for_folder(shared)
        # What a run that was killed left behind
        for left in self.folder.iterdir():
            if left.name != 'lock':
                left.unlink()
        return lock

    def _wait_for_folder(self, shared: bool) -> None:
        """Raise Timeout where another program holds the folder's lock for longer than a look."""
        lock = folder_lock(self.out.parent)
        if not shared and Path(lock.lock_file).exists():
            lock.acquire(timeout=LOOK)
            lock.release()

    def publish(self, files: Iterable[Path]) -> None:
        """Give finished files their names; the map itself comes last.

        Args:
            files: In the folder in which the map is made.
        """
        ordered = sorted(files, key=lambda path: path.name == self.out.name)
        if self.product.kind == 'objects':
            # It may have been opened meanwhile
            check_closed(self.out)
        # Names of an earlier map's classes
        names = f'{self.out.name}.aux.xml'
        if names not in {path.name for path in ordered}:
            self.out.with_name(names).unlink(missing_ok=True)
        style = self.out.with_suffix(ENDING)
        raster = self.product.kind != 'objects'
        if (
            raster
            and style.name not in {p.name for p in ordered}
            and is_own_style(style)
        ):
            style.unlink()
        # Polygons of an earlier map's classes
        polygons = self.out.with_suffix('.gpkg')
        if raster and is_own_package(polygons):
            try:
                check_closed(polygons)
            except ValueError as error:
                # The map took long to make, and is not lost for this
                warnings.warn(f'polygons of the map before stay: {error}', stacklevel=2)
            else:
                polygons.unlink()
        for path in ordered:
            target = self.out.with_name(path.name)
            # A style that the user made of ours stays
            if path.suffix != ENDING or not target.exists() or is_own_style(target):
                os.replace(path, target)

    def sweep(self, shared: bool = False) -> None:
        """Take away what a run that was killed left behind, unless it is another's.

        Args:
            shared: See :meth:`begin`.

        Raises:
            ValueError: If another program is making the map.
        """
        if self.folder.exists():
            self.end(self._hold_folder(shared))

    def end(self, lock: FileLock | None = None) -> None:
        """Take the folder away.

        Args:
            lock: From :meth:`begin`.
        """
        shutil.rmtree(self.folder, ignore_errors=True)
        if lock is not None:
            lock.release()


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
    precision: str = '32-true',
) -> Job:
    """Check that a scene can be mapped, and say how; nothing is written yet.

    Args:
        mapper: The task.
        scene: File, URL or folder of one file a band, or a scene that was found; for change two.
        out: File to write.
        size: Side of a window in pixels.
        overlap: What neighbouring windows share, in pixels; an eighth of *size* by default.
        bands: Names or 1-based positions in the task's order.
        zero_is_nodata: Whether pixels with 0 in all bands are no data even if no file says so.
        nodata: Fill value that files do not declare.
        file_crs: The CRS of files that state none.
        precision: Of the network's computations.

    Returns:
        What is to be done.

    Raises:
        ValueError: If it cannot.
    """
    declared = Declared(zero_is_nodata, nodata, file_crs)
    dates = mapper.product.dates
    with gdal_settings(_is_remote(scene)):
        source = open_source(scene, dates, bands, declared, mapper.choose_bands)
    product, grid = mapper.prepare(source, size), source.grid
    stride = product.stride
    tiling = cut_scene(grid.height, grid.width, size, overlap, stride, product.mirrored)
    path = Path(out)
    endings = tuple(FORMATS) if product.kind == 'objects' else ('.tif', '.tiff')
    if path.suffix.lower() not in endings:
        raise ValueError(
            f'out={str(out)!r}: {type(mapper.task).__name__} gives {" or ".join(endings)}'
        )
    notes = {
        'scene': [_stamp(file) for file in source.files], 'zero_is_nodata': zero_is_nodata,
        'nodata': nodata, 'file_crs': file_crs, 'bands': list(source.bands), 'size': size,
        'overlap': tiling.down.overlap * stride, 'precision': precision, **mapper.notes(),
    }  # fmt: skip
    job = Job(source, tiling, product, path, notes, mapper.margin)
    for each in job.files:
        if each.is_dir() or any(_same(each, file) for file in source.files):
            what = 'a folder' if each.is_dir() else 'the scene itself'
            raise ValueError(f'{str(each)!r} is {what}: choose another name for out=')
    return job


def _is_remote(scene: SceneFiles) -> bool:
    if isinstance(scene, str | os.PathLike):
        return is_remote(os.fspath(scene))
    return any(map(_is_remote, scene.files if isinstance(scene, Scene) else scene))


def _same(path: Path, file: str) -> bool:
    return path.exists() and os.path.exists(file) and os.path.samefile(path, file)


def _stamp(file: str) -> list[Any]:
    """Name, size and time of a file: another one of the same name gives another map."""
    if not os.path.isfile(file):
        return [file]
    state = os.stat(file)
    return [os.path.basename(file), state.st_size, int(state.st_mtime)]
