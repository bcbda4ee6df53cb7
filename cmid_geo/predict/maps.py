# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""One map in the making: windows come, files go."""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .blending import Blender
from .cog import RasterFile
from .job import Job
from .pca import write_components
from .ranges import RangeWatch
from .shelf import Shelf
from .tiling import Region
from .vectors import Objects, merge_objects, objects_of_window, write_objects


@dataclass
class MapInMaking(ABC):
    """A map of which this process brings some windows, or all.

    Attributes:
        job: What is to be done.
        mine: Numbers of the windows that this process brings.
        rank: Of the process.
        error: Why the map cannot be made.
    """

    job: Job
    mine: range
    rank: int = 0
    error: str | None = None
    _left: int = field(init=False)
    _shelf: Shelf = field(init=False)
    _watch: RangeWatch = field(init=False)

    def __post_init__(self) -> None:
        """Open what is written to."""
        self._left = len(self.mine)
        # One process of all tells
        limits = self.job.about['limits'] if self.is_head else (None, None)
        self._watch = RangeWatch(self.job.source.name, *limits)
        self._shelf = Shelf(self.job.aside / f'rank_{self.rank}.bin')

    @property
    def is_whole(self) -> bool:
        """Whether this process brings all windows."""
        return len(self.mine) == len(self.job.tiling)

    @property
    def is_head(self) -> bool:
        """Whether this process puts the map together: it brings the first window."""
        return 0 in self.mine

    @property
    def is_done(self) -> bool:
        """Whether this process has brought all its windows."""
        return self._left == 0

    def add(self, window: int, prediction: Any, valid: Tensor, image: Tensor) -> None:
        """Add what the network says of a window.

        Args:
            window: Its number.
            prediction: A tensor, or a dictionary of objects; None where nothing is valid.
            valid: Where the scene holds data, with the margin that was read.
            image: What the network was given: raw values, a warning comes where it knows others.
        """
        self._left -= 1
        if self.error is None:
            self._watch.see(image, valid, self.is_done)
            margin, side = self.job.reading.margin, self.job.reading.size
            inner = slice(margin, margin + side)
            self._take(window, prediction, valid[inner, inner])

    def fail(self, error: str) -> None:
        """Give the map up; windows that still come are thrown away.

        Args:
            error: Why.
        """
        self.error = self.error or error

    def close(self) -> None:
        """Leave on the shelf what the process that puts the map together needs."""
        self._shelf.close(error=self.error)

    def finish(self, ranks: Sequence[int] = ()) -> list[Path]:
        """Put the map together.

        Args:
            ranks: All processes that brought windows, if there are several; each has closed.

        Returns:
            The finished files.

        Raises:
            ValueError: If the map had to be given up.
        """
        opened = [Shelf.open(self.job.aside / f'rank_{rank}.bin') for rank in ranks]
        errors = [self.error, *(about.get('error') for _, about in opened)]
        if self._left:
            errors.append(
                f'{self._left} windows of {self.job.source.name} did not come'
            )
        for error in filter(None, errors):
            self.drop()
            raise ValueError(error)
        return self.job.publish(self._put_together([shelf for shelf, _ in opened]))

    def drop(self) -> None:
        """Close files of a map that will not be."""

    @abstractmethod
    def _take(self, window: int, prediction: Any, valid: Tensor) -> None:
        """Take what the network says of a window."""

    @abstractmethod
    def _put_together(self, shelves: Sequence[Shelf]) -> list[Path]:
        """Write the files, with what other processes left on their shelves."""


