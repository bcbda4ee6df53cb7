# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Masks: labels of pixels as georeferenced rasters, alone and with their scenes."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch.utils.data import Dataset
from torchgeo.datasets.utils import GeoSlice, Path, Sample

from .chips import Chip
from .grids import Bools, Floats, Grid
from .rasters import Array
from .reader import SceneReader, around, nearest
from .scene import Scene
from .scenes import SceneDataset

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class MaskReader(SceneReader):
    """Reads labels: where pixels do not coincide the nearest counts, never a mean of two."""

    def _interpolate(
        self, scene: Scene, cols: Floats, rows: Floats, inside: Bools
    ) -> tuple[Array, Bools]:
        """Look up the pixel in which each position lies."""
        col, row, width, height = around(scene.native, cols[inside], rows[inside])
        data, valid = self._read_native(scene, col, row, width, height)
        at = nearest(data.shape[1:], cols - col, rows - row)
        return data[:, *at], inside if valid is None else valid[at]


class MaskDataset(SceneDataset):
    """Georeferenced rasters whose first band holds the class of each pixel.

    A sample holds ``mask`` (H, W) int64, *ignore_index* where a file has no label: outside of it,
    and where it holds its nodata value. Of another CRS or resolution than the dataset's the nearest
    pixel is taken. ``SceneDataset(...) & MaskDataset(...)`` gives images with their masks.
    """

    def __init__(
        self, paths: Path | Iterable[Path], ignore_index: int = 255, **options: Any
    ) -> None:
        """Initialize a new MaskDataset instance.

        Args:
            paths: A folder (searched recursively), a glob, a file, a URL, or several of these.
            ignore_index: Label of what has none.
            options: Of :class:`SceneDataset`; *bands* is the band that holds the classes, the
                first by default.

        Raises:
            DatasetNotFoundError: If *paths* hold no raster.
            ValueError: If a path does not exist, or a file cannot be read or has no CRS.
        """
        chosen: dict[str, Any] = {'bands': [1]} | options
        super().__init__(paths, **chosen)
        self.ignore_index = ignore_index
        self._reader = MaskReader(self._reader.limit)

    def __getitem__(self, index: GeoSlice | Chip) -> Sample:
        """Read a sample of labels.

        Args:
            index: A box of ground and time, or a :class:`Chip`.

        Returns:
            With ``mask`` in the place of ``image`` and ``valid``.

        Raises:
            IndexError: If no mask is at *index*.
            ValueError: If a file cannot be read any more.
        """
        sample = super().__getitem__(index)
        labels, valid = sample.pop('image'), sample.pop('valid')
        sample['mask'] = self._labels(labels[..., 0, :, :], valid)
        return sample

    def read(self, scene: int, target: Grid) -> torch.Tensor:
        """Read the labels of one scene.

        Args:
            scene: Index of the scene.
            target: The pixels wanted.

        Returns:
            Classes (H, W) int64.
        """
        labels, valid = self._reader.read(self.scenes[scene], target)
        return self._labels(torch.from_numpy(labels[0]), torch.from_numpy(valid))

    def plot(
        self,
        sample: Sample,
        show_titles: bool = True,
        suptitle: str | None = None,
        **options: Any,
    ) -> 'Figure':
        """Draw a sample, and what was predicted of it.

        Args:
            sample: As of this dataset, raw or in [0, 1]; with ``prediction`` (H, W) this is drawn beside.
            show_titles: Whether to say which is which.
            suptitle: Title of all.
            **options: Of :func:`~cmid_geo.plots.samples.sample_figure`, such as ``names`` of classes.

        Returns:
            The figure.
        """
        known = {'ignore_index': self.ignore_index} | options
        return super().plot(sample, show_titles, suptitle, **known)

    def _labels(self, labels: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        return labels.long().where(valid, self.ignore_index)


class LabelledScenes(Dataset):
    """Chips of scenes with the class of each pixel.

    Chips are windows of the masks' scenes, laid on the CRS and resolution of the images; the images
    are merged there and resampled where their pixels lie otherwise. Pixels of no image have no label.
    """

    def __init__(self, images: SceneDataset, masks: MaskDataset) -> None:
        """Initialize a new LabelledScenes instance.

        Args:
            images: The scenes.
            masks: Made with the ``crs`` and ``res`` of *images*.

        Raises:
            ValueError: If CRS or resolution differ, or a mask lies beside all images.
        """
        if images.crs != masks.crs or not np.allclose(images.res, masks.res):
            raise ValueError(
                f'the masks are laid on {masks.crs.name} at {masks.res} but the images on '
                f'{images.crs.name} at {images.res}: MaskDataset(..., crs=images.crs, res=images.res)'
            )
        self.images, self.masks = images, masks
        # Which images each mask lies on
        self._hits = [self._images_at(scene) for scene in masks.scenes]
        for scene, hits in zip(masks.scenes, self._hits, strict=True):
            if not len(hits):
                raise ValueError(
                    f'no image lies where the mask {scene.files[0]!r} does: add its image to the '
                    'images, or leave the mask out'
                )

    def __len__(self) -> int:
        """Return the number of scenes that have a mask."""
        return len(self.masks.scenes)

    def close(self) -> None:
        """Close the files that this process keeps open."""
        self.images.close()

    def __getitem__(self, index: Chip) -> Sample:
        """Read a chip.

        Args:
            index: A window of one of the masks' scenes.

        Returns:
            ``image`` (C, H, W) float32 raw, ``valid`` (H, W) bool and ``mask`` (H, W) int64.
        """
        scene = index.scenes[0]
        target = self.masks.scenes[scene].grid.window(*index.window)
        image, valid = self.images._mosaic(self._hits[scene], target)
        mask, seen = self.masks.read(scene, target), torch.from_numpy(valid)
        return {
            'image': torch.from_numpy(image),
            'valid': seen,
            'mask': mask.where(seen, self.masks.ignore_index),
        }

    def plot(
        self,
        sample: Sample,
        show_titles: bool = True,
        suptitle: str | None = None,
        **options: Any,
    ) -> 'Figure':
        """Draw a sample, and what was predicted of it.

        Args:
            sample: As of this dataset, raw or in [0, 1]; with ``prediction`` (H, W) this is drawn beside.
            show_titles: Whether to say which is which.
            suptitle: Title of all.
            **options: Of :func:`~cmid_geo.plots.samples.sample_figure`, such as ``names`` of classes.

        Returns:
            The figure.
        """
        known = {'ignore_index': self.masks.ignore_index} | options
        return self.images.plot(sample, show_titles, suptitle, **known)

    def _images_at(self, scene: Scene) -> np.ndarray:
        """Indices of the images whose boxes overlap a mask's."""
        left, lower, right, upper = scene.bounds
        always = slice(pd.Timestamp.min, pd.Timestamp.max, 1)
        return self.images._overlapping(slice(left, right), slice(lower, upper), always)
