# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Where and when the scenes of a dataset lie, in datasets, checkpoints and exports."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import networks  # noqa: F401
import numpy as np
import onnx
import pytest
import torch
from lightning.pytorch import Trainer
from rasterfiles import noise, write
from rasterio.warp import transform_bounds

from cmid_geo import SceneDataset, SegmentationDataModule, SemanticSegmentation
from cmid_geo.datasets.extent import extent_of
from cmid_geo.models import export_backbone
from cmid_geo.predict import export_task
from cmid_geo.predict.checkpoint import open_task


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, east in (('2020-06-01', 500000), ('2018-03-02', 501280)):
        write(tmp_path / f'in/{name}.tif', noise(3, 64, 64), origin=(east, 5000000))
    return tmp_path / 'in'


def test_all_scenes_count(folder: Path) -> None:
    found = extent_of(SceneDataset(folder))
    assert found is not None and found['scenes'] == 2
    assert (found['start'], found['end']) == ('2018-03-02', '2020-06-01')
    bounds = transform_bounds('EPSG:32633', 'EPSG:4326', 500000, 4999360, 501920, 5000000)  # fmt: skip
    np.testing.assert_allclose(found['bbox'], bounds, atol=1e-6)
    # UTM is smaller than the ground by 0.9996 in the middle of its zone
    assert found['resolution'] == pytest.approx(10 / 0.9996, rel=1e-4)
    json.dumps(found)


def test_what_is_not_known(tmp_path: Path) -> None:
    path = write(tmp_path / 'scene.tif', noise(1, 64, 64))
    found = extent_of(SceneDataset(path))
    assert found is not None and found['start'] is None and found['end'] is None
    degrees = write(tmp_path / 'a.tif', noise(1, 64, 64), crs='EPSG:4326', origin=(9, 60), res=1e-4)  # fmt: skip
    found = extent_of(SceneDataset(degrees))
    # Half as wide as high at 60 degrees north
    assert found is not None
    assert found['resolution'] == pytest.approx(11.14 * 0.5**0.5, rel=1e-2)
    assert extent_of([1, 2, 3]) is None and extent_of(None) is None


def test_from_the_fit_to_the_program(folder: Path, tmp_path: Path) -> None:
    mask = np.zeros((1, 64, 64), np.uint8)
    mask[:, 32:] = 1
    for path in folder.iterdir():
        east = 500000 if '2020' in path.name else 501280
        write(tmp_path / 'masks' / path.name, mask, origin=(east, 5000000))
    data = SegmentationDataModule(
        str(folder), str(tmp_path / 'masks'), patch_size=32, length=2, batch_size=2
    )
    task = SemanticSegmentation('unet', 'resnet_test', num_classes=2)
    trainer = Trainer(
        max_steps=1, accelerator='cpu', logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(task, data)
    trainer.save_checkpoint(tmp_path / 'task.ckpt')
    expected = extent_of(SceneDataset(folder))
    opened: Any = open_task(tmp_path / 'task.ckpt')
    assert task.training_data == opened.training_data == expected
    # A resolution need not be given then
    out = export_task(tmp_path / 'task.ckpt', tmp_path / 'a.onnx', size=32)
    about = {p.key: json.loads(p.value) for p in onnx.load(out).metadata_props}
    assert about['resolution'] == 1000
    assert about['provenance']['training_data'] == expected


def test_backbones_tell_it_on(make_task: Callable[..., Any], tmp_path: Path) -> None:
    task = make_task()
    task.high.fill_(255)
    task.training_data = {'scenes': 3, 'bbox': [1.0, 2.0, 3.0, 4.0]}
    first = export_backbone(task, tmp_path / 'a.ckpt')
    again = export_backbone(first, tmp_path / 'b.ckpt')
    for path in (first, again):
        about = torch.load(path, weights_only=True)['hyper_parameters']
        assert about['provenance']['training_data'] == task.training_data


def test_the_resolution_is_that_which_was_trained_at(folder: Path) -> None:
    found = extent_of(SceneDataset(folder, res=20))
    assert found is not None
    assert found['resolution'] == pytest.approx(20 / 0.9996, rel=1e-3)
