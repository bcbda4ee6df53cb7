# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Writing of maps while the network predicts, by one process or several together."""

import contextlib
import json
import warnings
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from tqdm import tqdm

from ..datasets.gdal import gdal_settings
from .api import check_counts, reason
from .blending import Blender, Spill
from .cog import RasterFile
from .job import Job
from .pca import write_components
from .predictor import SceneMapper
from .reader import Batch, Windows
from .vectors import OBJECT, merge_objects, objects_of_window, write_objects

#: How many windows with data tell whether a scene's values fit.
WATCHED = 4

#: How many batches wait to be written.
WAITING = 2

#: Why a scene has no map where the Trainer was told to stop before its end.
UNFINISHED = 'not all of its windows were predicted'


def warn_of_clamping(name: str, values: Tensor, limits: Sequence[Any]) -> None:
    """Warn where most of a scene's values would be clamped.

    Args:
        name: Of the scene.
        values: Raw values (..., bands, pixels) that are valid.
        limits: Raw values of each band, or of all, that become 0 and 1.

    Warns:
        UserWarning: If so.
    """
    low, high = (torch.tensor(limit).view(-1, 1) for limit in limits)
    outside = ((values < low) | (values > high)).double().mean().item()
    if outside <= 0.5:
        return
    # One that all bands share is said once
    low, high = (
        each.flatten().tolist() if len(each.unique()) > 1 else each[0].item()
        for each in (low, high)
    )
    warnings.warn(
        f'{100 * outside:.0f} % of the values of {name} in its first windows, from {values.min():g} to '
        f'{values.max():g}, lie outside of {low} to {high}, which the network knows as 0 and 1, and are '
        'clamped: the map can say little. Give the raw values of this scene that stand for 0 and 1 by '
        '--low and --high (low= and high=)',
        stacklevel=2,
    )


class MapInMaking(ABC):
    """A map of which this process brings some windows, or all."""

    def __init__(self, job: Job, mine: range, rank: int = 0) -> None:
        """Initialize a new MapInMaking instance.

        Args:
            job: What is to be done.
            mine: Numbers of the windows that this process brings.
            rank: Of the process.
        """
        self.job, self.left = job, len(mine)
        self.is_whole = len(mine) == len(job.tiling)
        # The process that brings the first window puts the map together
        self.is_head = 0 in mine
        self.spill = Spill(job.folder / f'rank_{rank}.bin')
        # Values of the first windows with data; one process of all tells
        self._seen: list[Tensor] = []
        self._watches = self.is_head and None not in job.notes['limits']

    def add(self, window: int, prediction: Any, valid: Tensor, image: Tensor) -> None:
        """Add what the network says of a window.

        Args:
            window: Its number.
            prediction: A tensor, or a dictionary of objects; None where nothing is valid.
            valid: Where the scene holds data, with the margin that was read.
            image: What the network was given: raw values, a warning comes where it knows others.
        """
        self.left -= 1
        if self._watches and valid.any():
            self._seen.append(image[..., valid].cpu())
        if self._seen and (self.left == 0 or len(self._seen) == WATCHED):
            name, limits = self.job.source.name, self.job.notes['limits']
            warn_of_clamping(name, torch.cat(self._seen, -1), limits)
            self._watches, self._seen = False, []
        inner = slice(self.job.margin, self.job.margin + self.job.size)
        self._take(window, prediction, valid[inner, inner])

    def drop(self) -> None:
        """Close the files of a map that will not be."""
        self.spill.close()

    @abstractmethod
    def _take(self, window: int, prediction: Any, valid: Tensor) -> None:
        """Take what the network says of a window."""

    @abstractmethod
    def finish(self, spills: Sequence[Spill] = ()) -> list[Path]:
        """Write the files.

        Args:
            spills: What all processes left, if there are several.

        Returns:
            The files, in the folder in which the map is made.
        """


class RasterInMaking(MapInMaking):
    """A map of pixels or cells."""

    def __init__(self, job: Job, mine: range, rank: int = 0) -> None:
        """Open the layers, if this process puts them together."""
        super().__init__(job, mine, rank)
        self._blender = Blender(job.tiling, self._finish, self.spill, mine.__contains__)
        named = zip(job.product.layers, job.files, strict=True) if self.is_head else ()
        self._files = [
            RasterFile(job.folder, path.name, layer, job.grid) for layer, path in named
        ]

    def _finish(self, values: Tensor, valid: Tensor) -> list[np.ndarray]:
        return [layer.finish(values, valid) for layer in self.job.product.layers]

    def _take(self, window: int, prediction: Any, valid: Tensor) -> None:
        stride, side = self.job.tiling.stride, self.job.tiling.down.size
        if stride > 1:
            # A cell with any data has a vector
            valid = valid.view(side, stride, side, stride).any(dim=(1, 3))
        if prediction is None:
            channels = self.job.product.channels or 1
            prediction = torch.zeros(channels, 1, 1).expand(-1, side, side)
        for region, arrays in self._blender.add(window, prediction, valid):
            if self.is_head:
                self._write(region.key, arrays)
            else:
                self.spill.put(region.key, *arrays)

    def _write(self, corner: tuple[int, int], arrays: Sequence[np.ndarray]) -> None:
        for file, array in zip(self._files, arrays, strict=True):
            file.write(corner, array)

    def finish(self, spills: Sequence[Spill] = ()) -> list[Path]:
        """Write what others finished, and what lies between; close the layers."""
        for spill in spills:
            for key in [key for key in spill.places if len(key) == 2]:
                self._write(key, spill.take(key))
        for region, arrays in self._blender.join(spills):
            self._write(region.key, arrays)
        if components := self.job.product.components:
            self._files = [write_components(self._files[0], components)]
        return [path for file in self._files for path in file.close(self.job.notes)]

    def drop(self) -> None:
        """Close the layers too."""
        super().drop()
        for file in self._files:
            file.drop()


