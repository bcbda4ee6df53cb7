# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

import inspect
import re
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import Dataset

from cmid_geo import datamodules
from cmid_geo.datamodules.base import ScaledDataModule, collate_boxes
from cmid_geo.ops.value_range import ValueRange

#: Arguments that all datamodules that have them explain with the same words.
SHARED = ('patch_size', 'length', 'batch_size', 'num_workers', 'bands', 'low', 'high', 'nodata', 'file_crs',
          'zero_is_nodata', 'crs', 'res', 'seed', 'label_fraction', 'val_fraction', 'augment')  # fmt: skip


def texts(name: str) -> dict[str, str]:
    """Text of each argument of a datamodule."""
    doc = inspect.getdoc(getattr(datamodules, name).__init__) or ''
    section = doc.split('Args:\n')[1].split('\n\n')[0]
    found = re.findall(
        r'^    (\w+): (.*?)(?=^    \S|\Z)', section, flags=re.MULTILINE | re.DOTALL
    )
    return {argument: ' '.join(text.split()) for argument, text in found}


@pytest.mark.parametrize('argument', SHARED)
def test_one_argument_has_one_text(argument: str) -> None:
    told = {name: texts(name).get(argument) for name in datamodules.__all__}
    assert len({text for text in told.values() if text is not None}) == 1, told


def batch() -> dict[str, torch.Tensor]:
    return {
        'image': torch.full((1, 2, 2, 2), 5.0),
        'valid': torch.tensor([[[True, True], [True, False]]]),
    }


def test_scales_always_and_augments_in_training_only() -> None:
    data = ScaledDataModule(Dataset)
    with pytest.raises(ValueError, match=r"call setup\('fit'\)"):
        data.on_after_batch_transfer(batch(), 0)
    data._learn(ValueRange((), (0.0,), (10.0,)))
    data.augmentation = lambda *layers: (1 - layers[0], *layers[1:])  # ty: ignore
    data.trainer = SimpleNamespace(training=False)  # ty: ignore[invalid-assignment]
    scaled = data.on_after_batch_transfer(batch(), 0)['image']
    assert scaled[0, :].tolist() == [[[0.5, 0.5], [0.5, 0]]] * 2
    data.trainer = SimpleNamespace(training=True)  # ty: ignore[invalid-assignment]
    altered = data.on_after_batch_transfer(batch(), 0)
    assert torch.equal(altered['image'], 1 - scaled) and 'mask' not in altered


def test_a_task_s_value_range_is_used_until_another_fit() -> None:
    data = ScaledDataModule(Dataset)
    data._learn(ValueRange((), (0.0,), (10.0,)))
    data.value_range = ValueRange((), (0.0, 0.0), (20.0, 50.0))
    assert data.scale(batch())['image'][0, :, 0, 0].tolist() == [0.25, pytest.approx(0.1)]  # fmt: skip
    data._begin('test')
    assert data.value_range != data.statistics
    data._begin('fit')
    assert data.value_range == data.statistics


def test_what_differs_in_length_is_listed() -> None:
    samples = [
        {'image': torch.zeros(3, 4, 4), 'bbox': torch.zeros(n, 8), 'index': torch.tensor(n)}
        for n in (0, 2)
    ]  # fmt: skip
    made = collate_boxes(samples)
    assert made['image'].shape == (2, 3, 4, 4) and made['index'].tolist() == [0, 2]
    assert [len(each) for each in made['bbox']] == [0, 2]