class RasterInMaking(MapInMaking):
    """A map of pixels or cells."""

    def __post_init__(self) -> None:
        """Open the layers, if this process puts them together."""
        super().__post_init__()
        job = self.job
        self._blender = Blender(
            job.tiling, self._finish, self._shelf, lambda window: window in self.mine
        )
        self._files = []
        named = zip(job.outcome.layers, job.files, strict=True)
        for layer, path in named if self.is_head else ():
            self._files.append(RasterFile(job.aside, path.name, layer, job.grid))

    def _finish(self, values: Tensor, valid: Tensor) -> list[np.ndarray]:
        return [layer.finish(values, valid) for layer in self.job.outcome.layers]

    def _take(self, window: int, prediction: Any, valid: Tensor) -> None:
        stride, side = self.job.tiling.stride, self.job.tiling.down.size
        if stride > 1:
            # A cell with any data has a vector
            cells = valid.view(side, stride, side, stride)
            valid = cells.any(dim=3).any(dim=1)
        if prediction is None:
            channels = self.job.outcome.channels or 1
            prediction = torch.zeros(channels, 1, 1).expand(-1, side, side)
        for region, arrays in self._blender.add(window, prediction, valid):
            if self.is_head:
                self._write(region.rows, region.cols, arrays)
            else:
                self._shelf.put(region.key, *arrays)

    def _write(self, rows: Any, cols: Any, arrays: Sequence[np.ndarray]) -> None:
        for file, array in zip(self._files, arrays, strict=True):
            file.write(rows, cols, array)

    def _put_together(self, shelves: Sequence[Shelf]) -> list[Path]:
        for shelf in shelves:
            for key in shelf:
                if len(key) == 2:
                    arrays = shelf.take(key)
                    (top, left), (high, wide) = key, arrays[0].shape[1:]
                    self._write((top, top + high), (left, left + wide), arrays)
        joined: Iterator[tuple[Region, list[np.ndarray]]] = self._blender.join(shelves)
        for region, arrays in joined:
            self._write(region.rows, region.cols, arrays)
        if self.job.components:
            self._files = [write_components(self._files[0], self.job.components)]
        closed = [file.close(self.job.about) for file in self._files]
        beside = [path.with_name(f'{path.name}.aux.xml') for path in closed]
        return [*(path for path in beside if path.exists()), *closed]

    def drop(self) -> None:
        """Close files of a map that will not be."""
        for file in self._files:
            file.drop()


class ObjectsInMaking(MapInMaking):
    """A map of objects: polygons with class and score."""

    def __post_init__(self) -> None:
        """Begin with none."""
        super().__post_init__()
        self._found: list[Objects] = []

    def _take(self, window: int, prediction: Any, valid: Tensor) -> None:
        if prediction is None:
            return
        grid, (row, col) = self.job.source.grid, self.job.tiling.corner(window)
        found = objects_of_window(
            prediction, col, row, self.job.reading.size, grid.width, grid.height,
            threshold=self.job.threshold,
        )  # fmt: skip
        centres = found.corners.mean(axis=1) - (col, row)
        x, y = centres.astype(int).clip(0, self.job.reading.size - 1).T
        found = found.take(valid.cpu().numpy()[y, x])
        if self.is_whole:
            self._found.append(found)
        else:
            arrays = found.corners, found.scores, found.labels, found.cut
            self._shelf.put((window,), *arrays)

    def _put_together(self, shelves: Sequence[Shelf]) -> list[Path]:
        for shelf in shelves:
            self._found += [Objects(*shelf.take(key)) for key in shelf]
        path = self.job.aside / self.job.out.name
        found = Objects.join(self._found)
        merged = merge_objects(found, self.job.outcome.nms_thresh)
        about = json.dumps(self.job.about, sort_keys=True)
        write_objects(merged, path, self.job.grid, self.job.outcome.classes, about)
        return [path]


def make_map(job: Job, mine: range, rank: int = 0) -> MapInMaking:
    """Begin a map.

    Args:
        job: What is to be done.
        mine: Numbers of the windows that this process brings.
        rank: Of the process.

    Returns:
        The map, to which windows are added.
    """
    kind = ObjectsInMaking if job.outcome.kind == 'objects' else RasterInMaking
    return kind(job, mine, rank)
