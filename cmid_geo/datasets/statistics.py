# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""The range and spread of the bands' values, estimated from random chips."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .samplers import RandomChips
from .scenes import SceneDataset

#: Valid pixels looked at in each chip, at most.
_PIXELS = 4096


@dataclass(frozen=True)
class BandStatistics:
    """How raw values become [0, 1], and how they are spread there.

    Attributes:
        bands: Names of the bands.
        low: Raw value of each band that becomes 0.
        high: Raw value of each band that becomes 1; values beyond are clamped.
        mean: Mean of each band over valid pixels, after scaling to [0, 1] and clamping.
        std: Standard deviation likewise; 1 for a constant band, so that it can be divided by.
        positions: Of the bands in files that do not name them, from 1; none where they do.
    """

    bands: tuple[str, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    positions: tuple[int, ...] = ()

    def __str__(self) -> str:
        """Return a table with a line a band."""
        width = max(4, *(len(band) for band in self.bands))
        lines = [f'{"band":<{width}} {"low":>10} {"high":>10} {"mean":>7} {"std":>7}']
        for row in zip(
            self.bands, self.low, self.high, self.mean, self.std, strict=True
        ):
            band, low, high, mean, std = row
            lines.append(
                f'{band:<{width}} {low:>10.6g} {high:>10.6g} {mean:>7.4f} {std:>7.4f}'
            )
        return '\n'.join(lines)


def estimate_statistics(
    dataset: SceneDataset,
    low: float | Sequence[float | int] | None = None,
    high: float | Sequence[float | int] | None = None,
    patch_size: int = 256,
    chips: int = 128,
    min_valid: float = 0.75,
    seed: int = 0,
) -> BandStatistics:
    """Estimate the statistics of a dataset from random chips.

    Args:
        dataset: The scenes.
        low: Raw value, or one a band, that becomes 0.
        high: Raw value, or one a band, that becomes 1. By default 0 and 255 where all scenes are
            uint8, else each band's 2nd and 98th percentile over valid pixels.
        patch_size: Side of the chips in pixels.
        chips: How many to read.
        min_valid: Least share of a chip that must be valid.
        seed: The same seed gives the same numbers, on every process.

    Returns:
        The statistics.

    Raises:
        ValueError: If only one of *low* and *high* is given, they are not one or one a band, or not
            *low* < *high*; or if no scene has such a chip.

    Warns:
        UserWarning: If a band is constant, which leaves it 0 everywhere.
    """
    limits = _given_limits(dataset.bands, low, high)
    values = _sample_values(dataset, patch_size, chips, min_valid, seed)
    if limits is None and all(scene.dtype == 'uint8' for scene in dataset.scenes):
        limits = np.zeros(len(values)), np.full(len(values), 255.0)
    if limits is None:
        limits = np.percentile(values, 2, axis=1), np.percentile(values, 98, axis=1)
    lows, highs = limits
    flat = highs <= lows
    if flat.any():
        names = [
            band for band, is_flat in zip(dataset.bands, flat, strict=True) if is_flat
        ]
        warnings.warn(
            f'bands {names} hardly vary (2nd and 98th percentiles are equal) and become 0: leave '
            'them out by bands=, or state their range by low= and high=',
            stacklevel=2,
        )
        highs = np.where(flat, lows + np.maximum(1.0, np.abs(lows)), highs)
    scaled = np.clip((values - lows[:, None]) / (highs - lows)[:, None], 0, 1)
    std = scaled.std(1)
    return BandStatistics(
        bands=dataset.bands,
        low=tuple(lows.tolist()),
        high=tuple(highs.tolist()),
        mean=tuple(scaled.mean(1).tolist()),
        std=tuple(np.where(std > 1e-6, std, 1.0).tolist()),
        positions=dataset.scenes[0].positions,
    )


def _given_limits(
    bands: tuple[str, ...],
    low: float | Sequence[float | int] | None,
    high: float | Sequence[float | int] | None,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]] | None:
    """Check the limits that the user states; None if there are none."""
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


def _sample_values(
    dataset: SceneDataset, patch_size: int, chips: int, min_valid: float, seed: int
) -> npt.NDArray[np.float64]:
    """Return raw values (bands, pixels) of valid pixels from random chips."""
    rng = np.random.default_rng(seed)
    parts = []
    transforms, dataset.transforms = dataset.transforms, None  # raw values are wanted
    try:
        for chip in RandomChips(
            dataset, patch_size, chips, min_valid=min_valid, seed=seed
        ):
            sample = dataset[chip]
            pixels = sample['image'].numpy()[:, sample['valid'].numpy()]
            if pixels.shape[1] > _PIXELS:
                pixels = pixels[:, rng.integers(pixels.shape[1], size=_PIXELS)]
            parts.append(pixels)
    finally:
        dataset.transforms = transforms
    return np.concatenate(parts, axis=1).astype(np.float64)
