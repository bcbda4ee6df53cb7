# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""All of it in a few minutes: scenes in, backbone, pictures and a map out."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from .callbacks.export_backbone import check_writable
from .callbacks.monitoring import CollapseAlarm
from .datamodules import SceneDataModule
from .datasets import Chip, MaskDataset, SceneDataset, SyntheticScenes
from .datasets.synthetic.landscape import CLASSES
from .ops.cells import CELL
from .ops.host import fast_precision
from .plots.model_card import model_card
from .plots.pretraining import (
    plot_cells,
    plot_curves,
    plot_map,
    plot_reconstructions,
    plot_views,
)
from .predict import embed_scene, principal_colours, write_map
from .predict.cells import Features, colours_of, probe_cells
from .tasks import CMID

#: Chips a step.
BATCH = 16

#: Longest side of what is drawn of a scene, and distance of its vectors, in pixels.
PART, STRIDE = 1024, 8

#: Pixels of all scenes together, up to which what features know is measured.
MOST_MEASURED = 8 * PART**2


def run(scenes: str | None, folder: Path, steps: int) -> None:
    """Pretrain a small backbone on scenes, and leave pictures of what it learned.

    Args:
        scenes: Folder, glob or file of GeoTIFFs; None for a landscape that is made up.
        folder: To leave everything in.
        steps: Steps to train for.

    Raises:
        ValueError: If a folder cannot be written or the scenes cannot be used.
    """
    if steps < 20:
        raise ValueError(
            f'steps={steps}: the schedules need at least 20, use --steps 150'
        )
    check_writable(folder, '--out DIR')
    seed_everything(0)
    names = CLASSES if scenes is None else None
    if scenes is None:
        print(f'Making up a landscape in {folder / "scenes"} ...', flush=True)
        SyntheticScenes(folder / 'scenes')
        scenes = str(folder / 'scenes' / 'images')

    datamodule = SceneDataModule(
        scenes,
        patch_size=96,
        length=steps * BATCH,
        val_length=4 * BATCH,
        batch_size=BATCH,
        # Neighbours would fill much of a queue as short as this, and the rank tell of them
        chips_per_region=1,
        zero_is_nodata=True,
        seed=0,
    )
    datamodule.setup('fit')
    bands = datamodule.bands or ()
    task = small_task(len(bands), steps)
    trainer = train(task, datamodule, folder, steps)
    metrics = Path(trainer.log_dir or folder) / 'metrics.csv'
    draw(task, datamodule, folder, metrics)
    dataset = cast(SceneDataset, datamodule.dataset)
    known = judge(task, dataset, folder, names)
    say_what_it_is(task, dataset, folder, metrics, known)
    watching: Any = trainer
    alarms = next(c for c in watching.callbacks if isinstance(c, CollapseAlarm)).raised
    say_what_next(folder, scenes, len(bands), alarms)


def small_task(in_channels: int, steps: int) -> CMID:
    """CMID for minutes on a laptop: the small preset with small heads and a short memory.

    Args:
        in_channels: Number of bands.
        steps: Length of the run.

    Returns:
        The task.
    """
    return CMID.small_data(
        in_channels=in_channels,
        queue_size=128,
        hidden_dim=512,
        output_dim=128,
        num_prototypes=256,
        # So small batches want the rate of larger ones, and so short a run no rise
        lr_batch_size=BATCH,
        local_views=0,
        teacher_temp=0.04,
        warmup_steps=steps // 10,
        teacher_temp_steps=0,
    )


def train(task: CMID, datamodule: SceneDataModule, folder: Path, steps: int) -> Trainer:
    """Train, with a progress bar, a checkpoint and logs.

    Args:
        task: To train.
        datamodule: Chips.
        folder: For checkpoint and logs.
        steps: Steps to train for.

    Returns:
        The Trainer, after the fit.
    """
    print(
        f'\nPretraining {task.hparams["model"]} for {steps} steps of {BATCH} chips.\n'
        f'The global loss rises at first: the queue of {task.hparams["queue_size"]} negatives fills '
        f'within {task.hparams["queue_size"] // (2 * BATCH)} steps.\nCompare it with log(1 + keys in '
        'the queue), the cost of guessing. In so few steps it and key_rank fall little after that.\n',
        flush=True,
    )
    loggers = CSVLogger(folder, 'logs', ''), TensorBoardLogger(folder, 'logs', '')
    keep = ModelCheckpoint(folder, 'checkpoint', enable_version_counter=False)
    trainer = Trainer(
        accelerator='auto',
        devices=1,
        precision=fast_precision(),
        max_steps=steps,
        max_epochs=1,
        logger=loggers,
        callbacks=[keep, TQDMProgressBar()],
        log_every_n_steps=1,
        enable_model_summary=False,
    )
    trainer.fit(task, datamodule)
    return trainer


