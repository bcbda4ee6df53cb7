# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Tasks as programs that QGIS's plugin Deepness and GeoDeep open."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import geodeep
import networks  # noqa: F401
import numpy as np
import onnx
import onnxruntime
import pytest
import rasterio
import torch
from lightning.pytorch import Trainer
from rasterfiles import noise, write
from scipy.ndimage import median_filter
from torch import Tensor, nn

from cmid_geo import (
    CMID,
    ChangeDetection,
    Classification,
    ObjectDetection,
    SemanticSegmentation,
    export_task,
    predict_scene,
)
from cmid_geo.__main__ import main
from cmid_geo.predict import export as programs

TINY: dict[str, Any] = {'backbone': 'resnet_test', 'in_channels': 3}


class Local(nn.Module):
    """A small network that looks at few pixels."""

    def __init__(self, bands: int = 3, classes: int = 3) -> None:
        super().__init__()
        self.mix = nn.Conv2d(bands, classes, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        return 9 * self.mix(image.flatten(1, -3))


def known(task: Any) -> Any:
    """A task on a 12-bit sensor."""
    task.low.fill_(100)
    task.high.copy_(torch.tensor([4000.0, 3000, 2000]))
    return task.eval()


def segmenter(**options: Any) -> SemanticSegmentation:
    given = {'num_classes': 3, 'labels': ['a', 'b', 'c'], 'auxiliary_weight': 0}
    task = SemanticSegmentation('unet', **TINY, **(given | options))
    classes = 1 if options.get('task') == 'binary' else 3
    task.model = Local(classes=classes)
    return known(task)


def save(task: Any, path: Path) -> Path:
    trainer = Trainer(accelerator='cpu', logger=False, enable_checkpointing=False)
    trainer.strategy.connect(task)
    trainer.save_checkpoint(path, weights_only=True)
    return path


def run(path: Path, image: Tensor) -> np.ndarray:
    session = onnxruntime.InferenceSession(path)
    (found,) = session.run(None, {'image': image.numpy()})
    return found


def scaled(task: Any, image: Tensor) -> Tensor:
    low, high = task.low[:, None, None], task.high[:, None, None]
    return ((image - low) / (high - low)).clamp(0, 1)


def about(path: Path) -> dict[str, Any]:
    return {p.key: json.loads(p.value) for p in onnx.load(path).metadata_props}


def test_a_program_gives_what_the_task_gives(tmp_path: Path) -> None:
    labels = ['water', 'wood', 'town', 'sand']
    task = SemanticSegmentation('upernet', **TINY, num_classes=4, labels=labels)
    path = save(known(task), tmp_path / 'task.ckpt')
    out = tmp_path / 'new' / 'task.onnx'
    main(['export', str(path), str(out), '--size', '96', '--resolution', '60'])
    loaded = onnx.load(out)
    assert loaded.ir_version == 9
    assert [each.version for each in loaded.opset_import if not each.domain] == [18]
    assert not any(node.metadata_props for node in loaded.graph.node)
    shapes = [
        [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (loaded.graph.input[0], loaded.graph.output[0])
    ]
    assert shapes == [['batch', 3, 96, 96], ['batch', 4, 96, 96]]
    # Values beyond the range are clamped, as maps do
    for batch in (1, 4):
        image = torch.randint(0, 5000, (batch, 3, 96, 96)).float()
        with torch.no_grad():
            expected = task(scaled(task, image)).softmax(1).numpy()
        np.testing.assert_allclose(run(out, image), expected, atol=1e-4)
    found = about(out)
    assert found['model_type'] == 'Segmentor' and found['resolution'] == 60
    assert found['class_names'] == dict(zip('0123', labels))
    assert found['tile_size'] == found['tiles_size'] == 96
    assert found['tiles_overlap'] == 15
    assert found['seg_thresh'] == found['seg_small_segment'] == 0
    assert found['standardization_mean'] == [0] * 3
    np.testing.assert_allclose(found['standardization_std'], [1 / 255] * 3)
    assert found['low'] == [100] * 3 and found['high'] == [4000, 3000, 2000]
    assert found['provenance']['from'] == 'task.ckpt'
    assert {each.name for each in out.parent.iterdir()} == {'task.onnx', 'task.onnx.stac.json'}  # fmt: skip


def test_what_deepness_feeds_is_undone(tmp_path: Path) -> None:
    task, image = segmenter(), torch.randint(0, 5000, (2, 3, 64, 64)).float()
    found = []
    for divisor in (1.0, 255.0):
        out = tmp_path / f'{divisor}.onnx'
        export_task(task, out, size=64, resolution=10, divisor=divisor)
        values = about(out)
        mean, std = (
            torch.tensor(values[f'standardization_{name}'])[:, None, None]
            for name in ('mean', 'std')
        )
        found.append(run(out, ((image / 255 - mean) / std).float()))
    with torch.no_grad():
        expected = task(scaled(task, image)).softmax(1).numpy()
    for each in found:
        np.testing.assert_allclose(each, expected, atol=1e-4)


def test_one_map_of_logits_becomes_two_of_probabilities(tmp_path: Path) -> None:
    task = segmenter(
        task='binary', num_classes=None, labels=['land', 'water'], loss='bce'
    )
    out = export_task(task, tmp_path / 'a.onnx', size=64, resolution=10)
    image = torch.randint(0, 5000, (2, 3, 64, 64)).float()
    with torch.no_grad():
        expected = task(scaled(task, image)).sigmoid()[:, 0].numpy()
    found = run(out, image)
    np.testing.assert_allclose(found[:, 1], expected, atol=1e-5)
    np.testing.assert_allclose(found[:, 0], 1 - expected, atol=1e-5)
    assert about(out)['class_names'] == {'0': 'land', '1': 'water'}


def test_change_takes_both_dates_stacked(tmp_path: Path) -> None:
    task = ChangeDetection('unet', **TINY)
    task.model = Local(6, 1)
    out = export_task(known(task), tmp_path / 'a.onnx', size=64, resolution=10)
    pair = torch.randint(0, 5000, (2, 2, 3, 64, 64)).float()
    with torch.no_grad():
        expected = task(scaled(task, pair)).sigmoid()[:, 0].numpy()
    np.testing.assert_allclose(run(out, pair.flatten(1, 2))[:, 1], expected, atol=1e-5)
    found = about(out)
    assert found['class_names'] == {'0': 'no change', '1': 'change'}
    assert len(found['standardization_std']) == 6


def test_classes_of_images(tmp_path: Path) -> None:
    task = known(Classification('resnet_test', in_channels=3, num_classes=4))
    out = export_task(task, tmp_path / 'a.onnx', size=64, resolution=10)
    image = torch.randint(0, 5000, (3, 3, 64, 64)).float()
    with torch.no_grad():
        expected = task(scaled(task, image)).softmax(1).numpy()
    np.testing.assert_allclose(run(out, image), expected, atol=1e-4)
    assert about(out)['model_type'] == 'Classifier'
    assert about(out)['class_names'] == dict(zip('0123', '0123'))


def test_a_backbone_recognizes(make_task: Callable[..., CMID], tmp_path: Path) -> None:
    task = known(make_task(in_channels=3))
    path = save(task, tmp_path / 'task.ckpt')
    out = tmp_path / 'a.onnx'
    main(['export', str(path), str(out), '--size', '64', '--resolution', '10'])
    image = torch.randint(0, 5000, (2, 3, 64, 64)).float()
    with torch.no_grad():
        expected = task(scaled(task, image)).mean((2, 3)).numpy()
    assert about(out)['model_type'] == 'Recognition'
    np.testing.assert_allclose(run(out, image), expected, rtol=1e-3, atol=1e-4)
    # Without a size it is the backbone as it is, of images of any
    main(['export', str(path), str(out)])
    assert run(out, image[..., :32]).shape == (2, expected.shape[1], 2, 1)
    with pytest.raises(SystemExit, match='resolution of .*give --size and a name'):
        main(['export', str(path), str(out), '--resolution', '10'])
    with pytest.raises(SystemExit, match="source='student': .*leave it out"):
        main(
            ['export', str(path), str(out), '--size', '64', '--resolution', '10',
             '--source', 'student'],
        )  # fmt: skip


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'size': 100}, 'size=100: .*give a positive multiple of 32'),
        ({'resolution': None}, 'resolution=None: give the size of a pixel'),
        ({'tiles_overlap': 50}, 'tiles_overlap=50 percent of a side: give at least 0'),
        ({'divisor': 0}, 'divisor=0: give 1 for raw values'),
        ({'low': 0}, 'low=0 and high=None: give both'),
        ({'low': 5, 'high': [1, 2, 9]}, 'of 3 bands: give one value a band'),
        ({'labels': ['x']}, 'labels has 1 entries for 3 classes'),
    ],
)
def test_bad_numbers(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    given = {'size': 64, 'resolution': 10} | change
    with pytest.raises(ValueError, match=message):
        export_task(segmenter(), tmp_path / 'a.onnx', **given)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_a_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {'size': 64, 'resolution': 10}
    with pytest.raises(ValueError, match='a.ckpt: .*end the name in .onnx'):
        export_task(segmenter(), tmp_path / 'a.ckpt', **given)
    out = tmp_path / 'a.onnx'
    detector = ObjectDetection(
        'faster-rcnn', backbone='resnet_test', in_channels=3, num_classes=2
    )
    with pytest.raises(ValueError, match='ObjectDetection gives objects, .*cmid-geo map'):  # fmt: skip
        export_task(detector, out, **given)
    several = segmenter(task='multilabel', num_classes=None, num_labels=3, loss='bce')
    with pytest.raises(ValueError, match='several labels a pixel.*cmid-geo map'):
        export_task(several, out, **given)
    unknown = segmenter()
    unknown.low.fill_(0)
    unknown.high.fill_(1)
    with pytest.raises(ValueError, match='does not tell which raw values.*give low='):
        export_task(unknown, out, **given)
    monkeypatch.setattr(programs, 'TOLERANCE', 0.0)
    with pytest.raises(RuntimeError, match='differs from PyTorch by .*nothing was'):
        export_task(segmenter(), out, **given)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('overlap', [0, 25])
def test_geodeep_maps_as_we_do(overlap: int, tmp_path: Path) -> None:
    """It divides bytes by 255, and filters its map with a median of 5x5 pixels."""
    task = segmenter()
    task.low.fill_(0)
    task.high.fill_(255)
    with torch.no_grad():
        # The brightest band of the pixels around
        task.model.mix.weight.copy_(torch.eye(3)[..., None, None].expand(-1, -1, 3, 3))
        task.model.mix.bias.zero_()
    rough = torch.from_numpy(noise(3, 24, 28)).float()
    smooth = nn.functional.interpolate(rough[None], scale_factor=10, mode='bicubic')
    pixels = smooth[0].clamp(1, 254).byte().numpy()
    scene = write(tmp_path / 'scene.tif', pixels, res=0.6)
    out = export_task(
        task, tmp_path / 'a.onnx', size=96, resolution=60, tiles_overlap=overlap, divisor=255
    )  # fmt: skip
    found = geodeep.segment(str(scene), str(out))
    mine = predict_scene(task, scene, tmp_path / 'map.tif', size=96, overlap=32)
    with rasterio.open(mine) as file:
        expected = median_filter(file.read(1), 5)
    assert len(np.unique(expected)) == 3
    inner = np.ones(expected.shape, bool)
    # Where its windows meet without an overlap a network sees zeros
    for start in range(0, 280, 96) if not overlap else ():
        inner[max(start - 4, 0) : start + 4] = False
        inner[:, max(start - 4, 0) : start + 4] = False
    for last in (240 - 96, 280 - 96) if not overlap else ():
        inner[last - 4 : last + 4] = False
        inner[:, last - 4 : last + 4] = False
    # Its map's edge sees no mirror image
    inner[:4] = inner[-4:] = inner[:, :4] = inner[:, -4:] = False
    assert inner.mean() > 0.7
    assert (found == expected)[inner].mean() >= 0.999
    # Its command names the classes, by the metadata
    outlines = json.loads(geodeep.segment(str(scene), str(out), output_type='geojson'))
    names = {each['properties']['class'] for each in outlines['features']}
    assert names == {'a', 'b', 'c'}


RUN = """
import sys, numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=['CPUExecutionProvider'])
numpy.save(sys.argv[3], session.run(None, {'image': numpy.load(sys.argv[2])})[0])
print(onnxruntime.__version__, session.get_modelmeta().custom_metadata_map['model_type'])
"""


@pytest.mark.parametrize('model', ['unet', 'upernet'])
def test_the_runtime_of_the_plugin(model: str, tmp_path: Path) -> None:
    python = os.environ.get('CMID_GEO_ONNXRUNTIME_117')
    if not python:
        pytest.skip(
            'set CMID_GEO_ONNXRUNTIME_117 to a Python that has onnxruntime 1.17'
        )
    torch.manual_seed(0)
    task = known(SemanticSegmentation(model, **TINY, num_classes=4))
    out = export_task(task, tmp_path / 'a.onnx', size=96, resolution=10)
    image = torch.randint(0, 5000, (2, 3, 96, 96)).float()
    np.save(tmp_path / 'image.npy', image.numpy())
    names = [str(tmp_path / name) for name in ('image.npy', 'found.npy')]
    done = subprocess.run(
        [python, '-c', RUN, str(out), *names],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith('1.17') and '"Segmentor"' in done.stdout
    with torch.no_grad():
        expected = task(scaled(task, image)).softmax(1).numpy()
    np.testing.assert_allclose(np.load(tmp_path / 'found.npy'), expected, atol=1e-3)
