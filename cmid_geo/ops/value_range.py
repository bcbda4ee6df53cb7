# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Value ranges of bands: from raw values to [0, 1], and from there to normalized ones."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

#: One number for all bands, or one for each.
Limits = float | Sequence[float] | Float[Tensor, '#bands']


def scale(
    image: Shaped[Tensor, '*batch bands height width'], low: Limits, high: Limits
) -> Float[Tensor, '*batch bands height width']:
    """Bring raw values to [0, 1]; values beyond are clamped.

    Args:
        image: Raw values.
        low: Raw value of each band, or of all, that becomes 0.
        high: Raw value of each band, or of all, that becomes 1.

    Returns:
        The scaled image.
    """
    # torch can do little with uint16 but make it another type
    image = image if image.is_floating_point() else image.float()
    low, high = _per_band(image, low), _per_band(image, high)
    # In place: what is subtracted from is a copy already
    return (image - low).div_(high - low).clamp_(0, 1)


def normalize(
    image: Float[Tensor, '*batch bands height width'], mean: Limits, std: Limits
) -> Float[Tensor, '*batch bands height width']:
    """Subtract the mean and divide by the standard deviation of each band.

    Args:
        image: In [0, 1].
        mean: Mean of each band, or of all.
        std: Standard deviation of each band, or of all.

    Returns:
        The normalized image.
    """
    return (image - _per_band(image, mean)) / _per_band(image, std)


def _per_band(image: Tensor, values: Limits) -> Tensor:
    """Values (bands, 1, 1) on the image's device and in its type."""
    if isinstance(values, tuple):
        return _constant(values, image.dtype, image.device)
    return torch.as_tensor(values, dtype=image.dtype, device=image.device).view(
        -1, 1, 1
    )


# A copy to the device for each batch would make it wait
@lru_cache(maxsize=64)
def _constant(
    values: tuple[float, ...], dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Values (bands, 1, 1) of a value range, kept for the next batch."""
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=dtype, device=device).view(-1, 1, 1)


@dataclass(frozen=True)
class ValueRange:
    """How raw values of bands become [0, 1], and how they are spread there.

    Attributes:
        bands: Names of the bands, or their positions from 1 in files that do not name them; empty
            where nothing is known of them.
        low: Raw value of each band that becomes 0.
        high: Raw value of each band that becomes 1; values beyond are clamped.
        mean: Mean of each band, scaled to [0, 1].
        std: Standard deviation of each band, scaled to [0, 1].
    """

    bands: tuple[str | int, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    mean: tuple[float, ...] = field(default=())
    std: tuple[float, ...] = field(default=())

    def scale(self, image: Tensor) -> Tensor:
        """Bring raw values (..., bands, height, width) to [0, 1], see :func:`scale`."""
        return scale(image, self.low, self.high)

    def normalize(self, image: Tensor) -> Tensor:
        """Normalize values in [0, 1], see :func:`normalize`."""
        return normalize(image, self.mean, self.std)

    def to_metadata(self) -> dict[str, list[Any]]:
        """Lists of plain numbers and names, as files hold them."""
        return {name: list(getattr(self, name)) for name in FIELDS}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> 'ValueRange | None':
        """Read what :meth:`to_metadata` wrote.

        Args:
            metadata: Of a file; other entries are passed over.

        Returns:
            The value range; None where *low* or *high* is missing.
        """
        if not (metadata.get('low') and metadata.get('high')):
            return None
        return cls(**{name: tuple(metadata.get(name) or ()) for name in FIELDS})

    def __str__(self) -> str:
        """Return a table with a line a band."""
        names = [str(band) for band in self.bands]
        width = max(4, *map(len, names))
        lines = [f'{"band":<{width}} {"low":>10} {"high":>10} {"mean":>7} {"std":>7}']
        values = self.low, self.high, self.mean, self.std
        for name, low, high, mean, std in zip(names, *values, strict=True):
            limits, spread = f'{low:>10.6g} {high:>10.6g}', f'{mean:>7.4f} {std:>7.4f}'
            lines.append(f'{name:<{width}} {limits} {spread}')
        return '\n'.join(lines)


FIELDS = ('bands', 'low', 'high', 'mean', 'std')
