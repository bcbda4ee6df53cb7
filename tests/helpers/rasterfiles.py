# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Small GeoTIFFs for tests."""

from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from rasterio.transform import from_origin


def write(
    path: Path,
    array: np.ndarray,
    *,
    origin: tuple[float, float] = (500000, 5000000),
    res: float = 10.0,
    crs: str | None = 'EPSG:32633',
    descriptions: tuple[str, ...] = (),
    mask: np.ndarray | None = None,
    transform: Affine | None = None,
    **profile: Any,
) -> Path:
    """Write (bands, rows, cols) at an origin (x, y) in units of *crs*, or by a transform."""
    path.parent.mkdir(parents=True, exist_ok=True)
    profile = {
        'tiled': True,
        'blockxsize': 64,
        'blockysize': 64,
        'compress': 'deflate',
        'photometric': 'minisblack',
        **profile,
    }
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(
            path,
            'w',
            driver='GTiff',
            count=len(array),
            height=array.shape[1],
            width=array.shape[2],
            dtype=array.dtype,
            crs=crs,
            transform=transform or from_origin(*origin, res, res),
            **profile,
        ) as file,
    ):
        file.write(array)
        for i, text in enumerate(descriptions, 1):
            file.set_band_description(i, text)
        if mask is not None:
            file.write_mask(mask)
    return path


def noise(
    bands: int, height: int, width: int, seed: int = 0, dtype: str = 'uint8'
) -> np.ndarray:
    """Return random values from 1 to 199."""
    rng = np.random.default_rng(seed)
    return rng.integers(1, 200, (bands, height, width)).astype(dtype)


def truncate(path: Path, share: float = 0.6) -> None:
    """Cut a file's end off."""
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


def tear(path: Path) -> None:
    """Spoil a file's middle, so that it opens and fails half way."""
    content = bytearray(path.read_bytes())
    third = len(content) // 3
    content[third : 2 * third] = bytes([255]) * third
    path.write_bytes(content)
