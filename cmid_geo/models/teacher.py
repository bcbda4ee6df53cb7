# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""What remembers from step to step: the teacher, the queue and the schedules they follow."""

import copy
import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .encoder import Encoder


def make_teacher(student: Encoder) -> Encoder:
    """Copy a student into a teacher that no gradient reaches.

    Args:
        student: The student.

    Returns:
        An encoder of its own memory, in training mode like the student, so that its batch
        norms gather the statistics of whole views.
    """
    return copy.deepcopy(student).requires_grad_(False)


@torch.no_grad()
def update_teacher(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Move each parameter of the teacher towards the student's.

    .. code-block:: python

        teacher = momentum * teacher + (1 - momentum) * student

    Buffers stay: the teacher's batch norms count whole views, the student's hidden ones.

    Args:
        teacher: Moves.
        student: Stays.
        momentum: Share of the old teacher, from 0 to 1.
    """
    torch._foreach_lerp_(
        list(teacher.parameters()), list(student.parameters()), 1 - momentum
    )


class KeyQueue(nn.Module):
    """The last keys of the teacher, a ring of fixed size that checkpoints keep.

    Attributes:
        keys: Unit vectors (size, dim); the first :attr:`filled` rows hold keys.
        seen: Number of keys ever written.
    """

    keys: Tensor
    seen: Tensor

    def __init__(self, size: int, dim: int) -> None:
        """Initialize a new KeyQueue instance.

        Args:
            size: Number of keys to keep.
            dim: Length of a key.

        Raises:
            ValueError: If *size* is not positive.
        """
        super().__init__()
        if size < 1:
            raise ValueError(
                f'queue_size={size}: a queue needs at least one key, use 1 or more'
            )
        self.register_buffer('keys', torch.zeros(size, dim))
        self.register_buffer('seen', torch.zeros((), dtype=torch.long))

    @property
    def filled(self) -> Tensor:
        """Number of rows that hold keys, as a tensor: to ask for its value waits for the device."""
        return self.seen.clamp(max=len(self.keys))

    @property
    def cursor(self) -> Tensor:
        """Row of the next key, as a tensor."""
        return self.seen % len(self.keys)

    @torch.no_grad()
    def enqueue(self, keys: Float[Tensor, 'new dim']) -> None:
        """Write keys over the oldest ones; any number of them, wrapping at the end.

        Args:
            keys: Unit vectors, oldest first. Of more than the queue holds the last stay.
        """
        size, new = len(self.keys), len(keys)
        start = self.seen + max(new - size, 0)
        keys = keys[-size:]
        rows = (start + torch.arange(len(keys), device=self.keys.device)) % size
        self.keys.index_copy_(0, rows, keys.to(self.keys.dtype))
        self.seen += new


def cosine(progress: float, start: float, end: float) -> float:
    """Half a cosine from *start* to *end*.

    Args:
        progress: Share of the way, from 0 to 1.
        start: Value at 0.
        end: Value at 1.

    Returns:
        The value on the way.
    """
    return (
        end + (start - end) * (1 + math.cos(math.pi * min(max(progress, 0.0), 1.0))) / 2
    )


def momentum_at(step: int, total: int, start: float = 0.996, end: float = 1.0) -> float:
    """Momentum of the teacher at an optimizer step.

    Args:
        step: Steps taken so far.
        total: Steps of the whole run.
        start: Momentum at the first step.
        end: Momentum at the end.

    Returns:
        The momentum, on a cosine.
    """
    return cosine(step / max(total, 1), start, end)


def temperature_at(
    step: int, warmup: int, start: float = 0.04, end: float = 0.07
) -> float:
    """Temperature of the teacher's assignments at an optimizer step.

    Args:
        step: Steps taken so far.
        warmup: Steps of the linear rise.
        start: Temperature at the first step.
        end: Temperature after the rise.

    Returns:
        The temperature.
    """
    return start + (end - start) * min(step / max(warmup, 1), 1.0)


def rate_at(
    step: int, total: int, warmup: int, rate: float, end: float = 1e-6
) -> float:
    """Learning rate at an optimizer step.

    Args:
        step: Steps taken so far.
        total: Steps of the whole run.
        warmup: Steps of the linear warm-up from a hundredth, on top of the cosine.
        rate: Rate that the cosine starts from.
        end: Rate at the end.

    Returns:
        The rate.
    """
    warm = 0.01 + 0.99 * step / warmup if step < warmup else 1.0
    return cosine(step / max(total, 1), rate, end) * warm