class ObjectsInMaking(MapInMaking):
    """A map of objects: polygons with class and score, on disk until all windows have come."""

    def _take(self, window: int, prediction: Any, valid: Tensor) -> None:
        if prediction is None:
            return
        job, (row, col) = self.job, self.job.tiling.corner(window)
        found = objects_of_window(
            prediction, col, row, job.size, job.grid.width, job.grid.height,
            threshold=job.product.threshold,
        )  # fmt: skip
        centres = found['corners'].mean(axis=1) - (col, row)
        x, y = centres.astype(int).clip(0, job.size - 1).T
        self.spill.put((window,), found[valid.cpu().numpy()[y, x]])

    def finish(self, spills: Sequence[Spill] = ()) -> list[Path]:
        """Merge what all windows hold."""
        found = [np.zeros(0, OBJECT)]
        for spill in spills or [self.spill]:
            found += [spill.take(key)[0] for key in list(spill.places)]
        job, path = self.job, self.job.folder / self.job.out.name
        merged = merge_objects(np.concatenate(found), job.product.nms_thresh)
        notes = json.dumps(job.notes, sort_keys=True)
        write_objects(merged, path, job.grid, job.product.classes, notes)
        return [path]


class Maps:
    """The maps of several scenes, written in a thread while the network predicts.

    What fails of a scene stops its map, not the others.

    Attributes:
        made: Numbers of the scenes whose map is there.
        failed: Numbers of the others of which something failed, and what.
    """

    def __init__(self, windows: Windows, shown: bool | str = False) -> None:
        """Initialize a new Maps instance.

        Args:
            windows: Of this process.
            shown: Whether to show a bar, with pixels a second of all processes together; or what
                to call it.
        """
        self.windows = windows
        self.made: set[int] = set()
        self.failed: dict[int, Exception] = {}
        self._making: dict[int, MapInMaking] = {}
        self._thread = ThreadPoolExecutor(1)
        self._waiting: deque[Future[None]] = deque()
        self._done = 0
        grids = (job.source.grid for job in windows.jobs)
        pixels = sum(grid.width * grid.height for grid in grids)
        name = shown if isinstance(shown, str) else None
        self._bar = tqdm(total=pixels, unit='px', unit_scale=True, disable=not shown, desc=name)  # fmt: skip

    def add(self, predictions: Tensor | list[Any], batch: Batch) -> None:
        """Write a batch, while the next one is predicted.

        Args:
            predictions: Of each window.
            batch: Of the windows.
        """
        self._waiting.append(self._thread.submit(self._write, predictions, batch))
        if len(self._waiting) > WAITING:
            self._waiting.popleft().result()
        # The other processes have as many windows
        self._done += len(batch['index'])
        pixels = (self._bar.total or 0) * self._done // len(self.windows.mine)
        self._bar.update(pixels - self._bar.n)

    def _write(self, predictions: Tensor | list[Any], batch: Batch) -> None:
        columns = itemgetter('index', 'error', 'valid', 'image')(batch)
        for index, *window in zip(*columns, predictions, strict=True):
            number, place = self.windows.locate(index)
            if number not in self.failed:
                self._try(number, self._add, place, *window)

    def _try(self, number: int, call: Any, *arguments: Any) -> None:
        """Do something for a scene; give its map up where that fails."""
        try:
            call(number, *arguments)
        # Whatever is wrong with one scene, the others may be well
        except Exception as error:  # noqa: BLE001
            self.failed[number] = error
            if number in self._making:
                self._making.pop(number).drop()

    def _add(
        self,
        number: int,
        window: int,
        error: Exception | None,
        valid: Tensor,
        image: Tensor,
        found: Any,
    ) -> None:
        """Add a window to its map; the last one finishes the map, or this process's part."""
        if error is not None:
            raise error
        if number not in self._making:
            job, rank = self.windows.jobs[number], self.windows.rank
            kind = ObjectsInMaking if job.product.kind == 'objects' else RasterInMaking
            self._making[number] = kind(job, self.windows.span(number, rank), rank)
        making = self._making[number]
        making.add(window, found, valid, image)
        if making.left == 0 and making.is_whole:
            self._finish(number)
        elif making.left == 0:
            making.spill.close()

    def _finish(self, number: int, spills: Sequence[Spill] = ()) -> None:
        making = self._making[number]
        with gdal_settings():
            making.job.publish(making.finish(spills))
        self.made.add(number)
        for spill in (self._making.pop(number).spill, *spills):
            spill.close()

    def wait(self) -> dict[int, Spill]:
        """Wait until all is written.

        Returns:
            Of maps that other processes have windows of too, what this one leaves for the one that
            puts them together.
        """
        while self._waiting:
            self._waiting.popleft().result()
        making = self._making.items()
        self.failed |= {n: ValueError(UNFINISHED) for n, each in making if each.left}
        return {n: each.spill for n, each in making if not each.left}

    def put_together(
        self, spills: Sequence[dict[int, Spill]], failed: set[int]
    ) -> None:
        """Finish the maps that this process puts together.

        Args:
            spills: Of all processes, see :meth:`wait`.
            failed: Numbers of the scenes of which any process failed.
        """
        for number, making in sorted(self._making.items()):
            if making.is_head and number not in failed:
                parts = [each[number] for each in spills if number in each]
                self._try(number, self._finish, parts)

    def close(self) -> None:
        """Give up what is not finished."""
        self._thread.shutdown(cancel_futures=True)
        for making in self._making.values():
            making.drop()
        self._making = {}
        self._bar.close()


