# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""The callback that writes what ``Trainer.predict`` finds out."""

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from torch import Tensor
from tqdm import tqdm

from ..datasets.gdal import gdal_settings
from .datamodule import SceneWindows, Share, Windows
from .maps import MapInMaking, make_map
from .running import Behind


class MapWriter(BasePredictionWriter):
    """Writes maps while the network predicts, together with the other processes.

    A map of which one process had all windows appears when the last of them has come. Of the
    others each process leaves its part in a folder beside the map, and the one that had the first
    window puts them together at the end: the same map, whatever the number of processes.
    """

    def __init__(self, progress: bool = False) -> None:
        """Initialize a new MapWriter instance.

        Args:
            progress: Whether to show a bar, with pixels a second of all processes together.
        """
        super().__init__('batch')
        self.progress = progress
        self._data: SceneWindows | None = None
        self._making: dict[int, MapInMaking] = {}
        self._made: set[int] = set()
        self._failed: dict[int, str] = {}

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin; the Trainer shall not keep what is written."""
        trainer.predict_loop.return_predictions = False
        self._data = data = _data_of(trainer)
        loader: Any = trainer.predict_dataloaders
        self._windows: Windows = loader.dataset
        self._shares = [
            Share(self._windows, trainer.world_size, rank).mine
            for rank in range(trainer.world_size)
        ]
        self._rank, self._behind, self._done = trainer.global_rank, Behind(), 0
        self._making, self._made, self._failed = {}, set(), {}
        pixels = sum(job.pixels for job in data.jobs)
        shown = self.progress and trainer.is_global_zero
        self._bar = tqdm(total=pixels, unit='px', unit_scale=True, disable=not shown)

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
        self._behind.do(self._write, prediction, batch)
        # The other processes have as many windows
        self._done += len(batch['index'])
        share = min(self._done / max(len(self._shares[self._rank]), 1), 1)
        self._bar.update(round(share * (self._bar.total or 0)) - self._bar.n)

    def _write(self, prediction: Any, batch: Any) -> None:
        names = 'valid', 'image', 'error'
        columns = [batch[name] for name in names]
        for index, found, *parts in zip(
            batch['index'].tolist(), prediction, *columns, strict=True
        ):
            number, window = self._windows.locate(max(index, 0))
            if index < 0 or number in self._failed:
                continue
            # Whatever is wrong with one scene, the others may be well
            try:
                self._add(number, window, found, *parts)
            except Exception as failure:  # noqa: BLE001
                self._give_up(number, str(failure) or type(failure).__name__)

    def _add(
        self,
        number: int,
        window: int,
        found: Any,
        valid: Tensor,
        image: Tensor,
        error: str,
    ) -> None:
        """Add a window to its map; the last one finishes the map, or this process's part."""
        if number not in self._making:
            mine = self._windows.span(number, self._shares[self._rank])
            job = self._jobs[number]
            self._making[number] = make_map(job, mine, self._rank)
        making = self._making[number]
        if error:
            making.fail(error)
        making.add(window, found, valid, image)
        if making.is_done and making.is_whole:
            self._finish(number)
        elif making.is_done:
            making.close()

    @property
    def _jobs(self) -> Any:
        return [] if self._data is None else self._data.jobs

    def _give_up(self, number: int, why: str) -> None:
        """Throw away what there is of a map, and tell the processes that share it."""
        self._failed[number] = why
        making = self._making.pop(number, None)
        if making is not None:
            making.fail(why)
            making.drop()
            making.close()

    def _finish(self, number: int, ranks: Sequence[int] = ()) -> None:
        making = self._making[number]
        try:
            with gdal_settings(making.job.reading.is_remote):
                making.finish(ranks)
            self._made.add(number)
            del self._making[number]
        except Exception as failure:  # noqa: BLE001
            self._give_up(number, str(failure) or type(failure).__name__)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put maps together that several processes had windows of, and say what came of all."""
        with self._behind:
            pass
        trainer.strategy.barrier('parts are written')
        for number, making in sorted(self._making.items()):
            if making.is_head and making.is_done:
                spans = [self._windows.span(number, share) for share in self._shares]
                self._finish(number, [rank for rank, span in enumerate(spans) if span])
            else:
                making.drop()
        trainer.strategy.barrier('maps are written')
        made: set[int] = set()
        failed: dict[int, str] = {}
        for rank in range(trainer.world_size):
            theirs = trainer.strategy.broadcast((self._made, self._failed), src=rank)
            made, failed = made | theirs[0], failed | theirs[1]
        tally = _data_of(trainer).tally
        for number, job in enumerate(self._jobs):
            if number in made:
                tally.made.append(job.out)
            else:
                why = failed.get(number, 'not all of its windows were predicted')
                tally.failed[job.source.name] = why
        self._clean(trainer)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Take away what will not be finished."""
        if self._data is not None:
            self._behind.__exit__(type(exception))
            for making in self._making.values():
                making.drop()
        self._clean(trainer)

    def _clean(self, trainer: Trainer) -> None:
        if self._data is not None:
            self._bar.close()
            for job in self._jobs:
                job.source.close()
        self._data, self._making = None, {}
        data = getattr(trainer, 'datamodule', None)
        if isinstance(data, SceneWindows):
            data.release()


def _data_of(trainer: Trainer) -> SceneWindows:
    """The scenes that a Trainer maps."""
    data = getattr(trainer, 'datamodule', None)
    if not isinstance(data, SceneWindows):
        raise ValueError(  # noqa: TRY004
            f'MapWriter with data of {type(data).__name__}: maps are made by '
            'Trainer.predict(SceneMapper(task), SceneWindows(...))'
        )
    return data
