# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Windows of scenes, read ahead in threads and joined to batches."""

import bisect
import itertools
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from ..datasets.reader import SceneReader
from .job import Job

#: What is known of a window, or of each window of a batch, see :class:`Windows`.
Batch = dict[str, Any]


class Windows:
    """Batches of the windows of several scenes, which processes share without overlap and gap.

    Each process has windows side by side: few places lie between two processes. Iterating yields
    dictionaries, a value a window in each:

    * ``image`` (batch, ..., bands, side, side) float32, raw, and ``valid`` (batch, side, side);
    * ``index``: which of the windows of all scenes it is;
    * ``error``: why it could not be read, else None;
    * ``has_data``: whether any pixel is valid, which is the same for all windows of a batch.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        batch_size: int = 1,
        num_workers: int = 1,
        world_size: int = 1,
        rank: int = 0,
        pin_memory: bool = False,
    ) -> None:
        """Initialize a new Windows instance.

        Args:
            jobs: Scenes and how windows cover them.
            batch_size: Windows a batch, at most.
            num_workers: Threads that read; at least one does.
            world_size: Number of processes that share the windows.
            rank: Of this process.
            pin_memory: Whether batches are copied to a GPU.
        """
        self.jobs, self.rank = jobs, rank
        self.batch_size, self.num_workers = batch_size, max(num_workers, 1)
        self.pin_memory = pin_memory
        # Where each scene's windows begin, and the last one's end
        self.starts = [0, *itertools.accumulate(len(job.tiling) for job in jobs)]
        self.parts = split(self.starts[-1], world_size)
        #: Windows of this process.
        self.mine = self.parts[rank]
        # Files of a thousand scenes cannot all stay open
        most = max((len(job.source.files) for job in jobs), default=0)
        self._thread = _ThreadReader(most)

    def locate(self, index: int) -> tuple[int, int]:
        """Find a window.

        Args:
            index: Among the windows of all scenes.

        Returns:
            Number of the scene, and of the window in it.
        """
        job = bisect.bisect_right(self.starts, index) - 1
        return job, index - self.starts[job]

    def span(self, job: int, rank: int) -> range:
        """Find which windows of a scene a process has.

        Args:
            job: Number of the scene.
            rank: Of the process.

        Returns:
            Numbers of windows in the scene.
        """
        (first, end), part = self.starts[job : job + 2], self.parts[rank]
        low, high = max(part.start, first), min(part.stop, end)
        return range(low - first, max(low, high) - first)

    def read(self, index: int) -> Batch:
        """Read a window, through files that this thread keeps open.

        Args:
            index: Among the windows of all scenes.

        Returns:
            The window.
        """
        number, window = self.locate(index)
        job, error = self.jobs[number], None
        try:
            image, valid = job.read(window, self._thread.reader)
        except ValueError as failure:
            # One bad scene does not stop the others
            error, side = failure, job.read_size
            image = np.zeros((*job.source.shape, side, side), np.float32)
            valid = np.zeros((side, side), bool)
        has_data = bool(valid.any())
        return {'image': image, 'valid': valid, 'index': index, 'error': error, 'has_data': has_data}  # fmt: skip

    def __iter__(self) -> Iterator[Batch]:
        """Yield batches, those of windows without data apart."""
        held: defaultdict[Any, list[Batch]] = defaultdict(list)
        ahead = 2 * self.batch_size + self.num_workers
        for window in read_ahead(self.read, self.mine, self.num_workers, ahead):
            # Scenes of any task need not have as many bands
            alike = window['has_data'], window['image'].shape
            held[alike].append(window)
            if len(held[alike]) == self.batch_size:
                yield self._join(held.pop(alike))
        yield from map(self._join, held.values())

    def _join(self, windows: Sequence[Batch]) -> Batch:
        batch: Batch = {name: [each[name] for each in windows] for name in windows[0]}
        for name in ('image', 'valid'):
            joined = torch.from_numpy(np.stack(batch[name]))
            # Pinned memory is copied while the GPU computes
            batch[name] = joined.pin_memory() if self.pin_memory else joined
        return batch


class _ThreadReader(threading.local):
    """Open files of each thread: GDAL's handles serve one at a time."""

    def __init__(self, limit: int) -> None:
        """Begin in another thread."""
        self.reader = SceneReader(limit)


def split(total: int, parts: int) -> list[range]:
    """Cut a range into parts that differ by one at most.

    Args:
        total: Its length.
        parts: How many parts.

    Returns:
        The parts in their order; empty ones where there are more than *total*.
    """
    cuts = [part * total // parts for part in range(parts + 1)]
    return [range(*pair) for pair in itertools.pairwise(cuts)]


def read_ahead[Item, Result](
    read: Callable[[Item], Result], items: Iterable[Item], workers: int, ahead: int
) -> Iterator[Result]:
    """Call a function in threads, in order, some calls ahead.

    Args:
        read: The function.
        items: What to call it with.
        workers: How many threads.
        ahead: How many results may wait.

    Yields:
        Results, in the order of the items.
    """
    pool, waiting = ThreadPoolExecutor(workers), deque[Future[Result]]()
    try:
        for item in items:
            waiting.append(pool.submit(read, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
