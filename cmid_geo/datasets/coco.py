# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Images with boxes, as COCO describes them."""

import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.figure import Figure
from rasterio.enums import ColorInterp, Resampling
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from torchgeo.datasets import NonGeoDataset
from torchgeo.datasets.utils import Sample

from ..plots.boxes import boxes_figure
from .annotations import boxes_by_image, read_coco
from .rasters import open_raster
from .statistics import BandStatistics

#: Images, and pixels of each, that statistics are estimated from, at most.
IMAGES, PIXELS = 64, 4096


class CocoDetection(NonGeoDataset):
    """A folder of images of any format and number of bands, and boxes from a file of COCO.

    Samples hold ``image`` (C, H, W) float32, raw, ``bbox_xyxy`` (N, 4) float32 in pixels of that
    image, and ``label`` (N) int64: 1 for the category of the least id, and so on; 0 is
    background. Boxes are clipped to their image; those without area and those of crowds are
    left out. Images without boxes stay.

    Attributes:
        classes: Names of the classes, 'background' first.
        files: Path of each image.
        boxes: Boxes of each image (N, 4) in its own pixels, as (x1, y1, x2, y2).
        labels: Labels of each image (N).
        fill: Raw value of each band, or of all, where there is no data.
    """

    def __init__(
        self,
        images: str | Path,
        annotations: str | Path,
        size: int | None = None,
        bands: Sequence[int] | None = None,
        classes: Sequence[str] | None = None,
        transforms: Callable[[Sample], Sample] | None = None,
    ) -> None:
        """Initialize a new CocoDetection instance.

        Args:
            images: Folder in which the files are that the annotations name.
            annotations: JSON with ``images``, ``annotations`` and ``categories``.
            size: Side in pixels: images are scaled so that their longer side has it, and filled
                up to squares at the right and below. By default they stay.
            bands: Positions of the bands, from 1; by default all, without
                alpha but in GeoTIFFs.
            classes: Names that the classes must have, of other images of the same kinds.
            transforms: Takes a sample and returns it altered.

        Raises:
            ValueError: If the annotations are not COCO's, contradict themselves, or name files
                or classes that do not exist.
        """
        if size is not None and size < 1:
            raise ValueError(f'size={size} is a side in pixels: give a positive number')
        self.size, self.bands, self.transforms = size, bands, transforms
        self.fill: float | Sequence[float] = 0.0
        listed = read_coco(annotations)
        kinds = sorted(listed['categories'], key=lambda kind: kind['id'])
        self.classes = ('background', *(str(kind['name']) for kind in kinds))
        if classes is not None and tuple(classes) != self.classes:
            raise ValueError(
                f'{annotations} knows {self.classes} but the others {tuple(classes)}: all files of a data '
                'set need the same categories, with ids in the same order'
            )
        self.files = [Path(images) / entry['file_name'] for entry in listed['images']]
        missing = [str(path) for path in self.files if not path.is_file()]
        if missing:
            raise ValueError(
                f'{annotations} names {len(missing)} files that do not exist, such as {missing[0]!r}: '
                'file names are relative to the folder of the images, correct it or them'
            )
        self.sizes = [
            (entry.get('height'), entry.get('width')) for entry in listed['images']
        ]
        self.boxes, self.labels = boxes_by_image(listed, str(annotations))

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.files)

    def counts(self) -> npt.NDArray[np.int64]:
        """Count the boxes of each class.

        Returns:
            Whole numbers (images, classes), without background.
        """
        kinds = len(self.classes)
        return np.stack(
            [np.bincount(each, minlength=kinds)[1:] for each in self.labels]
        )

    def is_bytes(self, index: int) -> bool:
        """Tell whether an image holds whole numbers from 0 to 255.

        Args:
            index: Which.

        Returns:
            True if all of its bands are uint8.
        """
        with _opened(self.files[index]) as file:
            return set(file.dtypes) == {'uint8'}

    def __getitem__(self, index: int) -> Sample:
        """Return an image with its boxes.

        Args:
            index: Which.

        Returns:
            See the class.

        Raises:
            ValueError: If the file cannot be read, or is of another size than the annotations say.
        """
        image, (height, width) = self._image(index)
        scale = np.array([image.shape[2] / width, image.shape[1] / height] * 2)
        boxes = self.boxes[index].clip(0, [width, height, width, height])
        kept = (boxes[:, 2:] > boxes[:, :2]).all(1)
        sample: Sample = {
            'image': torch.from_numpy(self._square(image)),
            'bbox_xyxy': torch.from_numpy((boxes[kept] * scale).astype(np.float32)),
            'label': torch.from_numpy(self.labels[index][kept]),
        }
        return sample if self.transforms is None else self.transforms(sample)

    def plot(
        self, sample: Sample, show_titles: bool = True, suptitle: str | None = None
    ) -> Figure:
        """Draw the boxes of a sample.

        Args:
            sample: In [0, 1]; with ``prediction_bbox_xyxy``, ``prediction_label`` and
                ``prediction_score`` these are drawn beside.
            show_titles: Whether to say which is which.
            suptitle: Title of all.

        Returns:
            The figure.
        """
        truth = (sample['bbox_xyxy'], sample['label'])
        found = None
        if 'prediction_bbox_xyxy' in sample:
            keys = ('bbox_xyxy', 'label', 'score')
            found = [tuple(sample[f'prediction_{key}'] for key in keys)]
        figure = boxes_figure(
            sample['image'][None], [truth], found, self.classes, titles=show_titles
        )
        if suptitle is not None:
            figure.suptitle(suptitle)
        return figure

    def _image(self, index: int) -> tuple[npt.NDArray[np.float32], tuple[int, int]]:
        """Raw bands at the wanted scale, and the size of the file."""
        with _opened(self.files[index]) as file:
            self._check(file, self.sizes[index])
            return self._bands(file), file.shape

    def _bands(self, file: Any) -> npt.NDArray[np.float32]:
        """Read the wanted bands of an open file, at the wanted scale."""
        kinds = zip(file.indexes, file.colorinterp)
        # GDAL takes the fourth of any four 8-bit bands of a GeoTIFF for alpha, near infrared too
        opaque = [
            band
            for band, kind in kinds
            if kind != ColorInterp.alpha or file.driver == 'GTiff'
        ]
        indexes = self.bands or opaque
        scale = 1.0 if self.size is None else self.size / max(file.shape)
        shape = [max(1, round(side * scale)) for side in file.shape]
        # The mean of all that falls into a pixel: nothing is skipped where images shrink
        way = Resampling.average if scale < 1 else Resampling.bilinear
        data = file.read(
            list(indexes),
            out_shape=(len(indexes), *shape),
            resampling=way,
            masked=file.nodata is not None,
        )
        fill = np.broadcast_to(self.fill, (len(indexes),))[:, None, None]
        values = np.ma.getdata(data).astype(np.float32)
        unknown = np.ma.getmaskarray(data) | ~np.isfinite(values)
        return np.where(unknown, fill, values).astype(np.float32)

    def _check(self, file: Any, size: tuple[Any, Any]) -> None:
        """Refuse bands and sizes that are not those that were told."""
        lacking = [band for band in self.bands or () if band not in file.indexes]
        if lacking:
            raise ValueError(
                f'{file.name!r} has bands 1 to {file.count}, not {lacking}: correct bands='
            )
        if None not in size and tuple(size) != file.shape:
            raise ValueError(
                f'{file.name!r} has {file.shape[0]}x{file.shape[1]} pixels but the annotations say '
                f'{size[0]}x{size[1]}: their boxes are of another version of it, correct one of both'
            )

    def _square(self, image: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Fill up to a square."""
        if self.size is None:
            return image
        bands, height, width = image.shape
        fill = np.broadcast_to(self.fill, (bands,))[:, None, None]
        square = np.tile(fill, (1, self.size, self.size)).astype(np.float32)
        square[:, :height, :width] = image
        return square


def estimate_images(
    dataset: CocoDetection,
    places: Sequence[int],
    low: float | Sequence[float | int] | None = None,
    high: float | Sequence[float | int] | None = None,
    seed: int = 0,
) -> BandStatistics:
    """Estimate the range and spread of the bands of images.

    Args:
        dataset: Holds the images.
        places: Those to look at.
        low: Raw value, or one a band, that becomes 0.
        high: Raw value, or one a band, that becomes 1. By default 0 and 255 for uint8, else each
            band's 2nd and 98th percentile.
        seed: Of the pixels.

    Returns:
        The statistics, of pixels with data.

    Raises:
        ValueError: If *low* is not less than *high* in every band.
    """
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(places)[:IMAGES]
    fill, dataset.fill, size, dataset.size = dataset.fill, np.nan, dataset.size, None
    parts = []
    for place in chosen:
        pixels = dataset[int(place)]['image'].flatten(1).numpy()
        pixels = pixels[:, np.isfinite(pixels).all(0)]
        parts.append(pixels[:, rng.integers(pixels.shape[1], size=PIXELS)])
    dataset.fill, dataset.size = fill, size
    values = np.concatenate(parts, 1).astype(np.float64)
    if low is None and all(dataset.is_bytes(int(place)) for place in chosen):
        low, high = 0.0, 255.0
    lows = np.percentile(values, 2, axis=1) if low is None else np.asarray(low, float)
    highs = (
        np.percentile(values, 98, axis=1) if high is None else np.asarray(high, float)
    )
    lows, highs = (np.broadcast_to(each, (len(values),)) for each in (lows, highs))
    if not (lows < highs).all():
        raise ValueError(
            f'raw values {lows.tolist()} to {highs.tolist()}: in every band the first must be less; leave '
            'out bands that hardly vary by bands=, or state low= and high='
        )
    scaled = ((values - lows[:, None]) / (highs - lows)[:, None]).clip(0, 1)
    std = scaled.std(1)
    positions = tuple(dataset.bands or range(1, len(values) + 1))
    return BandStatistics(
        bands=tuple(f'B{band}' for band in positions),
        low=tuple(lows.tolist()),
        high=tuple(highs.tolist()),
        mean=tuple(scaled.mean(1).tolist()),
        std=tuple(np.where(std > 1e-6, std, 1.0).tolist()),
        positions=positions,
    )


@contextmanager
def _opened(path: Path) -> Generator[Any]:
    """Open a file that need have no place on Earth."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', NotGeoreferencedWarning)
            with open_raster(str(path)) as file:
                yield file
    except (RasterioError, OSError) as error:
        raise ValueError(
            f'cannot read {str(path)!r} ({error.__cause__ or error}): replace it, or remove it from the '
            'annotations'
        ) from error
