# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Weights are judged on labelled images, beside random weights and image statistics."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from labelled import write_classes
from PIL import Image

from cmid_geo.__main__ import main
from cmid_geo.datamodules import ImageFolderDataModule
from cmid_geo.evaluate import ACCURACIES, evaluate
from cmid_geo.models import export_backbone
from cmid_geo.ops.value_range import ValueRange
from cmid_geo.tasks import CMID


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_classes(tmp_path / 'data/train', 10)
    write_classes(tmp_path / 'data/test', 6, seed=1)
    return tmp_path / 'data'


@pytest.fixture
def weights(tmp_path: Path, make_task: Callable[..., CMID]) -> Path:
    """Exported weights that know 0 to 100 as their range of values."""
    task = make_task()
    low, high = (0.0,) * 3, (100.0,) * 3
    task.learn_values(ValueRange((), low, high, (0.4,) * 3, (0.2,) * 3))
    return Path(export_backbone(task, tmp_path / 'backbone.ckpt'))


def test_the_command_leaves_text_json_and_a_picture(
    weights: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / 'out'
    main(['evaluate', str(weights), '--data', str(folder), '--out', str(out), '--size', '64'])  # fmt: skip
    printed = capsys.readouterr().out
    assert (out / 'evaluation.txt').read_text() == printed
    found = json.loads((out / 'evaluation.json').read_text())
    assert (found['train'], found['test']) == (30, 18)
    assert found['classes'] == ['blue', 'green', 'red']
    names = [each['name'] for each in found['judgements']]
    assert names == ['weights', 'random weights', 'image statistics']
    for each in found['judgements']:
        for name in ACCURACIES:
            value, low, high = each['accuracies'][name]
            assert 0 <= low <= value <= high <= 1
    # Colours tell these classes
    statistics = found['judgements'][-1]
    assert statistics['accuracies']['linear'] == [1, 1, 1]
    assert statistics['nmi'] == pytest.approx(1)
    confusion = torch.tensor(found['confusion'])
    assert confusion.sum(1).tolist() == [6, 6, 6]
    recall = [each['recall'] for each in found['per_class']]
    assert sum(recall) / 3 == found['judgements'][0]['accuracies']['linear'][0]
    assert re.search(r'weights +\d+\.\d \(', printed) and 'green' in printed
    assert Image.open(out / 'evaluation.png').size[0] > 800


def test_images_are_read_in_the_weights_own_range(weights: Path, folder: Path) -> None:
    found = evaluate(str(weights), ImageFolderDataModule(str(folder), 64), limit=12)
    assert (found.train, found.test) == (12, 12)
    # Above 100 all are alike: the red of red images is 1, not 200 / 255
    datamodule = ImageFolderDataModule(str(folder), 64, high=100.0)
    assert found.judgements == evaluate(str(weights), datamodule, limit=12).judgements
    assert datamodule.trainer is None, 'the datamodule of the caller stays as it is'


def test_what_cannot_be_evaluated_is_told(
    weights: Path, folder: Path, tmp_path: Path, make_task: Callable[..., CMID]
) -> None:
    task = make_task(in_channels=4)
    task.learn_values(ValueRange((), (0.0,) * 4, (100.0,) * 4))
    four = export_backbone(task, tmp_path / 'four.ckpt')
    with pytest.raises(
        ValueError, match='images have 3 bands but the weights take 4: evaluate on'
    ):
        evaluate(str(four), str(folder), 64)
    with pytest.raises(ValueError, match='limit=1: give a number of 2 or more'):
        evaluate(str(weights), str(folder), limit=1)
    with pytest.raises(SystemExit, match='nowhere'):
        main(['evaluate', str(weights), '--data', str(tmp_path / 'nowhere'), '--out', str(tmp_path / 'out')])  # fmt: skip
