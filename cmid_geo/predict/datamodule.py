# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Maps by ``Trainer.predict``: over processes and nodes that share the windows of all scenes."""

import bisect
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from filelock import FileLock, Timeout
from lightning.pytorch import LightningDataModule
from lightning.pytorch.callbacks import BasePredictionWriter
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from ..datasets.gdal import gdal_settings
from .job import LOOK, Job, folder_lock
from .listing import Tally, Task, list_tasks
from .planning import plan_map
from .predictor import SceneMapper

#: Number of a job, and of a window in it.
Place = tuple[int, int]

#: A window of no scene, for a process that has none: all must take part to the end.
NOTHING = -1


class Windows(Dataset[dict[str, Any]]):
    """The windows of several scenes, one behind the other."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        """Initialize a new Windows instance.

        Args:
            jobs: Scenes and how they are covered.
        """
        # Not the jobs: what is written cannot be sent to the loader's processes
        self.parts = [job.reading for job in jobs]
        self.ends = list(itertools.accumulate(len(job.tiling) for job in jobs))
        self._last = 0

    def __len__(self) -> int:
        """Return the number of windows of all scenes."""
        return self.ends[-1] if self.ends else 0

    def locate(self, index: int) -> Place:
        """Find a window.

        Args:
            index: Among the windows of all scenes.

        Returns:
            Number of the scene, and of the window in it.
        """
        job = bisect.bisect_right(self.ends, index)
        return job, index - (self.ends[job - 1] if job else 0)

    def span(self, job: int, share: range) -> range:
        """Find which windows of a scene are in a share of all windows.

        Args:
            job: Number of the scene.
            share: Of the windows of all scenes.

        Returns:
            Numbers of windows in the scene.
        """
        first = self.ends[job - 1] if job else 0
        low, high = max(share.start, first), min(share.stop, self.ends[job])
        return range(low - first, max(low, high) - first)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Read a window.

        Args:
            index: Among the windows of all scenes, or :data:`NOTHING`.

        Returns:
            ``image``, ``valid``, ``index``, and ``error``: why it could not be read, else ''.
        """
        number, window = self.locate(max(index, 0))
        if number != self._last:
            # Files of a thousand scenes cannot all stay open
            self.parts[self._last].source.close()
            self._last = number
        reading, error = self.parts[number], ''
        try:
            with gdal_settings(reading.is_remote):
                image, valid = reading.read(window)
        except ValueError as failure:
            # One bad scene does not stop the others
            size, source = reading.read_size, reading.source
            error, valid = str(failure), np.zeros((size, size), bool)
            shape, several = (len(source.bands), size, size), len(source.dates)
            image = np.zeros((several, *shape) if several > 1 else shape, np.float32)
        return {
            'image': torch.from_numpy(image),
            'valid': torch.from_numpy(valid),
            'index': index,
            'error': error,
        }


class Share(DistributedSampler[int]):
    """A part of the windows, side by side: few places lie between two processes."""

    def __init__(self, dataset: Windows, num_replicas: int, rank: int) -> None:
        """Initialize a new Share instance.

        Args:
            dataset: All windows.
            num_replicas: Number of processes.
            rank: Of this process.
        """
        super().__init__(dataset, num_replicas, rank, shuffle=False)
        self.total = total = len(dataset)
        self.mine = range(
            rank * total // num_replicas, (rank + 1) * total // num_replicas
        )

    def __iter__(self) -> Iterator[int]:
        """Yield the windows in their order; one of nothing where others have some."""
        return iter(self.mine or (NOTHING,) * len(self))

    def __len__(self) -> int:
        """Return the number of windows of this process, at least one if there are any."""
        return len(self.mine) or min(self.total, 1)


