# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Window starts along the side of an image."""


def window_starts(
    length: int, size: int, step: int, margin: int = 0, centred: bool = False
) -> tuple[int, ...]:
    """Place windows that cover a side; the last is moved back rather than hanging over further.

    Args:
        length: Length of the side.
        size: Side of a window.
        step: From one window to the next, at most *size*; the last two may be nearer.
        margin: How far the first and the last window reach beyond the side.
        centred: Whether a side no longer than a window lies in its middle, or at its beginning.

    Returns:
        First places of the windows, rising; below 0 where they reach beyond the side.
    """
    if length <= size:
        return (-((size - length) // 2) if centred else 0,)
    last = length + margin - size
    return (*range(-margin, last, step), last)
