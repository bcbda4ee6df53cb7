# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""The comparison with other methods, at tiny sizes."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import networks  # noqa: F401
import numpy as np
import pytest
import torch
from PIL import Image

FOLDER = Path(__file__).parent.parent / 'benchmarks'
TINY: dict[str, Any] = {
    'model': 'resnet18', 'vit': 'vit_tiny_patch16_224', 'size': 32, 'chip': 48, 'cell': 16,
    'batch': 4, 'queue': 16, 'device': 'cpu',
}  # fmt: skip
HEADS = {'hidden_dim': 16, 'output_dim': 8, 'num_prototypes': 12}


@pytest.fixture
def quality(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.syspath_prepend(str(FOLDER))
    import quality

    data = tmp_path / 'data'
    for number in range(24):
        path = data / 'abc'[number % 3] / f'{number}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 255, (64, 64, 3), np.uint8)
        Image.fromarray(pixels).save(path)
    monkeypatch.setitem(quality.SCALES, 'tiny', SimpleNamespace(**TINY))
    options = SimpleNamespace(
        scale='tiny', threads=1, save=False, restate=True, every=0.0, epochs=1.0, out=tmp_path / 'out', deadline=1e12,
        **dict.fromkeys(TINY),
    )  # fmt: skip
    options.out.mkdir()
    quality.prepare(*quality.read(data, None), options)
    yield quality
    for name in ('quality', 'quality_methods', 'aid_probe', 'student_or_teacher'):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    'method', ['cmid', 'simclr', 'mocov2', 'mocov3', 'byol', 'mae', 'dino', 'random', 'stats']
)  # fmt: skip
def test_every_method_trains_and_is_judged(
    quality: Any, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if method == 'dino':
        # Its small crops are of 16 px else, one pixel for the last stage, where oneDNN's gradients in
        # bfloat16 hold what was in memory before (torch 2.15)
        monkeypatch.setattr(quality.HERE['scale'], 'size', 64)
    given = HEADS if method == 'cmid' else {}
    trial = {'name': method, 'method': method, 'seed': 0, 'set': given}
    found = quality.attempt(trial)
    assert 'error' not in found, found['error']
    assert 0 <= found['student']['linear'] <= 1
    if method not in ('random', 'stats'):
        assert found['steps'] == 5 and found['seconds'] > 0
    # A second call finds the result instead of training again
    path = quality.HERE['options'].out / f'{method}-0.json'
    path.write_text(json.dumps(json.loads(path.read_text()) | {'steps': 99}))
    assert quality.attempt(trial)['steps'] == 99
    assert quality.line(found).startswith(f'{method} (0)')


def test_changes_of_cmid_that_it_has_no_argument_for(quality: Any) -> None:
    trial = {'name': 'a', 'method': 'cmid', 'seed': 0, 'set': HEADS | {'size': 64}, 'views': {}}  # fmt: skip
    images, made = quality.HERE['images'], []
    for extra in ({}, {'projector': 2, 'offsets': 'forgotten'}):
        torch.manual_seed(0)
        made.append(quality.make(trial | extra, images, quality.HERE['scale']))
    changed = made[1]
    assert sum(isinstance(m, torch.nn.BatchNorm1d) for m in changed.student.projector.modules()) == 2  # fmt: skip
    assert not any(p.requires_grad for p in changed.teacher.parameters())
    chips = quality.batch_at(images, 4, 0, 0)
    drawn = []
    for task in made:
        torch.manual_seed(1)
        drawn.append(task.augmentations(chips))
    for view, forgotten in zip(*drawn):
        assert (forgotten.positions.amin(1) == 0).all()
        moved = view.positions - forgotten.positions
        torch.testing.assert_close(moved, moved[:, :1].expand_as(moved))
    trial |= {'projector': 2, 'offsets': 'forgotten', 'set': HEADS}
    assert 'error' not in quality.attempt(trial)


@pytest.mark.parametrize('method', ['cmid', 'mocov2', 'byol'])
def test_a_killed_trial_goes_on_exactly(
    quality: Any, method: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    given = HEADS if method == 'cmid' else {}
    trial = {'name': method, 'method': method, 'seed': 0, 'set': given}
    images, kept = quality.HERE['images'][quality.HERE['rest']], tmp_path / 'a.ckpt'
    whole, _ = quality.train(trial, images, 6)
    keep, calls = quality.keep, []

    def killed(*arguments: Any) -> None:
        keep(*arguments)
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(quality, 'keep', killed)
    with pytest.raises(KeyboardInterrupt):
        quality.train(trial, images, 6, kept)
    resumed, _ = quality.train(trial, images, 6, kept)
    assert len(calls) == 6
    one, other = whole.state_dict(), resumed.state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_networks_of_baselines_are_two(quality: Any) -> None:
    images = quality.HERE['images']
    for method in ('byol', 'mocov2', 'mocov3', 'dino', 'cmid'):
        trial = {'method': method, 'set': HEADS if method == 'cmid' else {}}
        found = quality.backbones(quality.make(trial, images, quality.HERE['scale']))
        pointers = [{p.data_ptr() for p in net.parameters()} for net in found.values()]
        assert len(pointers) == 2 and not pointers[0] & pointers[1]


def test_a_trial_has_its_own_steps_and_a_vit_is_exported_as_it_trained(
    quality: Any,
) -> None:
    trial = {
        'name': 'vit', 'method': 'cmid', 'seed': 0, 'set': HEADS, 'steps': 2,
        'scale': {'model': 'vit_tiny_patch16_224'},
    }  # fmt: skip
    found = quality.attempt(trial)
    assert 'error' not in found, found['error']
    assert found['steps'] == 2
    # The exported network pools the same features of the same images
    torch.manual_seed(0)
    quality.HERE['scale'].model = 'vit_tiny_patch16_224'
    task = quality.make(trial, quality.HERE['images'], quality.HERE['scale']).eval()
    exported = quality.plain(task.student.backbone, trial)[0].eval()
    image = torch.rand(2, 3, 32, 32)
    pooled = task.student.backbone(image).mean((2, 3))
    torch.testing.assert_close(exported(image), pooled, atol=1e-4, rtol=1e-4)


def test_only_processors_that_compute_in_bfloat16_do(
    quality: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for able in (False, True):
        monkeypatch.setattr(quality, 'has_bfloat16', lambda able=able: able)
        with quality.low_precision(torch.device('cpu')):
            assert torch.is_autocast_enabled('cpu') is able


def test_numbers_written_again_are_the_same(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    import quality_curves

    written = FOLDER / 'results' / 'quality.csv'
    words = [str(written), '--csv', str(tmp_path / 'again.csv')]
    monkeypatch.setattr(sys, 'argv', ['quality_curves.py', *words])
    quality_curves.main()
    rows = [p.read_text().splitlines() for p in (written, tmp_path / 'again.csv')]
    assert sorted(rows[0]) == sorted(rows[1])
