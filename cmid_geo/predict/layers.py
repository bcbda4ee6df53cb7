# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""What a map holds: its bands, their type, and how they follow from a network's output."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.colors import to_rgb
from torch import Tensor


@dataclass(frozen=True)
class Layer:
    """A raster that is written.

    Attributes:
        suffix: What its file's stem ends with, beyond the map's own.
        count: Number of bands.
        dtype: numpy's name of their type.
        nodata: Where the scene has no data; None if it always has, or a mask tells.
        decide: From averages (channels, rows, cols) to bands (count, rows, cols).
        names: Of the bands.
        classes: Names of the values, where these are classes.
        colours: Of the classes, as (red, green, blue) from 0 to 255.
        masked: Whether a mask tells where the scene has data, as any value may be meant.
    """

    suffix: str
    count: int
    dtype: str
    nodata: float | int | None
    decide: Callable[[Tensor], Tensor] = lambda values: values
    names: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    colours: tuple[tuple[int, int, int], ...] = ()
    masked: bool = False

    def finish(self, values: Tensor, valid: Tensor) -> np.ndarray:
        """Turn averages into pixels.

        Args:
            values: (channels, rows, cols) on any device.
            valid: (rows, cols).

        Returns:
            (count, rows, cols) of the layer's type; of a masked one with 1 for data and 0 for none
            as one band more.
        """
        bands = self.decide(values).cpu().numpy()
        limits: Any
        if np.issubdtype(self.dtype, np.integer):
            limits = np.iinfo(self.dtype)
            # Large whole numbers are not exact in float32
            bands = (
                np.rint(bands.astype(np.float64)) if bands.dtype.kind == 'f' else bands
            )
        else:
            limits = np.finfo(self.dtype)
        if not np.can_cast(bands.dtype, self.dtype):
            bands = np.clip(bands, limits.min, limits.max)
        bands = bands.astype(self.dtype)
        known = valid.cpu().numpy()
        bands[:, ~known] = 0 if self.nodata is None else self.nodata
        return (
            np.concatenate([bands, known[None]], dtype=bands.dtype)
            if self.masked
            else bands
        )


def class_layer(
    count: int,
    decide: Callable[[Tensor], Tensor],
    bands: int = 1,
    classes: Sequence[str] | None = None,
    colours: Sequence[str] | None = None,
) -> Layer:
    """A layer of classes.

    Args:
        count: Number of classes.
        decide: From averages to classes.
        bands: One, or one a label.
        classes: Names of the classes.
        colours: Of the classes, as matplotlib knows them.

    Returns:
        The layer.

    Raises:
        ValueError: If there are not as many names or colours as classes.
    """
    # The largest value is no class: it says that there is no data
    dtype = 'uint8' if count <= 255 else 'uint16'
    names = tuple(classes or (str(label) for label in range(count)))
    for what, given in (('labels', classes), ('colors', colours)):
        if given is not None and len(given) != count:
            raise ValueError(
                f'{what} has {len(given)} entries for {count} classes: give one a class'
            )
    shown: Sequence[str] = colours or _palette(count)
    try:
        colours_255 = [
            (round(255 * r), round(255 * g), round(255 * b))
            for r, g, b in map(to_rgb, shown)
        ]
    except ValueError as error:
        raise ValueError(
            f"colors={list(shown)}: give names such as 'tab:blue', or '#1f77b4' ({error})"
        ) from error
    return Layer(
        '', bands, dtype, int(np.iinfo(dtype).max), decide, (), names, tuple(colours_255)
    )  # fmt: skip


def _palette(count: int) -> list[str]:
    """Colours that differ, as figures show classes; more than twenty repeat."""
    table = matplotlib.colormaps['tab10' if count <= 10 else 'tab20']
    return [matplotlib.colors.to_hex(table(label % table.N)) for label in range(count)]


def most_likely(values: Tensor) -> Tensor:
    """The class of the largest share, (1, rows, cols)."""
    return values.argmax(0, keepdim=True).to(torch.int32)


def above(threshold: float) -> Callable[[Tensor], Tensor]:
    """What reaches a share.

    Args:
        threshold: The least share, in [0, 1].

    Returns:
        From shares to 0 or 1.
    """
    return lambda values: (values >= threshold).to(torch.uint8)
