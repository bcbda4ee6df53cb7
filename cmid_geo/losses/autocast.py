# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Full precision under autocast."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor


def in_full_precision[**P, R](function: Callable[P, R]) -> Callable[P, R]:
    """Run a function outside autocast, its half-precision tensors widened to float32.

    Losses sum many small terms and take exponentials: bfloat16 keeps 8 bits of them.
    Float64 stays float64.

    Args:
        function: Function or method of tensors.

    Returns:
        The same function in float32.
    """

    def widen(value: Any) -> Any:
        """Give a tensor of 16 bits in 32."""
        if isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16):
            return value.float()
        return value

    @wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        """Call the function outside autocast."""
        tensors = [value for value in args if isinstance(value, Tensor)]
        device = tensors[0].device.type if tensors else 'cpu'
        with torch.autocast(device, enabled=False):
            wide: Any = [widen(value) for value in args]
            named: Any = {name: widen(value) for name, value in kwargs.items()}
            return function(*wide, **named)

    return wrapper
