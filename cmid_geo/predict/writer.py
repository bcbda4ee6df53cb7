# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""The callback that writes what ``Trainer.predict`` finds out."""

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from torch import Tensor

from .maps import MapInMaking, make_map
from .rasters import gdal_settings
from .running import Behind
from .sharing import SceneWindows, Share


class MapWriter(BasePredictionWriter):
    """Writes maps while the network predicts, together with the other processes.

    A map of which one process had all windows appears when the last of them has come. Of the
    others each process leaves its part in a folder beside the map, and the one that had the first
    window puts them together at the end: the same map, whatever the number of processes.
    """

    def __init__(self) -> None:
        """Initialize a new MapWriter instance."""
        super().__init__('batch')
        self._making: dict[int, MapInMaking] = {}
        self._failed: dict[str, str] = {}
        self._data: SceneWindows | None = None

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin; the Trainer shall not keep what is written."""
        trainer.predict_loop.return_predictions = False
        self._data = data = _data_of(trainer)
        self._making, self._failed = {}, {}
        self._behind, self._jobs = Behind(), data.jobs

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Write a batch, while the next one is predicted.

        Args:
            trainer: With the windows.
            pl_module: The :class:`~cmid_geo.predict.SceneMapper`.
            prediction: What it says of each window.
            batch_indices: Not used: the batch tells.
            batch: Of :class:`~cmid_geo.predict.SceneWindows`.
            batch_idx: Not used.
            dataloader_idx: Not used.
        """
        self._behind.do(
            self._write, _windows(trainer), prediction, batch, trainer.global_rank,
            trainer.world_size,
        )  # fmt: skip

    def _write(
        self, windows: Any, prediction: Any, batch: Any, rank: int, world_size: int
    ) -> None:
        share = Share(windows, world_size, rank).mine
        valids: Tensor = batch['valid']
        for index, found, valid, error in zip(
            batch['index'].tolist(), prediction, valids, batch['error'], strict=True
        ):
            number, window = windows.locate(index)
            if number not in self._making:
                mine = windows.span(number, share)
                self._making[number] = make_map(self._jobs[number], mine, rank)
            making = self._making[number]
            if error:
                making.fail(error)
            making.add(window, found, valid)
            if making.is_done and making.is_whole:
                self._finish(self._making.pop(number))
            elif making.is_done:
                making.close()

    def _finish(self, making: MapInMaking, ranks: Sequence[int] = ()) -> None:
        job = making.job
        try:
            with gdal_settings(job.reading.is_remote):
                making.finish(ranks)
        # Whatever is wrong with one scene, the others may be well
        except Exception as error:  # noqa: BLE001
            self._failed[job.source.name] = str(error)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put maps together that several processes had windows of, and say what came of all."""
        with self._behind:
            pass
        trainer.strategy.barrier('parts are written')
        windows: Any = _windows(trainer)
        for number, making in sorted(self._making.items()):
            if making.is_head:
                self._finish(making, _ranks(windows, number, trainer.world_size))
            else:
                making.drop()
        trainer.strategy.barrier('maps are written')
        failed: dict[str, str] = {}
        for rank in range(trainer.world_size):
            failed |= trainer.strategy.broadcast(self._failed, src=rank)
        tally = _data_of(trainer).tally
        tally.failed |= failed
        tally.made += [job.out for job in self._jobs if job.source.name not in failed]
        self._clean()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Take away what will not be finished."""
        for making in self._making.values():
            making.drop()
        self._clean()

    def _clean(self) -> None:
        """Take the folders aside away; only the process that made them has their locks."""
        data, self._data = self._data, None
        for job, lock in zip(data.jobs, data.locks) if data is not None else ():
            job.end(lock)


def _data_of(trainer: Trainer) -> SceneWindows:
    """The scenes that a Trainer maps."""
    data = getattr(trainer, 'datamodule', None)
    if not isinstance(data, SceneWindows):
        raise ValueError(  # noqa: TRY004
            f'MapWriter with data of {type(data).__name__}: maps are made by '
            'Trainer.predict(SceneMapper(task), SceneWindows(...))'
        )
    return data


def _windows(trainer: Trainer) -> Any:
    loader: Any = trainer.predict_dataloaders
    return loader.dataset


def _ranks(windows: Any, number: int, world_size: int) -> list[int]:
    """The processes that had windows of a scene."""
    shares = [Share(windows, world_size, rank).mine for rank in range(world_size)]
    return [rank for rank, mine in enumerate(shares) if windows.span(number, mine)]
