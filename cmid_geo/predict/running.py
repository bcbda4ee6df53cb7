# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Devices, precisions and threads."""

import contextlib
import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

from ..options import Precision
from .predictor import SceneMapper, evaluating

#: Lightning's names of precisions, and the type that autocast uses.
PRECISIONS: dict[str, torch.dtype | None] = {
    '32-true': None,
    'bf16-mixed': torch.bfloat16,
    '16-mixed': torch.float16,
}


@contextlib.contextmanager
def running(
    mapper: SceneMapper, device: str | torch.device, precision: Precision
) -> Generator[None]:
    """Put a task on its device, in evaluation mode, and afterwards back.

    Args:
        mapper: With the task.
        device: 'auto', or torch's name of one.
        precision: See :data:`PRECISIONS`.

    Yields:
        Nothing.

    Raises:
        ValueError: If there is no such precision.
    """
    if precision not in PRECISIONS:
        raise ValueError(f'precision={precision!r}: choose one of {list(PRECISIONS)}')
    if device == 'auto':
        found = torch.accelerator.current_accelerator(check_available=True)
        device = found if found is not None else 'cpu'
    chosen, kind = torch.device(device), PRECISIONS[precision]
    first = next(mapper.task.parameters(), None)
    home = torch.device('cpu') if first is None else first.device
    try:
        mapper.to(chosen)
        with (
            evaluating(mapper),
            torch.inference_mode(),
            torch.autocast(
                chosen.type, kind or torch.bfloat16, enabled=kind is not None
            ),
        ):
            yield
    finally:
        mapper.to(home)


class Behind:
    """Does one thing after another in a thread of its own; what fails comes up here."""

    def __init__(self, limit: int = 2) -> None:
        """Initialize a new Behind instance.

        Args:
            limit: How many things may wait.
        """
        self._thread = ThreadPoolExecutor(1)
        self._waiting: deque[Future[Any]] = deque()
        self.limit = limit

    def do(self, call: Callable[..., Any], *arguments: Any) -> None:
        """Do something later; wait if there is much to do already.

        Args:
            call: What to do.
            arguments: Of the call.
        """
        self._waiting.append(self._thread.submit(call, *arguments))
        while len(self._waiting) > self.limit or self._waiting[0].done():
            self._waiting.popleft().result()
            if not self._waiting:
                break

    def __enter__(self) -> 'Behind':  # noqa: PYI034
        """Begin."""
        return self

    def __exit__(self, *error: object) -> None:
        """Wait for all; where something failed here, drop what waits."""
        if error[0] is not None:
            for each in self._waiting:
                each.cancel()
        self._thread.shutdown()
        while self._waiting and error[0] is None:
            self._waiting.popleft().result()


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
    left = iter(items)
    with ThreadPoolExecutor(workers) as pool:
        waiting = deque(
            pool.submit(read, item) for item in itertools.islice(left, ahead)
        )
        try:
            while waiting:
                result = waiting.popleft().result()
                waiting.extend(
                    pool.submit(read, item) for item in itertools.islice(left, 1)
                )
                yield result
        finally:
            for each in waiting:
                each.cancel()
