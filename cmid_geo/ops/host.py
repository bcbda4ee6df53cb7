# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Tensors from the host to a device that does not wait for them."""

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
