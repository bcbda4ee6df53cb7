# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Dry runs: what a run would make of scenes, checked and told, and nothing written."""

import errno
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from filelock import FileLock

from ..datasets.header_cache import headers_left_alone
from ..datasets.tables import grid_rows, html_table
from .api import Tally
from .class_polygons import check_package, lacks_polygons
from .datamodule import SceneWindows
from .job import Job, locking
from .predictor import SceneMapper


@dataclass
class Plan(Tally):
    """What a run would do; maps that are there already are in ``skipped``.

    Attributes:
        jobs: Maps that would be made.
        lines: A line a scene.
        free: Bytes that are free where the maps go.
    """

    jobs: list[Job] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    free: int = 0

    @property
    def windows(self) -> int:
        """Windows that the network would see."""
        return sum(len(job.tiling) for job in self.jobs)

    @property
    def size(self) -> int:
        """Bytes of all rasters, not compressed."""
        return sum(map(raster_bytes, self.jobs))

    @property
    def total(self) -> str:
        """All scenes in a sentence."""
        counts = f'{len(self.jobs)} maps would be made, {len(self.skipped)} are there already, {len(self.failed)} scenes fail'
        room = f'{_count(self.size)} uncompressed, {_count(self.free)} are free'
        more = self.size > self.free
        return f'{counts}; {self.windows} windows; {room}{": they may not fit" * more}'

    def _repr_html_(self) -> str:
        """The lines in a notebook."""
        return html_table({'dry run': self.total, 'scenes': '\n'.join(self.lines)})

    def __str__(self) -> str:
        """Say it."""
        return '\n'.join([*self.lines, self.total])


def plan_scenes(
    mapper: SceneMapper,
    windows: SceneWindows,
    precision: str,
    polygons: tuple[float, float] | None = None,
) -> Plan:
    """Check scenes as a run does before it computes; nothing is written.

    Args:
        mapper: The task.
        windows: The scenes, and how they are to be mapped.
        precision: Of the network's computations.
        polygons: Smallest area and tolerance of polygons beside the maps; None for no polygons.

    Returns:
        What would be done.

    Raises:
        ValueError: If the scenes cannot be listed.
    """
    plan = windows.tally = Plan(free=shutil.disk_usage(_existing(Path(windows.out))).free)  # fmt: skip
    with headers_left_alone():
        found = windows.find_scenes(mapper)
        for number, scene in enumerate(found, 1):
            told = 'is there'
            with plan.trying(scene.name):
                job = windows.plan(mapper, scene, precision, dry=True)
                if polygons and (job or lacks_polygons(scene.out, *polygons)):
                    check_package(scene.out)
                    told = 'is there, its polygons would be written'
                if job is not None:
                    job.check_closed()
                    _check_place(job)
                    told = describe(job, polygons is not None)
                    plan.jobs.append(job)
            told = f'failed: {plan.failed[scene.name]}' if scene.name in plan.failed else told  # fmt: skip
            plan.lines.append(f'[{number}/{len(found)}] {scene.out.name} {told}')
    return plan


def describe(job: Job, polygons: bool = False) -> str:
    """Tell of a map that would be made.

    Args:
        job: What is to be done.
        polygons: Whether polygons are to be written beside it.

    Returns:
        The scene's size, CRS and resolution, the windows, and the files.
    """
    place = grid_rows(job.source.grid)
    files = [
        f'{path.name} ({layer.count} x {layer.dtype})'
        for path, layer in zip(job.files, job.written)
    ] or [f'{job.out.name} (polygons)']
    if polygons:
        files.append(f'{job.out.stem}.gpkg (polygons)')
    size = [_count(raster_bytes(job)) + ' uncompressed'] if job.written else []
    there = any(path.exists() for path in job.files)
    remarks = ['replaces what is there'] if there else []
    if job.folder.exists():
        remarks.append('another run makes it, or was killed')
    grid = f'{place["size"]}, {place["CRS"]}, resolution {place["resolution"]}'
    steps = f'{len(job.tiling)} windows of {job.size}'
    return f'from {grid}: {steps} to {", ".join([*files, *size, *remarks])}'


def raster_bytes(job: Job) -> int:
    """Bytes of a map's rasters before they are compressed, and without overviews.

    Args:
        job: What is to be done.

    Returns:
        Their sum; 0 for objects, whose number nobody knows before.
    """
    pixels = job.grid.width * job.grid.height
    return sum(
        pixels * layer.count * np.dtype(layer.dtype).itemsize for layer in job.written
    )


def _check_place(job: Job) -> None:
    """Refuse a folder that cannot be written, as a run would."""
    folder = _existing(job.out.parent)
    code = 0 if os.access(folder, os.W_OK | os.X_OK) else errno.EACCES
    code = code if folder.is_dir() else errno.ENOTDIR
    # A lock that is not taken writes nothing
    with locking(job.out, FileLock(job.folder / 'lock')):
        if code:
            raise OSError(code, os.strerror(code))


def _existing(path: Path) -> Path:
    """The path, or the first of the folders above that is there."""
    return next(each for each in (path, *path.absolute().parents) if each.exists())


def _count(size: int) -> str:
    """Bytes in words."""
    for unit, length in (('TB', 1e12), ('GB', 1e9), ('MB', 1e6), ('kB', 1e3)):
        if size >= length:
            return f'{size / length:.3g} {unit}'
    return f'{size} bytes'
