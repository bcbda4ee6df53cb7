# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""A whole scene in, a georeferenced map out."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torchgeo.datasets.utils import Path as PathLike
from tqdm import tqdm

from ..datasets.gdal import gdal_settings
from ..options import Turning
from .inputs import SceneFiles
from .job import Job
from .maps import MapInMaking, make_map
from .outputs import Output
from .planning import plan_map
from .predictor import SceneMapper
from .running import Behind, Precision, read_ahead, running


def predict_scene(
    task: nn.Module | PathLike,
    scene: SceneFiles,
    out: PathLike,
    *,
    size: int = 512,
    overlap: int | None = None,
    batch_size: int = 8,
    device: str | torch.device = 'auto',
    precision: Precision = '32-true',
    output: Output | None = None,
    components: int | None = None,
    threshold: float = 0.5,
    tta: Turning = 'none',
    bands: Sequence[str | int] | None = None,
    low: Sequence[float] | float | None = None,
    high: Sequence[float] | float | None = None,
    zero_is_nodata: bool = False,
    dtype: str | None = None,
    labels: Sequence[str] | None = None,
    colors: Sequence[str] | None = None,
    num_workers: int = 2,
    progress: bool = False,
    nodata: float | None = None,
    file_crs: str | None = None,
) -> Path:
    """Map a whole scene.

    The scene is read in overlapping windows of its own pixels, mirrored at its edges; what the
    task says of them is blended by a smooth weight and written as it comes. Reading, predicting
    and writing overlap, and memory does not grow with the scene.

    ====================================  ======================================================
    task                                  map
    ====================================  ======================================================
    ``SemanticSegmentation``              classes and/or probabilities, a value a pixel
    ``ChangeDetection``                   the same of two dates, on the grid of the first
    ``CMID`` or a backbone                one vector a cell of 32x32 pixels, float16, or principal
                                          components
    ``ObjectDetection``, ``OrientedDetection``  polygons with class and score, in a GeoPackage or GeoJSON
    any other module                      what it makes of raw values, a value or more a pixel
    ====================================  ======================================================

    Maps of pixels have the CRS, transform and size of the scene; they are cloud-optimised
    GeoTIFFs with overviews (float16 ones without: GDAL makes none), class names and colours, and
    nodata where the scene has none: a class that there is not, or NaN. Of a plain module's whole
    numbers any may be meant; there a mask tells (``read(masked=True)``).

    Args:
        task: A task, a backbone, a module from (B, C, H, W) to (B, K, H, W), or a checkpoint of a
            task or backbone.
        scene: File, URL or folder of one file a band; of a task for change (before, after), which
            is aligned to the first's pixels.
        out: File to write: ``.tif``, and for objects ``.gpkg`` or ``.geojson``. With
            ``output='both'`` probabilities get the ending ``_probabilities.tif``.
        size: Side of a window in pixels, for our tasks a multiple of 32.
        overlap: What neighbouring windows share, in pixels, less than half of *size*; an eighth of
            it by default. For backbones a multiple of 32.
        batch_size: Windows that the network sees at a time.
        device: 'auto' for an accelerator if there is one, or torch's name of one.
        precision: '32-true', 'bf16-mixed' or '16-mixed'.
        output: 'classes' (default), 'probabilities' or 'both', of segmentation and change.
        components: Of a backbone's vectors, write so many principal components.
        threshold: Least share of change or of a label, and least score of an object, in [0, 1].
        tta: Test-time augmentation: average over 'flips', 'turns', or 'all' eight.
        bands: Names or 1-based positions in the task's order; by default those that the task knows by
            name, else all.
        low: Raw value of each band, or of all, that stands for 0; the task's own by default.
        high: Likewise for 1.
        zero_is_nodata: Whether pixels with 0 in all bands are no data even if no file says so.
        dtype: Of a plain module's map, such as 'uint8', to which values are rounded.
        labels: Names of the classes; the task's own by default.
        colors: Of the classes, as matplotlib knows them.
        num_workers: Threads that read.
        progress: Whether to show a bar, with pixels a second.
        nodata: Fill value that files do not declare, such as 255 around a scene: pixels that have it in
            all bands are no data. Files that declare one keep theirs.
        file_crs: The CRS of files that state none, such as EPSG:32633.

    Returns:
        The file.

    Raises:
        FileNotFoundError: If there is no such checkpoint.
        ValueError: If scene and task do not fit together, a number is off, or a file cannot be
            read or written.
    """
    mapper = SceneMapper(
        task, output, components=components, threshold=threshold, tta=tta, low=low, high=high,
        dtype=dtype, labels=labels, colors=colors,
    )  # fmt: skip
    job = plan_map(
        mapper, scene, out, size=size, overlap=overlap, bands=bands,
        zero_is_nodata=zero_is_nodata, nodata=nodata, file_crs=file_crs,
        about={'precision': precision},
    )  # fmt: skip
    with running(mapper, device, precision):
        map_job(mapper, job, batch_size, num_workers, progress)
    return job.out


