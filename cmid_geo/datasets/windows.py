# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Windows that cover places once."""

from .chips import Chip, HasScenes


def windows(places: HasScenes, size: int) -> list[Chip]:
    """Windows side by side that cover every place once; the last overhang, and are invalid there.

    Args:
        places: What to cover.
        size: Side of a window in pixels.

    Returns:
        Chips, place by place and row by row.
    """
    return [
        Chip((index,), col, row, size, size)
        for index, mask in enumerate(places.scenes)
        for row in range(0, mask.height, size)
        for col in range(0, mask.width, size)
    ]
