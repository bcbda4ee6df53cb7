# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Folders of images, one folder a class."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchgeo.datasets import DatasetNotFoundError, NonGeoDataset
from torchgeo.datasets.utils import Sample

from .rasters import open_raster

#: Endings of files that are images; those of the first are read by rasterio, with all bands.
RASTERS = ('.tif', '.tiff', '.jp2')
IMAGES = (*RASTERS, '.jpg', '.jpeg', '.png', '.bmp', '.webp')

#: What Pillow may take a file for: other formats, such as EPS, start other programs.
FORMATS = ('JPEG', 'PNG', 'BMP', 'WEBP')


class ImageFolders(NonGeoDataset):
    """Images of ``root/<class>/``, each folder a class in the order of the alphabet.

    A sample holds ``image`` (C, H, W) float32, raw values, and ``label`` int64. GeoTIFFs may have
    any number of bands.

    Attributes:
        classes: Names of the classes.
        files: Paths of the images.
        labels: Class of each.
    """

    def __init__(self, root: str | Path) -> None:
        """Initialize a new ImageFolders instance.

        Args:
            root: The folder that holds a folder for each class.

        Raises:
            DatasetNotFoundError: If there is no such folder, or no image in it.
        """
        self.root = self.paths = str(root)
        folder = Path(root)
        found = sorted(
            path
            for path in folder.glob('*/**/*')
            if path.suffix.lower() in IMAGES and path.is_file()
        )
        if not found:
            raise DatasetNotFoundError(self)
        names = [path.relative_to(folder).parts[0] for path in found]
        self.files, self.classes = found, sorted(set(names))
        self.labels = np.array([self.classes.index(name) for name in names])

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.files)

    def __getitem__(self, index: int) -> Sample:
        """Read an image.

        Args:
            index: Of the image.

        Returns:
            ``image`` and ``label``.

        Raises:
            ValueError: If the file cannot be read.
        """
        image = read_image(self.files[index])
        return {'image': image, 'label': torch.tensor(int(self.labels[index]))}


def read_image(path: Path) -> torch.Tensor:
    """Read an image of any usual kind.

    Args:
        path: GeoTIFF and JPEG 2000 are read with all bands, others as red, green and blue.

    Returns:
        (C, H, W) float32, raw values.

    Raises:
        ValueError: If the file cannot be read.
    """
    try:
        if path.suffix.lower() in RASTERS:
            with open_raster(str(path)) as file:
                array = file.read().transpose(1, 2, 0)
        else:
            with Image.open(path, formats=FORMATS) as image:
                array = np.asarray(image.convert('RGB'))
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(
            f'{str(path)!r} cannot be read as an image ({error}): replace it or take it away'
        ) from error
    return torch.from_numpy(np.array(array, np.float32)).permute(2, 0, 1)
