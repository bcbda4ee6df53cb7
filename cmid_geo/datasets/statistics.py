# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Range and spread of the bands' values, estimated from random pixels."""

import copy
import warnings
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ..ops.value_range import ValueRange
from .samplers import RandomChips
from .scenes import SceneDataset

#: Valid pixels looked at in each chip or image, at most.
PIXELS = 4096

#: Raw values of each band that become 0, and those that become 1.
Limits = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]

BandStatistics = ValueRange


def estimate_statistics(
    dataset: SceneDataset,
    low: float | Sequence[float | int] | None = None,
    high: float | Sequence[float | int] | None = None,
    patch_size: int = 256,
    chips: int = 128,
    min_valid: float = 0.75,
    seed: int = 0,
) -> ValueRange:
    """Estimate the statistics of a dataset from random chips.

    Args:
        dataset: The scenes.
        low: Raw value, or one a band, that becomes 0.
        high: Raw value, or one a band, that becomes 1. By default 0 and 255 where all scenes are
            uint8, else each band's 2nd and 98th percentile over valid pixels.
        patch_size: Side of the chips in pixels.
        chips: How many to read.
        min_valid: Least fraction of a chip that must be valid.
        seed: The same seed gives the same numbers, on every process.

    Returns:
        The statistics.

    Raises:
        ValueError: If only one of *low* and *high* is given, they are not one or one a band, or not
            *low* < *high*; or if no scene has such a chip.

    Warns:
        UserWarning: If a band is constant, which leaves it 0 everywhere.
    """
    bands = dataset.scenes[0].positions or dataset.bands
    limits = check_limits(bands, low, high)
    rng = np.random.default_rng(seed)
    raw = copy.copy(dataset)
    raw.transforms = None
    parts = []
    for chip in RandomChips(raw, patch_size, chips, min_valid=min_valid, seed=seed):
        sample = raw[chip]
        pixels = sample['image'][:, sample['valid']].float().numpy()
        if pixels.shape[1] > PIXELS:
            pixels = pixels[:, rng.integers(pixels.shape[1], size=PIXELS)]
        parts.append(pixels)
    is_bytes = all(scene.dtype == 'uint8' for scene in dataset.scenes)
    return summarize(bands, np.concatenate(parts, axis=1), limits, is_bytes)


def summarize(
    bands: tuple[str | int, ...],
    values: npt.NDArray[np.floating],
    limits: Limits | None,
    is_bytes: bool,
) -> ValueRange:
    """Describe the range and spread of pixels.

    Args:
        bands: Names of the bands, or their positions from 1.
        values: Raw values (bands, pixels) of valid pixels.
        limits: Raw values that become 0 and 1; by default 0 and 255 for bytes, else each band's
            2nd and 98th percentile.
        is_bytes: Whether the pixels are uint8.

    Returns:
        The statistics; a standard deviation of 0 is told as 1, so that it can be divided by.

    Warns:
        UserWarning: If a band is constant, which leaves it 0 everywhere.
    """
    values = values.astype(np.float64)
    if limits is None and is_bytes:
        limits = np.zeros(len(values)), np.full(len(values), 255.0)
    lows, highs = limits or np.percentile(values, (2, 98), axis=1)
    flat = highs <= lows
    if flat.any():
        names = [band for band, is_flat in zip(bands, flat, strict=True) if is_flat]
        warnings.warn(
            f'bands {names} hardly vary (2nd and 98th percentiles are equal) and become 0: leave '
            'them out by bands=, or state their range by low= and high=',
            stacklevel=3,
        )
        highs = np.where(flat, lows + np.maximum(1.0, np.abs(lows)), highs)
    scaled = np.clip((values - lows[:, None]) / (highs - lows)[:, None], 0, 1)
    std = scaled.std(1)
    found = (lows, highs, scaled.mean(1), np.where(std > 1e-6, std, 1.0))
    return ValueRange(bands, *(tuple(each.tolist()) for each in found))


def check_limits(
    bands: Sequence[str | int],
    low: float | Sequence[float | int] | None,
    high: float | Sequence[float | int] | None,
) -> Limits | None:
    """Check the limits that the user states.

    Args:
        bands: Names of the bands, or their positions from 1.
        low: Raw value, or one a band, that becomes 0.
        high: Raw value, or one a band, that becomes 1.

    Returns:
        One of each a band; None if there are none.

    Raises:
        ValueError: If only one of them is given, they are not one or one a band, or not
            *low* < *high*.
    """
    if low is None and high is None:
        return None
    if low is None or high is None:
        raise ValueError(
            f'low={low} and high={high}: a range needs both; give the other as well, or neither to '
            'have them estimated'
        )
    limits = []
    for name, value in (('low', low), ('high', high)):
        array = np.asarray(value, float)
        if array.ndim and array.shape != (len(bands),):
            raise ValueError(
                f'{name} has {array.size} values for {len(bands)} bands {bands}: give one number '
                'for all, or one a band'
            )
        limits.append(np.broadcast_to(array, (len(bands),)))
    if not (limits[0] < limits[1]).all():
        raise ValueError(
            f'low={low} must be less than high={high} in every band: swap or correct'
        )
    return limits[0], limits[1]


def state_range(
    low: float | Sequence[float | int],
    high: float | Sequence[float | int],
    bands: Sequence[str | int] = (),
) -> ValueRange:
    """Make the value range that the user states, of which mean and spread are not known.

    Args:
        low: Raw value, or one a band, that becomes 0.
        high: Raw value, or one a band, that becomes 1.
        bands: Names of the bands, or their positions from 1; if nothing is known of them, one number
            stands for all.

    Returns:
        The value range.

    Raises:
        ValueError: If they are not one or one a band, or not *low* < *high*.
    """
    several = bands or range(1, max(np.size(low), np.size(high)) + 1)
    limits = check_limits(several, low, high) or ()
    return ValueRange(tuple(bands), *(tuple(each.tolist()) for each in limits))
