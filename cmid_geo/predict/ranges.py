# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""What the values of a scene mean to a task."""

import numpy as np
from torch import Tensor, nn
from torchgeo.tasks import BaseTask

from .opening import Backbone
from .sources import SceneSource


def check_range(
    task: nn.Module,
    source: SceneSource,
    low: Tensor | None,
    high: Tensor | None,
    told: bool,
) -> None:
    """Refuse values of which nobody said what they mean.

    Args:
        task: That shall see them.
        source: The scene.
        low: Raw value of each band, or of all, that stands for 0, where known.
        high: Likewise for 1.
        told: Whether the user or the task said so.

    Raises:
        ValueError: If it is not known, or cannot be.
    """
    held, bands = source.dates[0].dtype, len(source.bands)
    needed = isinstance(task, Backbone | BaseTask) and not told
    # Bytes alone have a range of their own
    if needed and not (isinstance(task, Backbone) and held == 'uint8'):
        raise ValueError(
            f'{source.name} holds {held} and {type(task).__name__} does not tell which raw values '
            'stand for 0 and 1: give low= and high='
        )
    if low is None or high is None:
        return
    if not {low.numel(), high.numel()} <= {1, bands} or not bool((low < high).all()):
        raise ValueError(
            f'low={low.tolist()} and high={high.tolist()} of {bands} bands: give one value a band, or '
            'one for all, and high above low'
        )
    whole = np.issubdtype(held, np.integer)
    if whole and bool((low == 0).all()) and bool((high == 1).all()):
        raise ValueError(
            f'{source.name} holds whole numbers, of which the task knows only that 0 is 0 and 1 is 1: '
            'it was trained without a datamodule that tells; give low= and high=, such as 0 and 255'
        )
