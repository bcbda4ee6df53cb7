# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Scenes to map by ``Trainer.predict``, over processes and nodes that share the windows of all."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock
from lightning.pytorch import LightningDataModule
from lightning.pytorch.callbacks import BasePredictionWriter

from ..datasets.scene import Declared
from .api import Tally, check_counts
from .job import LOOK, Job, folder_lock, locking, plan_map
from .listing import ListedScene, list_scenes
from .predictor import SceneMapper
from .reader import Windows
from .writer import MapWriter


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
            num_workers: Threads that read for each process; 0 and 1 are one.
            bands: Names or positions from 1, in the task's order.
            zero_is_nodata: Whether pixels with 0 in all bands are no data even if no file says so.
            overwrite: Whether to make maps again that are there.
            format: Of maps of objects.
            nodata: Fill value that files do not declare: pixels that have it in all bands are no data.
            file_crs: The CRS of files that state none, such as EPSG:32633.
        """
        super().__init__()
        check_counts(batch_size=batch_size)
        self.scenes, self.out, self.overwrite = list(scenes), out, overwrite
        self.batch_size, self.num_workers, self.format = batch_size, num_workers, format
        self.options: dict[str, Any] = {
            'size': size, 'overlap': overlap, 'bands': bands, 'zero_is_nodata': zero_is_nodata,
            'nodata': nodata, 'file_crs': file_crs,
        }  # fmt: skip
        self.declared = Declared(zero_is_nodata, nodata, file_crs)
        self.tally = Tally()
        self.jobs: list[Job] = []
        self.windows: Windows | None = None
        self.lock: FileLock | None = None

    def find_scenes(self, mapper: SceneMapper) -> list[ListedScene]:
        """Find the scenes, and what their maps are called.

        Args:
            mapper: The task.

        Returns:
            The scenes, see :func:`~cmid_geo.predict.listing.list_scenes`.
        """
        product = mapper.product
        ending = f'.{self.format}' if product.kind == 'objects' else '.tif'
        return list_scenes(self.scenes, self.out, product.dates, ending, self.declared)

    def plan(
        self,
        mapper: SceneMapper,
        scene: ListedScene,
        precision: str,
        shared: bool = False,
        dry: bool = False,
    ) -> Job | None:
        """Plan the map of a scene, see :func:`~cmid_geo.predict.job.plan_map`.

        Args:
            mapper: The task.
            scene: One that was found.
            precision: Of the network's computations.
            shared: See :meth:`~cmid_geo.predict.job.Job.begin`.
            dry: Whether to leave alone what a run that was killed left beside the map.

        Returns:
            What is to be done; None if the map is there, and nothing is left beside it.
        """
        job = plan_map(
            mapper, scene.source, scene.out, **self.options, precision=precision
        )
        if self.overwrite or not job.is_finished:
            return job
        self.tally.skipped.append(scene.out)
        if not dry:
            job.sweep(shared)
        return None

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
        writers = (MapWriter, BasePredictionWriter)
        if not any(isinstance(each, writers) for each in trainer.callbacks):
            raise ValueError(
                'nothing would write the maps: give Trainer(callbacks=[MapWriter()], ...)'
            )
        mapper.forget()
        self.jobs, self.tally = [], Tally()
        # What is there may change while slower processes look: one looks for all
        why_not = ''
        if trainer.is_global_zero:
            try:
                self._decide(mapper, str(trainer.precision))
            except ValueError as error:
                why_not = str(error)
        decided = why_not, self.jobs, self.tally
        why_not, self.jobs, self.tally = trainer.strategy.broadcast(decided)
        if why_not:
            raise ValueError(why_not)
        self.windows = Windows(
            self.jobs, self.batch_size, self.num_workers, trainer.world_size, trainer.global_rank,
            trainer.strategy.root_device.type == 'cuda',
        )  # fmt: skip

    def _decide(self, mapper: SceneMapper, precision: str) -> None:
        """Lock the folder of maps, choose what is to be done, and make the maps' own folders."""
        found, folder = self.find_scenes(mapper), Path(self.out)
        lock = folder_lock(folder)
        with locking(folder, lock):
            folder.mkdir(parents=True, exist_ok=True)
            # Other runs like this one are kept out of the folder of maps
            lock.acquire(timeout=LOOK)
        self.lock = lock
        for scene in found:
            with self.tally.trying(scene.name):
                job = self.plan(mapper, scene, precision, shared=True)
                if job is not None:
                    job.begin(shared=True).release()
                    self.jobs.append(job)

    def predict_dataloader(self) -> Windows | None:
        """Return this process's windows."""
        return self.windows

    def teardown(self, stage: str) -> None:
        """Take away the maps' folders, and let other programs at the maps.

        Args:
            stage: Not used.
        """
        if self.lock is None:
            return
        for job in self.jobs:
            job.end()
        Path(self.lock.lock_file).unlink(missing_ok=True)
        self.lock.release()
        self.lock = None

    def on_exception(self, exception: BaseException) -> None:
        """Take away what will not be finished.

        Args:
            exception: Not used.
        """
        self.teardown('predict')
