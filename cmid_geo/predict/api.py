# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Maps of one scene or many, and the names of their options; nothing heavy is imported before it is used."""

import errno
import os
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..options import Output, Precision, ProbabilityType, Turning

if TYPE_CHECKING:
    import torch
    from torch import nn

    from .inputs import SceneFiles

#: Most maps that a notebook shows of a run.
MOST_SHOWN = 5


@dataclass
class Tally:
    """What became of many scenes.

    Attributes:
        made: Maps that were made.
        skipped: Maps that were there.
        failed: Scenes that could not be mapped, and why.
    """

    made: list[Path] = field(default_factory=list)
    skipped: list[Path] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    @contextmanager
    def trying(self, name: str) -> Generator[None]:
        """Note what fails of a scene: whatever is wrong with one, the others may be well.

        Args:
            name: Of the scene.

        Yields:
            Nothing.

        Raises:
            OSError: If the disk is full: the others would be predicted in vain.
        """
        try:
            yield
        except Exception as error:
            self.failed[name] = reason(error)
            if disk_is_full(error):
                raise OSError(
                    f'{self}\nThe disk is full: free space and run the same command, maps that are there are kept'
                ) from error

    def _repr_html_(self) -> str:
        """Counts, and the first maps, in a notebook."""
        from ..datasets.tables import html_table
        from .written import WrittenMap

        rows = {
            'made': len(self.made),
            'there already': len(self.skipped),
            'failed': '\n'.join(f'{n}: {why}' for n, why in self.failed.items()) or 0,
        }
        maps = [WrittenMap(path) for path in (*self.made, *self.skipped)]
        shown = [each._repr_html_() for each in maps[:MOST_SHOWN]]
        return ''.join([html_table(rows), *shown])

    def __str__(self) -> str:
        """Say it."""
        counts = f'{len(self.made)} maps made, {len(self.skipped)} were there already'
        bad = [f'\n  {name}: {why}' for name, why in self.failed.items()]
        return f'{counts}, {len(bad)} scenes failed{":" * bool(bad)}{"".join(bad)}'


def reason(error: BaseException) -> str:
    """Say why something failed.

    Args:
        error: What was raised.

    Returns:
        Its message; its kind if it has none.
    """
    return str(error) or type(error).__name__


def disk_is_full(error: BaseException | None) -> bool:
    """Tell whether an error, or one that it comes from, is of a disk without space.

    Args:
        error: What was raised.

    Returns:
        Whether so, also by the words of libraries that raise errors of their own.
    """
    full = (errno.ENOSPC, errno.EDQUOT)
    while error is not None:
        words = str(error).lower()
        if getattr(error, 'errno', None) in full or any(
            os.strerror(n).lower() in words for n in full
        ):
            return True
        error = error.__cause__ or error.__context__
    return False


def check_counts(**counts: int) -> None:
    """Refuse numbers below 1.

    Args:
        counts: Numbers by name.

    Raises:
        ValueError: If one is below 1.
    """
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f'{name}={value}: give at least 1')