def map_job(
    mapper: SceneMapper,
    job: Job,
    batch_size: int,
    num_workers: int,
    progress: bool | str = False,
) -> None:
    """Make one map with one process.

    Args:
        mapper: On its device, in evaluation mode.
        job: What is to be done.
        batch_size: Windows that the network sees at a time.
        num_workers: Threads that read.
        progress: Whether to show a bar, or what to call it.

    Raises:
        ValueError: If a number is off, or a file cannot be read or written.
    """
    for name, value in (('batch_size', batch_size), ('num_workers', num_workers)):
        if value < 1:
            raise ValueError(f'{name}={value}: give at least 1')
    bar = tqdm(
        total=job.pixels, unit='px', unit_scale=True, disable=not progress,
        desc=progress if isinstance(progress, str) else job.out.name,
    )  # fmt: skip

    def tell(pixels: int) -> None:
        bar.update(pixels - bar.n)

    with gdal_settings(job.reading.is_remote), bar:
        lock = job.begin()
        try:
            whole = make_map(job, range(len(job.tiling)))
            try:
                _run(mapper, job, whole, batch_size, num_workers, tell)
                whole.finish()
            finally:
                whole.drop()
        finally:
            # Files of a thousand scenes cannot all stay open
            job.source.close()
            job.end(lock)


def _run(
    mapper: SceneMapper,
    job: Job,
    making: MapInMaking,
    batch_size: int,
    num_workers: int,
    tell: Callable[[int], Any],
) -> None:
    """Read ahead in threads, predict here, and write behind in a thread of its own."""
    done = 0

    def write(batch: list[Any], found: Iterable[Any]) -> None:
        for (window, *arrays), each in zip(batch, found, strict=True):
            image, valid = map(torch.from_numpy, arrays)
            making.add(window, each, valid, image)

    def read(window: int) -> tuple[int, np.ndarray, np.ndarray]:
        return window, *job.reading.read(window)

    with Behind() as behind:
        for batch in _batches(read, range(len(job.tiling)), batch_size, num_workers):
            seen = batch[0][2].any()
            found = look(mapper, batch) if seen else [None] * len(batch)
            behind.do(write, batch, found)
            done += len(batch)
            tell(job.pixels * done // len(job.tiling))


def look(
    mapper: SceneMapper, batch: Sequence[tuple[int, np.ndarray, np.ndarray]]
) -> Any:
    """Predict windows.

    Args:
        mapper: On its device.
        batch: Number, raw values and validity of each window.

    Returns:
        What :class:`SceneMapper` says of each.
    """
    image, valid = (
        torch.from_numpy(np.stack([each[part] for each in batch])) for part in (1, 2)
    )
    if mapper.device.type == 'cuda':
        # Pinned memory is copied while the GPU computes
        image, valid = (
            each.pin_memory().to(mapper.device, non_blocking=True)
            for each in (image, valid)
        )
    return mapper(image.to(mapper.device), valid.to(mapper.device))


def _batches(
    read: Callable[[int], tuple[int, np.ndarray, np.ndarray]],
    windows: Iterable[int],
    batch_size: int,
    workers: int,
) -> Iterator[list[tuple[int, np.ndarray, np.ndarray]]]:
    """Batches of windows that have data, and of those that have none."""
    held: dict[bool, list[Any]] = {True: [], False: []}
    for item in read_ahead(read, windows, workers, 2 * batch_size + workers):
        some = bool(item[2].any())
        held[some].append(item)
        if len(held[some]) == batch_size:
            yield held[some]
            held[some] = []
    yield from filter(None, held.values())