def draw(task: CMID, datamodule: SceneDataModule, folder: Path, metrics: Path) -> None:
    """Leave pictures of views, reconstructions, losses and features, and the map.

    Args:
        task: Trained.
        datamodule: Chips and scenes.
        folder: For the pictures.
        metrics: Logged by the run.
    """
    print('\nDrawing ...', flush=True)
    bands = datamodule.bands or ()
    torch.manual_seed(0)
    chips = next(iter(datamodule.val_dataloader()))
    batch = datamodule.on_after_batch_transfer(chips, 0)
    first, second = task.augmentations(batch['image'], batch['valid'])
    task.eval()
    offset = task.student.backbone.field_offset
    matches = task.hparams['matches']
    views = plot_views(first, second, bands, matches, field_offset=offset)
    views.savefig(folder / 'views.png')
    plot_reconstructions(task, first, bands).savefig(folder / 'reconstructions.png')
    plot_curves(metrics, task.hparams['queue_size']).savefig(folder / 'curves.png')

    dataset = cast(SceneDataset, datamodule.dataset)
    scene = dataset.scenes[0]
    # Of a large scene its middle, so that each takes seconds
    width, height = min(scene.width, PART), min(scene.height, PART)
    part = (scene.width - width) // 2, (scene.height - height) // 2, width, height
    features, valid = embed_scene(task, dataset, 0, STRIDE, part=part)
    colours = principal_colours(features, valid, STRIDE)
    write_map(colours, dataset, 0, folder / 'features.tif', part)
    image = dataset[Chip((0,), *part)]['image'].float()
    plot_map(image, colours, bands).savefig(folder / 'features.png')


def judge(
    task: CMID, dataset: SceneDataset, folder: Path, names: Sequence[str] | None
) -> str:
    """Measure what the features know, if masks of the scenes lie beside them, and draw that.

    Args:
        task: Trained.
        dataset: Scenes; their masks have their names, in the folder ``masks`` beside theirs.
        folder: For the picture.
        names: Of the classes, where known.

    Returns:
        A table in Markdown; nothing where there are no masks, or not of classes, or where scenes are large.
    """
    files = [Path(scene.files[0]) for scene in dataset.scenes]
    masks = [file.parent.parent / 'masks' / file.name for file in files]
    # Vectors of all of them are kept
    pixels = sum(scene.width * scene.height for scene in dataset.scenes)
    if pixels > MOST_MEASURED or not all(file.is_file() for file in masks):
        return ''
    print('\nMeasuring what the features know of the classes ...', flush=True)
    seed_everything(0, verbose=False)
    untrained = small_task(task.hparams['in_channels'], steps=20)
    untrained.learn_values(task.value_range)
    kinds: dict[str, Features] = {
        'features of the backbone': lambda n: embed_scene(task, dataset, n, CELL)[0],
        'features of random weights': lambda n: embed_scene(untrained, dataset, n, CELL)[0],
        'mean and spread of the bands': lambda n: colours_of(dataset, n),
    }  # fmt: skip
    try:
        truth = MaskDataset(list(map(str, masks)), crs=dataset.crs, res=dataset.res)
        probe = probe_cells(kinds, dataset, truth)
    except ValueError as error:
        # What trained is worth more than this: the card is still to be written
        print(f'Not measured: {error}', flush=True)
        return ''
    columns = {'truth': probe.truth}
    for name, cells in probe.found.items():
        columns[f'{name}\n{100 * probe.accuracy(name):.1f} % right'] = cells
    plot_cells(columns, names).savefig(folder / 'cells.png')
    rows = [
        f'| {name} | {100 * probe.accuracy(name):.1f} % | {100 * probe.balanced(name):.1f} % |'
        for name in kinds
    ]
    table = '\n'.join(
        [
            '| linear probe of | right | mean of the classes |',
            '| --- | --- | --- |',
            *rows,
        ]
    )
    print(f'\n{table}', flush=True)
    return table


def say_what_it_is(
    task: CMID, dataset: SceneDataset, folder: Path, metrics: Path, known: str
) -> None:
    """Write a model card beside the backbone.

    Args:
        task: Trained.
        dataset: Of the scenes.
        folder: With the backbone.
        metrics: Logged by the run.
        known: What was measured of the features; nothing if nothing was.
    """
    scenes, first = dataset.scenes, Path(dataset.scenes[0].files[0])
    data = (
        f'{len(scenes)} scene{"s" * (len(scenes) > 1)}, the first of them {first.name}, '
        f'at {dataset.res[0]:g} units of {dataset.crs.to_string()} a pixel'
    )
    card = model_card(folder / 'backbone.ckpt', task, data, metrics, BATCH, known)
    (folder / 'MODEL_CARD.md').write_text(card, encoding='utf-8')


def say_what_next(
    folder: Path, scenes: str, in_channels: int, alarms: dict[str, int]
) -> None:
    """Tell what lies where, and how to go on.

    Args:
        folder: With everything in it.
        scenes: What was trained on.
        in_channels: Number of bands.
        alarms: Signs of collapse and the steps they showed at.
    """
    health = f'COLLAPSE: {alarms}' if alarms else 'No sign of collapse.'
    print(
        f"""
{health}

In {folder}:
  checkpoint.ckpt      student, teacher, queue and optimizer; trains on with --ckpt_path
  backbone.ckpt        the backbone alone, for TorchGeo; MODEL_CARD.md tells what it is
  views.png            two views of each chip, their masks and matched cells
  reconstructions.png  what the student makes of what it sees
  cells.png            classes that linear probes find, where masks lie beside the scenes
  curves.png           losses; logs/ holds all numbers, also for TensorBoard
  features.png, .tif   features as colours, of a large scene's middle; the map opens over it in a GIS

What next:
  your own scenes      cmid-geo demo --scenes FOLDER
  a real run           cmid-geo fit --config configs/pretrain_resnet50.yaml --data.paths FOLDER
  in another format    cmid-geo export {folder / 'checkpoint.ckpt'} backbone.onnx
  use the backbone     torchgeo.tasks.SemanticSegmentation(model='unet', backbone='resnet18',
                           in_channels={in_channels}, weights='{folder / 'backbone.ckpt'}', num_classes=...)
"""
    )