def predict_scene(
    task: 'nn.Module | str | os.PathLike[str]',
    scene: 'SceneFiles',
    out: str | os.PathLike[str],
    *,
    size: int = 512,
    overlap: int | None = None,
    batch_size: int = 8,
    device: 'str | torch.device' = 'auto',
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
    stride: int = 32,
) -> Path:
    """Map a whole scene.

    The scene is read in overlapping windows of its own pixels, mirrored at its edges; what the
    task says of them is blended by a smooth weight and written as it comes. Reading, predicting
    and writing overlap, and memory does not grow with the scene.

    ==========================================  ====================================================
    task                                        map
    ==========================================  ====================================================
    ``SemanticSegmentation``                    classes and/or probabilities, a value a pixel
    ``ChangeDetection``                         the same of two dates, on the grid of the first
    ``CMID`` or a backbone                      one vector a cell of 32x32 pixels, or for each
                                                *stride* of them, float16, or principal components
    ``ObjectDetection``, ``OrientedDetection``  polygons with class and score, GeoPackage or GeoJSON
    any other module                            what it makes of raw values, a value or more a pixel
    ==========================================  ====================================================

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
            it by default. For backbones a multiple of *stride*.
        batch_size: Windows that the network sees at a time.
        device: 'auto' for an accelerator if there is one, or torch's name of one.
        precision: '32-true', 'bf16-mixed' or '16-mixed'.
        output: 'classes' (default), 'probabilities' or 'both', of segmentation and change.
        components: Of a backbone's vectors, write so many principal components.
        threshold: Least probability of change or of a label, and least confidence of an object, in
            [0, 1].
        tta: Test-time augmentation: average over 'flips', 'turns', or 'all' eight.
        bands: Names or 1-based positions in the task's order; by default those that the task knows by
            name, else all.
        low: Raw value of each band, or of all, that becomes 0; the task's own by default.
        high: Raw value of each band, or of all, that becomes 1; the task's own by default.
        zero_is_nodata: Whether pixels with 0 in all bands are no data even if no file says so.
        dtype: Of probabilities, 'float32' (default) or 'uint8': whole numbers from 0 to 250 of 0.004 each,
            255 for no data, a quarter of the bytes. The file tells so as GDAL's scale, by which QGIS shows
            [0, 1] and ``read() * file.scales[0]`` gives it, to within 0.002. Of a plain module's map any,
            such as 'int16', to which values are rounded.
        labels: Names of the classes; the task's own by default.
        colors: Of the classes, as matplotlib knows them.
        num_workers: Threads that read.
        progress: Whether to show a bar, with pixels a second.
        nodata: Fill value that files do not declare, such as 255 around a scene: pixels that have it in
            all bands are no data. Files that declare one keep theirs.
        file_crs: The CRS of files that state none, such as EPSG:32633.
        stride: Pixels from one of a backbone's vectors to the next, a divisor of 32: those finer than
            its cells come from shifted cells, (32 / *stride*)² times as slowly.

    Returns:
        The file, a path that shows itself in notebooks.

    Raises:
        FileNotFoundError: If there is no such checkpoint.
        ValueError: If scene and task do not fit together, a number is off, or a file cannot be
            read or written.
    """
    from .job import plan_map
    from .predictor import SceneMapper
    from .writer import write_job
    from .written import WrittenMap

    mapper = SceneMapper(
        task, output, components=components, threshold=threshold, tta=tta, low=low,
        high=high, dtype=dtype, labels=labels, colors=colors, stride=stride,
    )  # fmt: skip
    job = plan_map(
        mapper, scene, out, size=size, overlap=overlap, bands=bands, zero_is_nodata=zero_is_nodata,
        nodata=nodata, file_crs=file_crs, precision=precision,
    )  # fmt: skip
    with mapper.running(device, precision):
        write_job(mapper, job, batch_size, num_workers, progress)
    return WrittenMap(job.out)


