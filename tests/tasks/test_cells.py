# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Pretraining on cells of 16 pixels."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import safetensors.torch
import timm
import torch
from chips import Chips
from lightning.pytorch.callbacks import ModelCheckpoint
from rasterfiles import noise, write
from torch.utils.data import DataLoader

from cmid_geo.models import create_backbone, export_backbone, load_backbone
from cmid_geo.plots.pretraining import plot_views
from cmid_geo.predict import predict_scene
from cmid_geo.predict.checkpoint import open_task
from cmid_geo.tasks import CMID
from cmid_geo.transforms import TwoViews

Make = Callable[..., Any]
FAMILIES = ['resnet_test', 'convnext_atto', 'swin_test', 'vit_test']


@pytest.mark.parametrize('model', FAMILIES)
def test_families_train_and_come_back(
    model: str, make_task: Make, make_trainer: Make, loader: DataLoader, tmp_path: Path
) -> None:
    task = make_task(model=model, cell=16, size=48)
    chosen = ModelCheckpoint(tmp_path, 'kept')
    trainer = make_trainer(max_steps=2, callbacks=[chosen])
    before = task.decoder.layers[0].weight.clone()
    trainer.fit(task, loader)
    assert task.decoder.layers[0].weight.shape[0] == 16 * 16 * 3
    assert not torch.equal(task.decoder.layers[0].weight, before)
    assert trainer.callback_metrics['train_loss'].isfinite()
    again: Any = open_task(tmp_path / 'kept.ckpt')
    assert again.hparams['cell'] == 16
    image = torch.rand(1, 3, 48, 64)
    features = again(image)
    assert features.shape[2:] == (3, 4)
    torch.testing.assert_close(features, task.eval()(image))


def test_matches_keep_the_papers_part(make_task: Make) -> None:
    """Of 14 x 14 cells 80, as of 7 x 7 cells 20."""
    counts = {}
    for cell in (32, 16):
        task = make_task(cell=cell, size=224)
        compared = task.compare(*task.augmentations(torch.rand(2, 3, 224, 224)))
        counts[cell] = len(compared.scores) // 4
    assert counts == {32: 20, 16: 80}


def test_own_views_get_the_cells_of_the_task(make_task: Make) -> None:
    task = make_task(cell=16, augmentations=TwoViews(64))
    first, _ = task.augmentations(torch.rand(2, 3, 64, 64))
    assert first.mask.shape == (2, 4, 4)
    with pytest.raises(ValueError, match='size=48 .*multiple of 32'):
        make_task(augmentations=TwoViews(48, cell=16))


@pytest.mark.parametrize('model', FAMILIES)
def test_exports_are_those_of_the_plain_network(
    model: str, make_task: Make, tmp_path: Path
) -> None:
    files = {}
    for cell in (32, 16):
        path = tmp_path / f'{cell}.safetensors'
        export_backbone(make_task(model=model, cell=cell), path)
        files[cell] = safetensors.torch.load_file(path)
    shapes = [{k: v.shape for k, v in each.items()} for each in files.values()]
    assert shapes[0] == shapes[1]
    network = timm.create_model(model, num_classes=0)
    assert set(files[16]) == set(network.state_dict())
    backbone = create_backbone(model).eval()
    report = load_backbone(backbone, tmp_path / '16.safetensors')
    assert len(report.loaded) == report.total
    assert backbone(torch.rand(1, 3, 64, 96)).shape[2:] == (2, 3)


@pytest.mark.parametrize('model', ['resnet_test', 'convnext_atto', 'vit_test'])
@pytest.mark.parametrize('stride', [32, 16])
def test_maps_are_those_of_the_plain_network(
    model: str, stride: int, make_task: Make, tmp_path: Path
) -> None:
    task = make_task(model=model, cell=16)
    task.high.fill_(255)
    exported = export_backbone(task, tmp_path / 'backbone.ckpt')
    scene = write(tmp_path / 'scene.tif', noise(3, 130, 100))
    found = []
    for name, each in {'task': task, 'exported': exported}.items():
        out = tmp_path / f'{name}.tif'
        options: Any = {'size': 96, 'overlap': 32, 'stride': stride}
        with rasterio.open(predict_scene(each, scene, out, **options)) as file:
            found.append(file.read())
    assert found[0].shape == found[1].shape and np.ptp(found[0]) > 0.01
    np.testing.assert_allclose(*found, atol=4e-3)


def test_lines_of_matched_cells_end_in_fine_cells(make_task: Make) -> None:
    task = make_task(cell=16)
    first, second = task.augmentations(torch.rand(2, 3, 64, 64))
    figure = plot_views(first, second, ('red', 'green', 'blue'), samples=1)
    ends = [line.get_xydata()[0] for line in figure.axes[0].lines]
    assert len(ends) == 6, 'of 16 cells'
    assert {float(side) for end in ends for side in end} <= {7.5, 23.5, 39.5, 55.5}


def test_other_cells_are_refused_with_their_cure() -> None:
    with pytest.raises(ValueError, match='cell=24.*32x32 or 16x16'):
        CMID('resnet_test', size=96, cell=24)
    with pytest.raises(ValueError, match='size=72 .*multiple of 16.*use 64 or 80'):
        CMID('resnet_test', size=72, cell=16)


def test_a_run_goes_on_from_cells_of_another_size(
    make_task: Make, make_trainer: Make, tmp_path: Path
) -> None:
    """All but the decoder, whose pixels are others."""
    trainer = make_trainer(max_steps=1, callbacks=[ModelCheckpoint(tmp_path, 'kept')])
    coarse = make_task()
    trainer.fit(coarse, DataLoader(Chips(), batch_size=4, drop_last=True))
    with pytest.warns(UserWarning, match='start anew: decoder'):
        fine = make_task(cell=16, weights=str(tmp_path / 'kept.ckpt'))
    for name, tensor in coarse.student.state_dict().items():
        assert torch.equal(fine.student.state_dict()[name], tensor), name
