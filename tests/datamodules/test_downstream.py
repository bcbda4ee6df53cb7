# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from lightning.pytorch import Trainer
from PIL import Image
from rasterio.transform import from_origin
from torchgeo.datamodules import (
    Potsdam2DDataModule,
    UCMercedDataModule,
    Vaihingen2DDataModule,
)

from cmid_geo.datamodules import ImageFolderDataModule, SegmentationDataModule
from cmid_geo.datasets import Chip
from cmid_geo.tasks import Classification, SemanticSegmentation

QUIET: Any = {
    'accelerator': 'cpu', 'max_epochs': 1, 'logger': False, 'enable_checkpointing': False,
    'enable_progress_bar': False, 'enable_model_summary': False,
}  # fmt: skip


def write(path: Path, array: np.ndarray, **profile: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    profile |= {'driver': 'GTiff', 'count': len(array), 'dtype': array.dtype}
    profile |= {'height': array.shape[1], 'width': array.shape[2]}
    with rasterio.open(path, 'w', **profile) as file:
        file.write(array)


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    """Two scenes of four bands with two classes, of which the image tells; some have no label."""
    rng = np.random.default_rng(0)
    grid = {'crs': 'EPSG:32633', 'transform': from_origin(500000, 5000000, 1, 1)}
    for name, size in (('train', 160), ('test', 96)):
        labels = (np.indices((size, size)).sum(0) // 40 % 2).astype(np.uint8)
        image = rng.integers(0, 50, (4, size, size)) + 150 * labels
        labels[:8] = 255
        write(tmp_path / name / 'image.tif', image.astype(np.uint8), **grid)
        write(tmp_path / name / 'mask.tif', labels[None], nodata=255, **grid)
    return tmp_path


def datamodule(scenes: Path, **options: Any) -> SegmentationDataModule:
    train, test = (str(scenes / name) for name in ('train', 'test'))
    return SegmentationDataModule(
        f'{train}/image.tif', f'{train}/mask.tif', f'{test}/image.tif', f'{test}/mask.tif',
        f'{test}/image.tif', f'{test}/mask.tif',
        **({'patch_size': 32, 'length': 32, 'batch_size': 8} | options),
    )  # fmt: skip


def test_segmentation_end_to_end(scenes: Path) -> None:
    dm = datamodule(scenes)
    task = SemanticSegmentation(
        'unet', 'test_resnet', in_channels=4, num_classes=2, ignore_index=255, lr=3e-3
    )
    trainer = Trainer(**(QUIET | {'max_epochs': 6}))
    trainer.fit(task, dm)
    (scores,) = trainer.test(task, dm, verbose=False)
    assert scores['test_OverallAccuracy'] > 0.9
    # All of the held-out ground is counted, window by window
    assert len(dm.test_sampler) == 9
    assert task.low.tolist() == [0] * 4 and task.high.tolist() == [255] * 4
    (predicted, *_) = trainer.predict(task, dm)
    assert predicted['probabilities'].shape == (8, 2, 32, 32)


def test_few_labels(scenes: Path) -> None:
    dm = datamodule(scenes, label_fraction=0.1)
    dm.setup('fit')
    windows = {(chip.col, chip.row) for chip in dm.train_sampler}
    assert 2 <= len(windows) <= 4
    again = datamodule(scenes, label_fraction=0.1)
    again.setup('fit')
    assert windows == {(chip.col, chip.row) for chip in again.train_sampler}
    seen = torch.cat([batch['mask'].unique() for batch in dm.train_dataloader()])
    assert {0, 1} <= set(seen.tolist())


def test_augmentation_is_for_training_only(scenes: Path) -> None:
    dm = datamodule(scenes)
    dm.setup('fit')
    (raw, *_) = list(dm.val_dataloader())
    batch = dm.on_after_batch_transfer(dict(raw), 0)
    expected = raw['image'] / 255 * raw['valid'][:, None]
    torch.testing.assert_close(batch['image'], expected)
    assert torch.equal(batch['mask'], raw['mask'])


def test_what_is_missing_is_said(scenes: Path) -> None:
    with pytest.raises(ValueError, match='val_images=.*give both'):
        SegmentationDataModule('images', 'masks', val_images='more')
    dm = datamodule(scenes)
    dm.held['test'] = (None, None)
    with pytest.raises(ValueError, match='test_images='):
        Trainer(**QUIET).test(
            SemanticSegmentation('unet', 'resnet_test', in_channels=4, num_classes=2),
            dm,
        )


def test_validation_alone_needs_images(scenes: Path) -> None:
    dm = datamodule(scenes)
    dm.held['val'] = (None, None)
    task = SemanticSegmentation(
        'unet', 'test_resnet', in_channels=4, num_classes=2, ignore_index=255
    )
    with pytest.raises(ValueError, match='nothing to validate on: give .*val_images='):
        Trainer(**QUIET).validate(task, dm)
    # A fit goes without
    Trainer(**(QUIET | {'max_steps': 1})).fit(task, dm)


def folders(root: Path, splits: tuple[str, ...] = ('train', 'test')) -> Path:
    for split in splits:
        for label, name in enumerate(('field', 'town')):
            (root / split / name).mkdir(parents=True)
            for number in range(10):
                grey = np.full((40, 50, 3), 40 + 150 * label + number, np.uint8)
                Image.fromarray(grey).save(root / split / name / f'{number}.png')
    return root


def test_image_folders_end_to_end(tmp_path: Path) -> None:
    dm = ImageFolderDataModule(str(folders(tmp_path)), size=32, batch_size=4)
    task = Classification('test_resnet', num_classes=2, lr=3e-3)
    trainer = Trainer(**(QUIET | {'max_epochs': 10}))
    trainer.fit(task, dm)
    (scores,) = trainer.test(task, dm, verbose=False)
    assert scores['test_OverallAccuracy'] > 0.9
    assert dm.classes == ['field', 'town'] and task.high.tolist() == [255] * 3
    # One of ten of each class validates
    assert len(dm.val_dataset) == 2 and len(dm.train_dataset) == 18
    few = ImageFolderDataModule(
        str(tmp_path), size=32, batch_size=4, low=20, high=120, label_fraction=0.01
    )
    few.setup('fit')
    labels = [int(few.train_dataset[i]['label']) for i in range(len(few.train_dataset))]
    assert labels == [0, 1]
    task.learn_values(few.value_range)
    assert task.low.tolist() == [20] * 3 and task.high.tolist() == [120] * 3
    assert next(iter(few.train_dataloader()))['image'].shape == (2, 3, 32, 32)


def test_splits_of_other_classes_are_refused(tmp_path: Path) -> None:
    folders(tmp_path, ('train', 'test'))
    (tmp_path / 'test' / 'town').rename(tmp_path / 'test' / 'sea')
    with pytest.raises(ValueError, match='test and train.*sea, town'):
        ImageFolderDataModule(str(tmp_path)).setup('test')


def test_torchgeos_ucmerced(tmp_path: Path) -> None:
    names = {'train': range(4), 'val': range(4, 6), 'test': range(6, 8)}
    for split, numbers in names.items():
        files = [f'{c}{n:02d}.tif' for c in ('beach', 'river') for n in numbers]
        (tmp_path / f'uc_merced-{split}.txt').write_text('\n'.join(files))
        for name in files:
            path = tmp_path / 'UCMerced_LandUse' / 'Images' / name[:-6] / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((64, 64, 3), 80, np.uint8)).save(path)
    dm = UCMercedDataModule(root=str(tmp_path), batch_size=4)
    task = Classification('test_resnet', num_classes=2)
    trainer = Trainer(**(QUIET | {'limit_train_batches': 1}))
    trainer.fit(task, dm)
    trainer.test(task, dm, verbose=False)
    assert trainer.callback_metrics['test_loss'].isfinite()


@pytest.mark.parametrize('kind', [Potsdam2DDataModule, Vaihingen2DDataModule])
def test_torchgeos_potsdam_and_vaihingen(kind: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    potsdam = kind is Potsdam2DDataModule
    bands = 4 if potsdam else 3
    names = {
        True: ('2_10', '2_11', '2_12', '5_13', '2_13', '6_13'),
        False: ('1', '11', '13', '6', '24', '35'),
    }[potsdam]
    colours = np.array([[255, 255, 255], [0, 0, 255], [0, 255, 255]], np.uint8)
    for name in names:
        image = rng.integers(0, 255, (bands, 64, 64)).astype(np.uint8)
        mask = colours[rng.integers(0, 3, (64, 64))].transpose(2, 0, 1)
        if potsdam:
            write(tmp_path / '4_Ortho_RGBIR' / f'top_potsdam_{name}_RGBIR.tif', image)
            write(tmp_path / f'top_potsdam_{name}_label.tif', mask)
        else:
            write(tmp_path / 'top' / f'top_mosaic_09cm_area{name}.tif', image)
            write(tmp_path / f'top_mosaic_09cm_area{name}.tif', mask)
    dm = kind(root=str(tmp_path), batch_size=2, patch_size=64, val_split_pct=0.4)
    task = SemanticSegmentation(
        'upernet', 'test_resnet', in_channels=bands, num_classes=6,
        decoder_options={'decoder_channels': 16},
    )  # fmt: skip
    trainer = Trainer(**QUIET)
    trainer.fit(task, dm)
    trainer.test(task, dm, verbose=False)
    assert trainer.callback_metrics['test_loss'].isfinite()


def test_other_bands_are_named(scenes: Path) -> None:
    task = SemanticSegmentation('unet', 'test_resnet', num_classes=2, ignore_index=255)
    with pytest.raises(
        ValueError, match=r'4 bands but SemanticSegmentation\(in_channels=3'
    ):
        Trainer(**QUIET).fit(task, datamodule(scenes))


def test_images_and_masks_that_say_too_little(scenes: Path) -> None:
    for path in scenes.rglob('*.tif'):
        with rasterio.open(path) as file:
            array, profile = file.read(), file.profile | {'crs': None}
        if path.name == 'image.tif':
            array[:, 140:, :20] = 254
        with rasterio.open(path, 'w', **profile) as file:
            file.write(array)
    dm = datamodule(scenes, nodata=254, file_crs='EPSG:32633')
    dm.setup('fit')
    sample = dm.train_dataset[Chip((0,), 0, 0, 160, 160)]
    assert not sample['valid'][140:, :20].any() and sample['valid'][:140].all()
    assert (sample['mask'][140:, :20] == 255).all()