def write_job(
    mapper: SceneMapper,
    job: Job,
    batch_size: int,
    num_workers: int,
    progress: bool | str = False,
) -> None:
    """Make one map with one process.

    Args:
        mapper: On its device, in evaluation mode.
        job: What is to be done.
        batch_size: Windows that the network sees at a time.
        num_workers: Threads that read.
        progress: Whether to show a bar, or what to call it.

    Raises:
        ValueError: If a number is off, or a file cannot be read or written.
    """
    check_counts(batch_size=batch_size, num_workers=num_workers)
    device = mapper.device
    windows = Windows([job], batch_size, num_workers, pin_memory=device.type == 'cuda')
    shown = job.out.name if progress is True else progress
    lock = job.begin()
    try:
        with contextlib.closing(Maps(windows, shown)) as maps:
            for number, batch in enumerate(windows):
                moved = mapper.transfer_batch_to_device(batch, device, 0)
                maps.add(mapper.predict_step(moved, number), batch)
                if maps.failed:
                    break
            maps.wait()
    finally:
        job.end(lock)
    if maps.failed:
        raise maps.failed[0]


class MapWriter(Callback):
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
        self.progress = progress
        self._maps: Any = None

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin; the Trainer shall not keep what is written."""
        trainer.predict_loop.return_predictions = False
        windows = getattr(_data_of(trainer), 'windows', None)
        if not isinstance(windows, Windows):
            raise ValueError(  # noqa: TRY004
                f'MapWriter with data of {type(_data_of(trainer)).__name__}: maps are made by '
                'Trainer.predict(SceneMapper(task), SceneWindows(...))'
            )
        self._maps = Maps(windows, self.progress and trainer.is_global_zero)

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Write a batch, while the next one is predicted.

        Args:
            trainer: With the windows.
            pl_module: The :class:`~cmid_geo.predict.SceneMapper`.
            outputs: What it says of each window.
            batch: Of :class:`~cmid_geo.predict.SceneWindows`.
            batch_idx: Not used.
            dataloader_idx: Not used.
        """
        self._maps.add(outputs, batch)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put maps together that several processes had windows of, and say what came of all."""
        maps, tally = self._maps, _data_of(trainer).tally
        spills = _gather(trainer, maps.wait())
        maps.put_together(spills, set().union(*_gather(trainer, set(maps.failed))))
        made = set().union(*_gather(trainer, maps.made))
        told = {number: reason(error) for number, error in maps.failed.items()}
        whys = {n: why for each in _gather(trainer, told) for n, why in each.items()}
        for number, job in enumerate(maps.windows.jobs):
            if number in made:
                tally.made.append(job.out)
            else:
                tally.failed[job.source.name] = whys.get(number, UNFINISHED)
        self._close()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Give up what will not be finished."""
        self._close()

    def _close(self) -> None:
        if self._maps is not None:
            self._maps.close()
        # Files and threads would stay, and the writer could not be pickled
        self._maps = None


def _data_of(trainer: Trainer) -> Any:
    return getattr(trainer, 'datamodule', None)


def _gather[Value](trainer: Trainer, value: Value) -> list[Value]:
    """What each process has, once all have it."""
    ranks = range(trainer.world_size)
    return [trainer.strategy.broadcast(value, src=rank) for rank in ranks]
