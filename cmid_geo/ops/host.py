# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Tensors from the host to a device that does not wait for them, and the host's instructions."""

from typing import Literal

import torch
from jaxtyping import Shaped
from torch import Tensor


def send(values: Shaped[Tensor, '*shape'], like: Tensor) -> Shaped[Tensor, '*shape']:
    """Send values to the device of another tensor.

    Args:
        values: On the host, or on that device already.
        like: Only its device matters.

    Returns:
        The values there.
    """
    # A copy from memory that may be paged out makes the host wait for all that the device has to do
    if like.is_cuda and not values.is_cuda:
        values = values.pin_memory()
    return values.to(like.device, non_blocking=True)


def has_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 by instructions of its own.

    PyTorch computes in bfloat16 on any processor.

    Returns:
        True for AVX-512 BF16, AMX and Arm's BF16 where PyTorch has oneDNN, which uses them; False where
        PyTorch cannot tell.
    """
    known = getattr(torch.cpu, 'get_capabilities', dict)()
    names = ('avx512_bf16', 'amx_bf16', 'bf16')
    return torch.backends.mkldnn.is_available() and any(map(known.get, names))


def fast_precision(on_cpu: bool = False) -> Literal['bf16-mixed', '32-true']:
    """Trainer's precision that is fastest here: bfloat16 where there are instructions for it, else float32.

    Args:
        on_cpu: Whether to train on the processor, whatever else there is.

    Returns:
        What ``Trainer(precision=...)`` takes.
    """
    on_cpu = on_cpu or not torch.accelerator.is_available()
    if not on_cpu and torch.cuda.is_available():
        # Emulated on older cards
        quick = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        quick = on_cpu and has_bfloat16()
    return 'bf16-mixed' if quick else '32-true'
