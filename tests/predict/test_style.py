# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""QGIS styles beside maps of classes."""

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from rasterfiles import noise, write
from torch import Tensor, nn

from cmid_geo import SemanticSegmentation, predict_scene


class Same(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        return image


def task_of(**options: Any) -> SemanticSegmentation:
    given = {'num_classes': 3, 'labels': ['a & b', '<water>', 'c']}
    task = SemanticSegmentation(
        'unet', backbone='test_resnet', auxiliary_weight=0, **(given | options)
    )
    task.model, task.high = Same(), torch.full((3,), 255.0)
    return task


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    return write(tmp_path / 'scene.tif', noise(3, 64, 64))


def test_a_style_names_and_colours_the_classes(tmp_path: Path, scene: Path) -> None:
    out = tmp_path / 'maps' / 'map.tif'
    predict_scene(task_of(), scene, out, size=64, colors=['red', '#00ff00', 'blue'])
    assert {p.name for p in out.parent.iterdir()} == {
        'map.tif', 'map.tif.aux.xml', 'map.qml',
    }  # fmt: skip
    root = ElementTree.parse(out.with_suffix('.qml')).getroot()
    (renderer,) = root.findall('pipe/rasterrenderer')
    assert root.tag == 'qgis'
    assert (renderer.get('type'), renderer.get('band')) == ('paletted', '1')
    entries = renderer.findall('colorPalette/paletteEntry')
    assert [(e.get('value'), e.get('label'), e.get('color')) for e in entries] == [
        ('0', 'a & b', '#ff0000'), ('1', '<water>', '#00ff00'), ('2', 'c', '#0000ff'),
    ]  # fmt: skip


def test_maps_of_other_values_have_none(tmp_path: Path, scene: Path) -> None:
    out = tmp_path / 'map.tif'
    style = out.with_suffix('.qml')
    predict_scene(task_of(), scene, out, size=64)
    assert style.exists()
    # Nor that of an earlier map of classes
    predict_scene(task_of(), scene, out, size=64, output='probabilities')
    assert not style.exists()
    several = task_of(task='multilabel', num_classes=None, num_labels=3, loss='bce')
    predict_scene(several, scene, out, size=64)
    assert not style.exists()


def test_a_style_that_the_user_saved_stays(tmp_path: Path, scene: Path) -> None:
    out = tmp_path / 'map.tif'
    predict_scene(task_of(), scene, out, size=64, colors=['red', 'green', 'blue'])
    ours = out.with_suffix('.qml').read_text()
    predict_scene(task_of(), scene, out, size=64, colors=['blue', 'green', 'red'])
    assert out.with_suffix('.qml').read_text() != ours
    theirs = '<qgis version="3.40"><pipe/></qgis>'
    for output in ('classes', 'probabilities'):
        out.with_suffix('.qml').write_text(theirs)
        predict_scene(task_of(), scene, out, size=64, output=output)
        assert out.with_suffix('.qml').read_text() == theirs
