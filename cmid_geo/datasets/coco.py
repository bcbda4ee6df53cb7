# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Images with boxes in COCO's format."""

import copy
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from rasterio.enums import ColorInterp, Resampling
from torchgeo.datasets import NonGeoDataset
from torchgeo.datasets.utils import Sample

from ..ops.value_range import ValueRange
from ..plots.samples import sample_figure
from .images import open_image
from .statistics import PIXELS, check_limits, summarize

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Images that statistics are estimated from, at most.
IMAGES = 64


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
        counts = [np.bincount(each, minlength=kinds) for each in self.labels]
        return np.stack(counts)[:, 1:]

    def is_bytes(self, index: int) -> bool:
        """Tell whether an image holds whole numbers from 0 to 255.

        Args:
            index: Which.

        Returns:
            True if all of its bands are uint8.
        """
        with open_image(self.files[index]) as file:
            return set(file.dtypes) == {'uint8'}

    def __getitem__(self, index: int) -> Sample:
        """Return an image with its boxes.

        Args:
            index: Which.

        Returns:
            ``image``, ``bbox_xyxy`` and ``label``.

        Raises:
            ValueError: If the file cannot be read, or is of another size than the annotations say.
        """
        with open_image(self.files[index]) as file:
            self._check(file, self.sizes[index])
            image, scale = self._read(file)
            boxes = self.boxes[index].clip(0, [file.width, file.height] * 2)
        kept = (boxes[:, 2:] > boxes[:, :2]).all(1)
        sample: Sample = {
            'image': torch.from_numpy(image),
            'bbox_xyxy': torch.from_numpy((boxes[kept] * scale).astype(np.float32)),
            'label': torch.from_numpy(self.labels[index][kept]),
        }
        return sample if self.transforms is None else self.transforms(sample)

    def plot(
        self,
        sample: Sample,
        show_titles: bool = True,
        suptitle: str | None = None,
        **options: Any,
    ) -> 'Figure':
        """Draw a sample, and what was predicted of it.

        Args:
            sample: As of this dataset, raw or in [0, 1]; with ``prediction_bbox_xyxy``, ``prediction_label`` and
                ``prediction_score`` these are drawn beside.
            show_titles: Whether to say which is which.
            suptitle: Title of all.
            **options: Of :func:`~cmid_geo.plots.samples.sample_figure`, such as ``names`` of classes.

        Returns:
            The figure.
        """
        known: dict[str, Any] = {'names': self.classes} | options
        return sample_figure(sample, show_titles, suptitle, **known)

    def _read(self, file: Any) -> tuple[npt.NDArray[np.float32], list[float]]:
        """Read the wanted bands at the wanted scale, and by what boxes are to be multiplied."""
        # GDAL takes the fourth of any four 8-bit bands of a GeoTIFF for alpha, near infrared too
        bands = self.bands or [
            band
            for band, kind in zip(file.indexes, file.colorinterp)
            if kind != ColorInterp.alpha or file.driver == 'GTiff'
        ]
        scale = 1.0 if self.size is None else self.size / max(file.shape)
        rows, cols = (max(1, round(side * scale)) for side in file.shape)
        # The mean of all that falls into a pixel: nothing is skipped where images shrink
        data = file.read(
            list(bands),
            out_shape=(len(bands), rows, cols),
            resampling=Resampling.average if scale < 1 else Resampling.bilinear,
            masked=file.nodata is not None,
        )
        values = np.ma.getdata(data).astype(np.float32)
        known = np.isfinite(values) & ~np.ma.getmaskarray(data)
        shape = (len(bands), self.size or rows, self.size or cols)
        image = np.full(shape, np.reshape(self.fill, (-1, 1, 1)), np.float32)
        np.copyto(image[:, :rows, :cols], values, where=known)
        return image, [cols / file.width, rows / file.height] * 2

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