def map_scenes(
    checkpoint: str | os.PathLike[str],
    scenes: Sequence[str],
    out: str,
    size: int = 512,
    overlap: int | None = None,
    batch_size: int = 8,
    device: str = 'auto',
    precision: Precision = '32-true',
    output: Output | None = None,
    components: int | None = None,
    threshold: float = 0.5,
    tta: Turning = 'none',
    bands: list[str | int] | None = None,
    low: list[float] | float | None = None,
    high: list[float] | float | None = None,
    zero_is_nodata: bool = False,
    labels: list[str] | None = None,
    colors: list[str] | None = None,
    format: Literal['gpkg', 'geojson'] = 'gpkg',
    num_workers: int = 2,
    overwrite: bool = False,
    devices: int = 1,
    num_nodes: int = 1,
    nodata: float | None = None,
    file_crs: str | None = None,
    stride: int = 32,
    vector: bool = False,
    min_area: float = 0.0,
    tolerance: float = 0.0,
    dry_run: bool = False,
    dtype: ProbabilityType | None = None,
) -> Tally:
    """Map many scenes; maps that are there already are skipped, bad scenes do not stop the rest.

    Each map appears when it is finished: a run that was stopped can be started again.

    Args:
        checkpoint: Of a task or backbone.
        scenes: Folders, globs, files or URLs. For a task of change: before and after, by turns.
        out: Folder to leave the maps in, called as the scenes.
        size: Side of a window in pixels.
        overlap: What neighbouring windows share in pixels, less than half of the size; by default
            an eighth of it.
        batch_size: Windows that the network sees at a time, on each device.
        device: 'auto' for an accelerator if there is one, or torch's name of one.
        precision: Of the network's computations.
        output: Of segmentation and change: 'classes' (default), 'probabilities' or 'both'.
        components: Of a backbone's vectors, write so many principal components.
        threshold: Least probability of change or of a label, and least confidence of an object, in
            [0, 1].
        tta: Test-time augmentation: average over 'flips', 'turns', or 'all' eight.
        bands: Names or positions from 1 in the task's order; by default those that the task knows by
            name, else all.
        low: Raw value of each band, or of all, that becomes 0; the task's own by default.
        high: Raw value of each band, or of all, that becomes 1; the task's own by default.
        zero_is_nodata: Whether pixels with 0 in all bands are no data even if no file says so.
        labels: Names of the classes; the task's own by default.
        colors: Of the classes, as matplotlib knows them.
        format: Of maps of objects.
        num_workers: Threads that read, for each device.
        overwrite: Whether to make maps again that are there.
        devices: Over how many devices, or processes, of each node to share the windows.
        num_nodes: Over how many nodes.
        nodata: Fill value that files do not declare, such as 255 around a scene: pixels that have it in
            all bands are no data. Files that declare one keep theirs.
        file_crs: The CRS of files that state none, such as EPSG:32633.
        stride: Pixels from one of a backbone's vectors to the next, a divisor of 32: those finer than
            its cells come from shifted cells, (32 / stride)² times as slowly.
        vector: Whether to write the classes as polygons too, a GeoPackage beside each map.
        min_area: Polygons of less are left out, in square metres on the ground.
        tolerance: How far their borders may move by simplification, in units of the CRS.
        dry_run: Whether to check and tell what would be done, and write nothing.
        dtype: Of probabilities: 'float32' (default), or 'uint8' in steps of 0.004 with the scale in the
            file, a quarter of the bytes.

    Returns:
        What became of the scenes; of a dry run a :class:`~cmid_geo.predict.dry_run.Plan`.

    Raises:
        FileNotFoundError: If there is no such checkpoint.
        ValueError: If an argument is off, whatever the scene.
    """
    from .class_polygons import add_polygons, check_polygons
    from .datamodule import SceneWindows
    from .dry_run import plan_scenes
    from .predictor import SceneMapper
    from .tiling import cut_scene

    mapper = SceneMapper(
        checkpoint, output, components=components, threshold=threshold, tta=tta, low=low,
        high=high, labels=labels, colors=colors, stride=stride, dtype=dtype,
    )  # fmt: skip
    # What is wrong for every scene is said once
    cut_scene(1, 1, size, overlap, mapper.product.stride)
    check_counts(batch_size=batch_size, devices=devices, num_nodes=num_nodes)
    if vector:
        check_polygons(mapper.product, min_area, tolerance)
    windows = SceneWindows(
        scenes, out, size, overlap, batch_size, num_workers, bands, zero_is_nodata, overwrite,
        format, nodata, file_crs,
    )  # fmt: skip
    several = devices * num_nodes > 1
    if not several:
        check_counts(num_workers=num_workers)
    if several and not dry_run:
        is_first = _map_together(mapper, windows, device, devices, num_nodes, precision)
    else:
        # The devices of several processes are not this one's to look at
        with mapper.running('cpu' if several else device, precision):
            if dry_run:
                polygons = (min_area, tolerance) if vector else None
                return plan_scenes(mapper, windows, precision, polygons)
            _map_in_turn(mapper, windows, precision)
        is_first = True
    if vector and is_first:
        add_polygons(windows.tally, min_area, tolerance)
    return windows.tally


def _map_together(
    mapper: Any,
    windows: Any,
    device: str,
    devices: int,
    num_nodes: int,
    precision: Precision,
) -> bool:
    """Map scenes with several processes; tell whether this is the first of them."""
    from lightning.pytorch import Trainer

    from .writer import MapWriter

    trainer = Trainer(
        accelerator=device, devices=devices, num_nodes=num_nodes, precision=precision, logger=False,
        callbacks=[MapWriter(progress=True)], enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.predict(mapper, windows, return_predictions=False)
    return trainer.is_global_zero


def _map_in_turn(mapper: Any, windows: Any, precision: Precision) -> None:
    """Map one scene after the other, in this process."""
    from .writer import write_job

    tally, found = windows.tally, windows.find_scenes(mapper)
    for number, scene in enumerate(found, 1):
        say = f'[{number}/{len(found)}] {scene.out.name}'
        with tally.trying(scene.name):
            job = windows.plan(mapper, scene, precision)
            if job is None:
                print(f'{say} is there', file=sys.stderr)
            else:
                write_job(
                    mapper, job, windows.batch_size, windows.num_workers, progress=say
                )
                tally.made.append(scene.out)
        if scene.name in tally.failed:
            print(f'{say} failed: {tally.failed[scene.name]}', file=sys.stderr)