class SceneWindows(LightningDataModule):
    """Scenes to be mapped by ``Trainer.predict``, see :class:`~cmid_geo.predict.MapWriter`.

    Every process gets a part of the windows, no window twice. All must see the scenes and the folder
    of the maps under the same paths.
    """

    def __init__(
        self,
        scenes: Sequence[str],
        out: str,
        size: int = 512,
        overlap: int | None = None,
        batch_size: int = 8,
        num_workers: int = 0,
        bands: Sequence[str | int] | None = None,
        zero_is_nodata: bool = False,
        overwrite: bool = False,
        format: Literal['gpkg', 'geojson'] = 'gpkg',
        nodata: float | None = None,
        file_crs: str | None = None,
    ) -> None:
        """Initialize a new SceneWindows instance.

        Args:
            scenes: See :func:`~cmid_geo.predict.map_scenes`.
            out: Folder of the maps.
            size: Side of a window in pixels.
            overlap: What neighbouring windows share; an eighth of *size* by default.
            batch_size: Windows that each process's network sees at a time.
            num_workers: Processes that read for each.
            bands: Names or positions from 1, in the task's order.
            zero_is_nodata: Whether pixels with 0 in all bands are no data even if no file says so.
            overwrite: Whether to make maps again that are there.
            format: Of maps of objects.
            nodata: Fill value that files do not declare: pixels that have it in all bands are no data.
            file_crs: The CRS of files that state none, such as EPSG:32633.
        """
        super().__init__()
        if batch_size < 1:
            raise ValueError(f'batch_size={batch_size}: give at least 1')
        self.scenes, self.out, self.overwrite = list(scenes), out, overwrite
        self.batch_size, self.num_workers, self.format = batch_size, num_workers, format
        self.cut: dict[str, Any] = {
            'size': size, 'overlap': overlap, 'bands': bands, 'zero_is_nodata': zero_is_nodata,
            'nodata': nodata, 'file_crs': file_crs,
        }  # fmt: skip
        self.tally = Tally()
        self.jobs: list[Job] = []
        self.lock: FileLock | None = None

    def setup(self, stage: str) -> None:
        """Decide, once for all processes, what is to be mapped.

        Args:
            stage: 'predict'.

        Raises:
            ValueError: If the task is no :class:`~cmid_geo.predict.SceneMapper`, or the scenes cannot
                be listed.
        """
        trainer: Any = self.trainer
        mapper = trainer.lightning_module
        if stage != 'predict' or not isinstance(mapper, SceneMapper):
            raise ValueError(
                f'SceneWindows with {type(mapper).__name__} in stage {stage!r}: maps are made by '
                'Trainer.predict(SceneMapper(task), SceneWindows(...))'
            )
        if not any(isinstance(c, BasePredictionWriter) for c in trainer.callbacks):
            raise ValueError(
                'nothing would write the maps: give Trainer(callbacks=[MapWriter()], ...)'
            )
        mapper.forget()
        self.cut['about'] = {'precision': str(trainer.precision)}
        kind, dates = mapper.outcome.kind, mapper.outcome.dates
        ending = f'.{self.format}' if kind == 'objects' else '.tif'
        tasks = list_tasks(self.scenes, self.out, dates, ending, self.cut['file_crs'])
        # What is there may change while slower processes look: one looks for all
        decided = self._decide(mapper, tasks) if trainer.is_global_zero else None
        chosen, self.tally = trainer.strategy.broadcast(decided)
        if isinstance(chosen, str):
            raise ValueError(chosen)  # noqa: TRY004
        self.jobs = [self._plan(mapper, tasks[number]) for number in chosen]

    def _plan(self, mapper: SceneMapper, task: Task) -> Job:
        return plan_map(mapper, task.scene, task.out, **self.cut)

    def _decide(
        self, mapper: SceneMapper, tasks: Sequence[Task]
    ) -> tuple[list[int] | str, Tally]:
        """Choose what is to be done, and make the folders aside; else say why nothing can be."""
        chosen: list[int] = []
        tally = Tally()
        why_not = self._lock()
        if why_not:
            return why_not, tally
        for number, task in enumerate(tasks):
            try:
                job = self._plan(mapper, task)
                if not self.overwrite and job.is_finished:
                    tally.skipped.append(task.out)
                    job.sweep(shared=True)
                    continue
                job.begin(shared=True).release()
                chosen.append(number)
            # Whatever is wrong with one scene, the others may be well
            except Exception as error:  # noqa: BLE001
                tally.failed[task.name] = str(error) or type(error).__name__
        return chosen, tally

    def _lock(self) -> str:
        """Keep other runs like this one out of the folder of maps; say why that cannot be."""
        folder = Path(self.out)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = folder_lock(folder)
            lock.acquire(timeout=LOOK)
        except Timeout:
            return f'{folder} is being written by another program: wait for it'
        except OSError as error:
            return (
                f'{folder} cannot be written ({error.strerror}): choose another folder'
            )
        self.lock = lock
        return ''

    def release(self) -> None:
        """Take away the folders aside, and let other programs at the maps."""
        if self.lock is None:
            return
        for job in self.jobs:
            job.end()
        Path(self.lock.lock_file).unlink(missing_ok=True)
        self.lock.release()
        self.lock = None

    def predict_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Return this process's windows."""
        trainer: Any = self.trainer
        windows = Windows(self.jobs)
        return DataLoader(
            windows,
            batch_size=self.batch_size,
            sampler=Share(windows, trainer.world_size, trainer.global_rank),
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
        )
