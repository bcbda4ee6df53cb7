# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Figures of the samples of every dataset and datamodule."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cocofiles import write_coco
from dotafiles import write_image, write_labels
from matplotlib.figure import Figure
from PIL import Image
from rasterfiles import noise, write

from cmid_geo.datamodules import (
    ChangeDataModule,
    CocoDataModule,
    ImageFolderDataModule,
    OrientedDataModule,
    SceneDataModule,
    SegmentationDataModule,
)
from cmid_geo.datamodules.torchgeo_change import _Pairs
from cmid_geo.datasets import (
    ChangePairs,
    Chip,
    LabelledScenes,
    MaskDataset,
    OrientedChips,
    SceneDataset,
)
from cmid_geo.datasets.dota import find_pairs
from cmid_geo.ops.value_range import ValueRange


def titles(figure: Figure) -> list[str]:
    return [axis.get_title() for axis in figure.axes]


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    for day in ('20200101', '20210203'):
        image = noise(4, 64, 96)
        image[:, :8] = 0
        names = ('blue', 'green', 'red', 'nir')
        write(tmp_path / f'images/a_{day}.tif', image, nodata=0, descriptions=names)
    mask = np.zeros((1, 64, 96), np.uint8)
    mask[:, 32:], mask[:, :, 80:] = 1, 255
    write(tmp_path / 'masks/a.tif', mask)
    return tmp_path


def test_scenes_show_red_green_and_blue_and_hatch_no_data(scenes: Path) -> None:
    dataset = SceneDataset(scenes / 'images')
    sample = dataset[Chip((0, 1), 0, 0, 32, 32)]
    figure = dataset.plot(sample, suptitle='chip')
    assert titles(figure) == ['2020-01-01', '2021-02-03']
    shown = figure.axes[0].images[0].get_array()
    assert (shown[:8, :, 3] == 0).all() and (shown[8:, :, 3] == 1).all()
    # Red is the third band
    alike = [np.corrcoef(shown[8:, :, 0].ravel(), band.ravel())[0, 1] for band in sample['image'][0, :, 8:].numpy()]  # fmt: skip
    assert alike[2] > 0.99 and max(alike[0], alike[1], alike[3]) < 0.5
    assert titles(dataset.plot(dataset[Chip((0,), 0, 0, 32, 32)])) == ['2020-01-01']


def test_masks_alone_and_with_scenes(scenes: Path) -> None:
    masks = MaskDataset(scenes / 'masks')
    chip = Chip((0,), 64, 16, 32, 32)
    figure = masks.plot(masks[chip], names=['sea', 'land'])
    assert titles(figure) == ['truth']
    assert figure.axes[0].images[0].get_array().mask[:, 16:].all()
    labelled = LabelledScenes(SceneDataset(scenes / 'images'), masks)
    sample = labelled[chip]
    sample['prediction'] = torch.zeros(32, 32).long()
    figure = labelled.plot(sample, show_titles=False)
    assert titles(figure) == ['', '', '']
    assert figure.axes[1].images[0].get_array().mask[:, 16:].all()


def test_change(scenes: Path) -> None:
    place = {'before': scenes / 'images/a_20200101.tif', 'after': scenes / 'images/a_20210203.tif'}  # fmt: skip
    pairs = ChangePairs(**place, masks=scenes / 'masks', binary=True)
    figure = pairs.plot(pairs[0])
    assert titles(figure) == ['before', 'after', 'truth']
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts == ['no change', 'change']
    data = ChangeDataModule(
        before=str(place['before']), after=str(place['after']), masks=str(scenes / 'masks'),
        patch_size=32, length=2, batch_size=2,
    )  # fmt: skip
    with pytest.warns(UserWarning, match='trained on'):
        data.setup('fit')
    assert titles(data.plot(data.val_dataset[0])) == ['before', 'after', 'truth']


def test_scenes_of_datamodules(scenes: Path) -> None:
    data = SceneDataModule(str(scenes / 'images'), 32, 4, 4)
    data.setup('fit')
    batch = data.on_after_batch_transfer(next(iter(data.val_dataloader())), 0)
    first = {key: value[0] for key, value in batch.items()}
    assert len(data.plot(first).axes[0].images) == 1
    labelled = SegmentationDataModule(
        *(str(scenes / name) for name in ('images', 'masks')), patch_size=32, length=4,
        batch_size=4,
    )  # fmt: skip
    labelled.setup('fit')
    first = {k: v[0] for k, v in next(iter(labelled.train_dataloader())).items()}
    figure = labelled.plot(first, names=['sea', 'land'])
    assert titles(figure) == ['image', 'truth']


def test_folders_of_images(tmp_path: Path) -> None:
    for split in ('train', 'test'):
        for kind, value in (('dark', 10), ('light', 200)):
            (tmp_path / split / kind).mkdir(parents=True)
            for number in range(4):
                pixels = np.full((8, 8, 3), value + number, np.uint8)
                Image.fromarray(pixels).save(tmp_path / split / kind / f'{number}.png')
    data = ImageFolderDataModule(str(tmp_path), 32, 2, val_fraction=0.5)
    data.setup('fit')
    sample = data.val_dataset[-1] | {'prediction': torch.tensor(0)}
    # Of a part of a dataset the whole draws
    assert titles(data.plot(sample)) == ['truth: light\nprediction: dark']


def test_boxes(tmp_path: Path) -> None:
    write_coco(tmp_path / 'coco', 'train', 4)
    data = CocoDataModule(str(tmp_path / 'coco'), 64, val='train')
    assert data.plot({}) is None  # nothing is open yet
    data.setup('fit')
    texts = [text.get_text() for text in data.plot(data.val_dataset[0]).axes[0].texts]
    assert set(texts) <= {'ship', 'car'} and texts
    folder, names = tmp_path / 'dota', ['plane', 'ship']
    write_image(folder / 'images/a.png')
    write_labels(folder / 'labelTxt/a.txt')
    pairs = find_pairs(folder)
    chips = OrientedChips(pairs, names, 64, 16)
    number = next(n for n in range(len(chips)) if len(chips[n]['label']))
    figure = chips.plot(chips[number])
    labels = chips[number]['label'].tolist()
    told = [text.get_text() for text in figure.axes[0].texts]
    assert told == [names[label - 1] for label in labels]
    oriented = OrientedDataModule(str(folder), str(folder), classes=names, patch_size=64, overlap=16, batch_size=1)  # fmt: skip
    oriented.setup('fit')
    assert titles(oriented.plot(oriented.val_dataset[number])) == ['truth']


def test_torchgeos_pairs_are_drawn_by_their_bands() -> None:
    data: Any = _Pairs.__new__(_Pairs)
    data._statistics = ValueRange(('B04', 'B03', 'B02'), *((v,) * 3 for v in (0.0, 1.0, 0.5, 0.25)))  # fmt: skip
    sample = {'image': torch.rand(2, 3, 8, 8), 'mask': torch.eye(8)[None].long()}
    figure = data.plot(sample)
    assert titles(figure) == ['date 1', 'date 2', 'truth']
    told = [text.get_text() for text in figure.legends[0].get_texts()]
    assert told == ['no change', 'change']
