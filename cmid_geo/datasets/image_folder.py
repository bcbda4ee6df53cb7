# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Folders of images, one folder a class."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torchgeo.datasets import DatasetNotFoundError, NonGeoClassificationDataset
from torchgeo.datasets.utils import Sample

from ..plots.samples import sample_figure
from .images import is_image, read_image

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class ImageFolders(NonGeoClassificationDataset):
    """Images of ``root/<class>/``, each folder a class in the order of the alphabet.

    A sample holds ``image`` (C, H, W) float32, raw values, and ``label`` int64. GeoTIFFs may have
    any number of bands.

    Attributes:
        classes: Names of the classes.
        files: Paths of the images.
        labels: Class of each.
    """

    def __init__(
        self, root: str | Path, transforms: Callable[[Sample], Sample] | None = None
    ) -> None:
        """Initialize a new ImageFolders instance.

        Args:
            root: The folder that holds a folder for each class.
            transforms: Applied to each sample.

        Raises:
            DatasetNotFoundError: If there is no such folder, or no image in it.
        """
        self.paths = str(root)
        super().__init__(root, transforms, read_image, is_image)
        self.files = [Path(path) for path, _ in self.samples]
        self.labels = np.array(self.targets)

    def find_classes(self, directory: str | Path) -> tuple[list[str], dict[str, int]]:
        """Find the classes, as torchvision's ``ImageFolder`` asks.

        Args:
            directory: The folder that holds a folder for each class.

        Returns:
            Names of the folders that hold images, at any depth, and the label of each.

        Raises:
            DatasetNotFoundError: If there is none.
        """
        names = sorted(
            folder.name
            for folder in Path(directory).glob('*')
            if any(map(is_image, folder.rglob('*')))
        )
        if not names:
            raise DatasetNotFoundError(self)
        return names, {name: label for label, name in enumerate(names)}

    def plot(
        self,
        sample: Sample,
        show_titles: bool = True,
        suptitle: str | None = None,
        **options: Any,
    ) -> 'Figure':
        """Draw a sample, and what was predicted of it.

        Args:
            sample: As of this dataset, raw or in [0, 1]; with ``prediction`` this stands below the true class.
            show_titles: Whether to say which is which.
            suptitle: Title of all.
            **options: Of :func:`~cmid_geo.plots.samples.sample_figure`, such as ``names`` of classes.

        Returns:
            The figure.
        """
        known: dict[str, Any] = {'names': self.classes} | options
        return sample_figure(sample, show_titles, suptitle, **known)
