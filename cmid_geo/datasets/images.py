# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Plain images, which need have no place on Earth."""

import warnings
from collections.abc import Generator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from rasterio.errors import NotGeoreferencedWarning
from rasterio.io import DatasetReader

from .rasters import FAILURES, open_raster

#: Endings of images that are read with all bands; others as red, green and blue.
RASTERS = ('.tif', '.tiff', '.jp2')

#: Endings of images in folders.
IMAGES = (*RASTERS, '.jpg', '.jpeg', '.png', '.bmp', '.webp')

#: What Pillow may take a file for: other formats, such as EPS, start other programs.
FORMATS = ('JPEG', 'PNG', 'BMP', 'WEBP')


@contextmanager
def open_image(path: str | PathLike[str]) -> Generator[DatasetReader]:
    """Open an image, be it georeferenced or not, and name it where it cannot be read.

    Args:
        path: Of the image.

    Yields:
        The open file.

    Raises:
        ValueError: If it cannot be opened, or read from while it is open.
    """
    try:
        with warnings.catch_warnings(action='ignore', category=NotGeoreferencedWarning):
            file = open_raster(str(path))
        with file:
            yield file
    except FAILURES as error:
        raise ValueError(
            f'cannot read {str(path)!r} ({error.__cause__ or error}): replace it, or take it out of the data '
            'set'
        ) from error


def is_image(path: str | PathLike[str]) -> bool:
    """Tell whether a path is that of an image, by its ending.

    Args:
        path: To look at.

    Returns:
        True if its ending is one of :data:`IMAGES`, of a file.
    """
    return Path(path).suffix.lower() in IMAGES and Path(path).is_file()


def read_image(path: str | PathLike[str]) -> npt.NDArray[np.float32]:
    """Read an image of any usual kind.

    Args:
        path: GeoTIFF and JPEG 2000 are read with all bands, others as red, green and blue.

    Returns:
        (H, W, C), raw values.

    Raises:
        ValueError: If the file cannot be read.
    """
    if Path(path).suffix.lower() in RASTERS:
        with open_image(path) as file:
            return file.read().transpose(1, 2, 0).astype(np.float32)
    try:
        with Image.open(path, formats=FORMATS) as image:
            return np.array(image.convert('RGB'), np.float32)
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(
            f'{str(path)!r} cannot be read as an image ({error}): replace it or take it away'
        ) from error
