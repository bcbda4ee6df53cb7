# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Maps of many scenes: the command ``cmid-geo map``."""

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from ..options import Output, Precision, Turning

if TYPE_CHECKING:
    from .listing import Tally, Task
    from .predictor import SceneMapper


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
) -> 'Tally':
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
        threshold: Least share of change or of a label, and least score of an object.
        tta: Test-time augmentation: average over 'flips', 'turns', or 'all' eight.
        bands: Names or positions from 1 in the task's order; by default those that the task knows by
            name, else all.
        low: Raw value of each band, or of all, that stands for 0; the task's own by default.
        high: Likewise for 1.
        zero_is_nodata: Whether pixels with 0 in all bands are no data even if no file says so.
        labels: Names of the classes; the task's own by default.
        colors: Of the classes, as matplotlib knows them.
        format: Of maps of objects.
        num_workers: Threads that read; over several devices processes of each.
        overwrite: Whether to make maps again that are there.
        devices: Over how many devices, or processes, of each node to share the windows.
        num_nodes: Over how many nodes.
        nodata: Fill value that files do not declare, such as 255 around a scene: pixels that have it in
            all bands are no data. Files that declare one keep theirs.
        file_crs: The CRS of files that state none, such as EPSG:32633.

    Returns:
        What became of the scenes.

    Raises:
        FileNotFoundError: If there is no such checkpoint.
        ValueError: If an argument is off, whatever the scene.
    """
    # Here, so that the command tells of its options without torch
    from lightning.pytorch import Trainer

    from .datamodule import SceneWindows
    from .listing import list_tasks
    from .predictor import SceneMapper
    from .running import running
    from .tiling import cut_scene
    from .writer import MapWriter

    mapper = SceneMapper(
        checkpoint, output, components=components, threshold=threshold, tta=tta, low=low,
        high=high, labels=labels, colors=colors,
    )  # fmt: skip
    # What is wrong for every scene is said once
    cut_scene(1, 1, size, overlap, mapper.outcome.stride)
    _check_counts(batch_size=batch_size, devices=devices, num_nodes=num_nodes)
    if devices * num_nodes > 1:
        windows = SceneWindows(
            scenes, out, size, overlap, batch_size, num_workers, bands, zero_is_nodata, overwrite, format,
            nodata, file_crs,
        )  # fmt: skip
        trainer = Trainer(
            accelerator=device, devices=devices, num_nodes=num_nodes, precision=precision,
            callbacks=[MapWriter(progress=True)], logger=False, enable_progress_bar=False,
            enable_model_summary=False,
        )  # fmt: skip
        trainer.predict(mapper, windows, return_predictions=False)
        return windows.tally
    _check_counts(num_workers=num_workers)
    ending = f'.{format}' if mapper.outcome.kind == 'objects' else '.tif'
    tasks = list_tasks(scenes, out, mapper.outcome.dates, ending, file_crs)
    cut: dict[str, Any] = {'size': size, 'overlap': overlap, 'bands': bands, 'zero_is_nodata': zero_is_nodata}  # fmt: skip
    cut |= {'nodata': nodata, 'file_crs': file_crs, 'about': {'precision': precision}}
    work = {'batch_size': batch_size, 'num_workers': num_workers}
    with running(mapper, device, precision):
        return _map_each(mapper, tasks, cut, work, overwrite)


def _map_each(
    mapper: 'SceneMapper',
    tasks: 'list[Task]',
    cut: dict[str, Any],
    work: dict[str, Any],
    overwrite: bool,
) -> 'Tally':
    """Map scenes one after another, and tell what became of each."""
    from .listing import Tally

    tally = Tally()
    for number, task in enumerate(tasks, 1):
        say = f'[{number}/{len(tasks)}] {task.out.name}'
        # Whatever is wrong with one scene, the others may be well
        try:
            made = _map_one(mapper, task, cut, work, overwrite, say)
            (tally.made if made else tally.skipped).append(task.out)
        except Exception as error:  # noqa: BLE001
            tally.failed[task.name] = str(error) or type(error).__name__
            print(f'{say} failed: {tally.failed[task.name]}', file=sys.stderr)
    return tally


def _map_one(
    mapper: 'SceneMapper',
    task: 'Task',
    cut: dict[str, Any],
    work: dict[str, Any],
    overwrite: bool,
    say: str,
) -> bool:
    """Map a scene, unless its map is there; tell whether it was made."""
    from .planning import plan_map
    from .scene import map_job

    job = plan_map(mapper, task.scene, task.out, **cut)
    if not overwrite and job.is_finished:
        print(f'{say} is there', file=sys.stderr)
        job.sweep()
        return False
    map_job(mapper, job, **work, progress=say)
    return True


def _check_counts(**counts: int) -> None:
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f'{name}={value}: give at least 1')