def read_coco(annotations: str | Path) -> dict[str, Any]:
    """Read a file of COCO.

    Args:
        annotations: Its path.

    Returns:
        Its parts: ``images``, ``annotations`` and ``categories``.

    Raises:
        ValueError: If it is none.
    """
    try:
        listed = json.loads(Path(annotations).read_text(encoding='utf-8'))
    except (OSError, ValueError) as error:
        raise ValueError(
            f'cannot read {str(annotations)!r} ({error}): give the path of a JSON file of COCO'
        ) from error
    parts = ('images', 'annotations', 'categories')
    known = listed if isinstance(listed, dict) else {}
    lacking = [part for part in parts if part not in known]
    if lacking or not listed['images'] or not listed['categories']:
        raise ValueError(
            f'{str(annotations)!r} holds no {lacking or "images or categories"}: a file of COCO has '
            f'{parts}'
        )
    return listed


def boxes_by_image(
    listed: dict[str, Any], name: str
) -> tuple[list[npt.NDArray[np.float64]], list[npt.NDArray[np.int64]]]:
    """Sort boxes by image, without those of crowds.

    Args:
        listed: Parts of a file of COCO.
        name: Of the file, for messages.

    Returns:
        Boxes (N, 4) of each image as (x1, y1, x2, y2), and labels (N): 1 for the category of the
        least id, and so on.

    Raises:
        ValueError: If an annotation is no box, or of an image or category that is not listed.
    """
    ids = sorted(kind['id'] for kind in listed['categories'])
    label_of = {number: 1 + place for place, number in enumerate(ids)}
    place_of = {entry['id']: place for place, entry in enumerate(listed['images'])}
    found: list[list[tuple[float, ...]]] = [[] for _ in place_of]
    for entry in listed['annotations']:
        where = f'annotation {entry.get("id")} of {name}'
        for key, known in (('image_id', place_of), ('category_id', label_of)):
            if entry[key] not in known:
                raise ValueError(
                    f'{where} has {key}={entry[key]}, which is not listed: correct or remove it'
                )
        x, y, width, height = entry['bbox']
        if not (all(map(math.isfinite, entry['bbox'])) and min(width, height) >= 0):
            raise ValueError(
                f'{where} has bbox={entry["bbox"]}: boxes are x, y, width and height in pixels, finite '
                'and not negative; correct or remove it'
            )
        if not entry.get('iscrowd'):
            box = (x, y, x + width, y + height, label_of[entry['category_id']])
            found[place_of[entry['image_id']]].append(box)
    tables = [np.array(each, np.float64).reshape(-1, 5) for each in found]
    labels = [each[:, 4].astype(np.int64) for each in tables]
    return [each[:, :4] for each in tables], labels


def estimate_images(
    dataset: CocoDetection,
    places: Sequence[int],
    low: float | Sequence[float | int] | None = None,
    high: float | Sequence[float | int] | None = None,
    seed: int = 0,
) -> ValueRange:
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
        ValueError: If only one of *low* and *high* is given, they are not one or one a band, or not
            *low* < *high*; or if no image holds data.

    Warns:
        UserWarning: If a band is constant, which leaves it 0 everywhere.
    """
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(places)[:IMAGES]
    raw = copy.copy(dataset)
    raw.fill, raw.size = np.nan, None
    parts = []
    for place in chosen:
        image = raw[int(place)]['image']
        pixels = image[:, image.isfinite().all(0)].numpy()
        if pixels.shape[1]:
            # As many of each: small images count like large ones
            parts.append(pixels[:, rng.integers(pixels.shape[1], size=PIXELS)])
    if not parts:
        raise ValueError(
            f'none of {len(chosen)} images such as {dataset.files[chosen[0]]} has a pixel with data: correct '
            'the nodata value that they declare'
        )
    values = np.concatenate(parts, 1)
    bands = tuple(dataset.bands or range(1, len(values) + 1))
    is_bytes = low is None and all(dataset.is_bytes(int(i)) for i in chosen)
    return summarize(bands, values, check_limits(bands, low, high), is_bytes)
