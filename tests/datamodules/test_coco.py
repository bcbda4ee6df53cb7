# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from cocofiles import write_coco

from cmid_geo.datamodules import CocoDataModule


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_coco(tmp_path, 'train', 21)
    write_coco(tmp_path, 'test', 4)
    return tmp_path


def make(root: Path, stage: str = 'fit', **options: Any) -> CocoDataModule:
    data = CocoDataModule(str(root), **({'size': 48, 'batch_size': 3} | options))
    data.setup(stage)
    return data


def test_batches_are_scaled_and_in_training_altered(root: Path) -> None:
    data = make(root)
    batch = next(iter(data.train_dataloader()))
    assert batch['image'].shape == (3, 3, 48, 48) and batch['image'].max() > 100
    data.trainer = SimpleNamespace(training=False)  # ty: ignore[invalid-assignment]
    plain = data.on_after_batch_transfer(dict(batch), 0)
    assert torch.allclose(plain['image'], batch['image'] / 255)
    assert all(map(torch.equal, plain['bbox_xyxy'], batch['bbox_xyxy']))
    data.trainer = SimpleNamespace(training=True)  # ty: ignore[invalid-assignment]
    altered = data.on_after_batch_transfer(dict(batch), 0)
    assert altered['image'].min() >= 0 and altered['image'].max() <= 1
    assert not torch.allclose(altered['image'], plain['image'])
    for image, boxes in zip(altered['image'], altered['bbox_xyxy'], strict=True):
        for x1, y1, x2, y2 in boxes.round().int().tolist():
            inside = image[:, y1:y2, x1:x2].mean()
            assert inside > 2 * image[:, image[0] > 0].median()


def test_validation_is_held_out(root: Path) -> None:
    data = make(root, val_fraction=0.2)
    train, val = data.train_dataset.indices, data.val_dataset.indices  # ty: ignore
    assert not set(train) & set(val) and len(train) + len(val) == 21
    assert 4 <= len(val) <= 5
    again = make(root, val_fraction=0.2, label_fraction=0.2)
    assert again.val_dataset.indices == val  # ty: ignore
    few = again.train_dataset.indices  # ty: ignore
    assert set(few) < set(train) and 3 <= len(few) <= 5
    assert (again._whole.counts()[few] > 0).any(0).all()
    assert make(root, seed=1).train_dataset.indices != make(root).train_dataset.indices  # ty: ignore


def test_fewer_images_than_a_batch_are_trained_on(root: Path) -> None:
    data = make(root, label_fraction=0.05, batch_size=8)
    sizes = [len(batch['image']) for batch in data.train_dataloader()]
    assert sum(sizes) == len(data.train_dataset) > 0  # ty: ignore


def test_splits_and_layouts(root: Path) -> None:
    write_coco(root, 'val', 5)
    data = make(root, val='val')
    assert len(data.train_dataset) == 21 and len(data.val_dataset) == 5  # ty: ignore
    data.setup('test')
    assert sum(len(batch['image']) for batch in data.test_dataloader()) == 4
    (root / 'notes').mkdir()
    (root / 'train.json').rename(root / 'notes' / 'boxes_train.json')
    other = make(root, annotations='notes/boxes_{split}.json', test=None)
    assert other.classes == ('background', 'car', 'ship')
    with pytest.raises(ValueError, match='test=None.*give the name of a split'):
        other.setup('test')


def test_other_types_are_scaled_by_their_range(tmp_path: Path) -> None:
    write_coco(tmp_path, 'train', 8, driver='GTiff', dtype='float32', count=5)
    data = make(tmp_path)
    assert data.statistics is not None and len(data.statistics.low) == 5
    batch = data.scale(next(iter(data.train_dataloader())))
    assert batch['image'].shape[1] == 5
    assert batch['image'].min() == 0 and batch['image'].max() == 1
    # What a square is filled up with is 0
    assert batch['image'][:, :, 33:].abs().max() == 0
    data.value_range = replace(data.statistics, low=(0.0,) * 5, high=(1000.0,) * 5)
    scaled = data.scale({'image': torch.full((1, 5, 2, 2), 250.0)})
    assert torch.allclose(scaled['image'], torch.tensor(0.25))


@pytest.mark.parametrize(
    'options, message',
    (
        ({'label_fraction': 0.0}, 'label_fraction=0.0'),
        ({'label_fraction': 1.5}, 'label_fraction=1.5'),
        ({'val_fraction': 1.0}, 'val_fraction=1.0.*between 0 and 1'),
        ({'low': 0.0}, 'a range needs both'),
        ({'size': 0}, 'size=0 is a side'),
        ({'scale': (0.0, 1.0)}, 'scale='),
    ),
)
def test_bad_arguments_are_refused(root: Path, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(root, **options)


def test_scaling_needs_the_range(root: Path) -> None:
    with pytest.raises(ValueError, match=r"call setup\('fit'\)"):
        CocoDataModule(str(root)).scale({'image': torch.rand(1, 3, 8, 8)})


def test_images_of_several_sizes_need_one(root: Path) -> None:
    listed = write_coco(root / 'wide', 'train', 4, width=80)
    for entry in listed['images'] + listed['annotations']:
        entry['id'] += 1000
    for entry in listed['images']:
        target = root / 'train' / f'wide_{entry["file_name"]}'
        (root / 'wide' / 'train' / entry['file_name']).rename(target)
        entry['file_name'] = target.name
    known = json.loads((root / 'train.json').read_text())
    known['images'] = known['images'][:4] + listed['images']
    known['annotations'] = known['annotations'][:4]
    (root / 'train.json').write_text(json.dumps(known))
    data = make(root, val='train', batch_size=8)
    assert next(iter(data.train_dataloader()))['image'].shape == (8, 3, 48, 48)
    with pytest.raises(ValueError, match=r'\(3, 40, 60\) and \(3, 40, 80\).*by size='):
        next(iter(make(root, val='train', size=None, batch_size=8).train_dataloader()))
