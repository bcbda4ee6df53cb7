# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""The teacher and the queue of its keys, which remember from step to step."""

import copy

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
        momentum: Weight of the old teacher, from 0 to 1.
    """
    moving: list[Tensor] = list(teacher.parameters())
    torch._foreach_lerp_(moving, list(student.parameters()), 1 - momentum)


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
        """Number of rows that hold keys, as a tensor, whose value the host would wait for."""
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
