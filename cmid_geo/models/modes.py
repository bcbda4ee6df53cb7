# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Evaluation mode for a while."""

import contextlib
from collections.abc import Generator

from torch import nn


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Generator[None]:
    """Put a module in evaluation mode, and each of its parts back in its own mode afterwards.

    Args:
        module: The module.

    Yields:
        Nothing.
    """
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode
