# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""The checks for a GPU, at small sizes on the CPU: that they run, and that they can fail."""

import copy
import importlib.util
import json
import math
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import networks  # noqa: F401
import pytest
import torch

SCRIPT = Path(__file__).parent.parent / 'benchmarks' / 'gpu.py'


@pytest.fixture(scope='module')
def gpu() -> Any:
    spec = importlib.util.spec_from_file_location('benchmark_gpu', SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up
    sys.modules['benchmark_gpu'] = module
    spec.loader.exec_module(module)
    base = module.TINY.base | {'model': 'resnet_test'}
    module.TINY = replace(module.TINY, models=('resnet_test',), base=base)
    return module


def run(gpu: Any, folder: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    out = folder / 'out.json'
    given = ['--device', 'cpu', '--tiny', '--out', str(out), *arguments]
    errors = gpu.main(given)
    return errors, json.loads(out.read_text())


def test_all_but_the_fits_run(gpu: Any, tmp_path: Path) -> None:
    picture = tmp_path / 'growth.png'
    parts = ['agree', 'sync', 'speed', 'growth', 'compile']
    errors, found = run(
        gpu, tmp_path, '--parts', ','.join(parts), '--plot', str(picture)
    )
    assert errors == 0 and found['errors'] == [] and list(found['parts']) == parts
    same = found['parts']['agree']['resnet_test']
    assert max(same['32']['losses']) == 0 and same['32']['memory agrees']
    assert 0 < max(same['bf16']['losses']) < 0.1
    rows = found['parts']['growth']['rows']
    assert [row['factor'] for row in rows[::2]] == ['batch', 'size', 'bands', 'queue']
    split = found['parts']['speed']['split in ms']
    assert {'views', 'student', 'teacher', 'backward', 'optimizer'} < set(split)
    assert picture.stat().st_size > 1000


def test_a_fit_is_resumed_and_its_maps_are_compared(gpu: Any, tmp_path: Path) -> None:
    fits = gpu.fit_twice(gpu.TINY, 'cpu', tmp_path)
    assert [fits[f'after epoch {epoch}']['step'] for epoch in (1, 2)] == [6, 12]
    assert fits['after epoch 2']['keys as many as chips']
    stopped = gpu.stop_and_resume(gpu.TINY, 'cpu', tmp_path)
    assert set(stopped.values()) == {0.0}
    assert not torch.are_deterministic_algorithms_enabled()
    maps = gpu.map_twice(gpu.TINY, 'cpu', tmp_path)
    for found in maps.values():
        assert found['largest difference'] == 0 and found['nodata alike']
        assert found['spread of the CPU map'] > 0


def test_a_run_that_is_resumed_otherwise_is_told(
    gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu.SyntheticScenes(tmp_path / 'scenes', scenes=1, size=256)

    def forget(task: Any, checkpoint: dict[str, Any]) -> None:
        task.seed = 7

    monkeypatch.setattr(gpu.CMID, 'on_load_checkpoint', forget)
    found = gpu.stop_and_resume(gpu.TINY, 'cpu', tmp_path)
    assert found['largest difference of the same run'] == 0
    assert found['largest difference of the resumed run'] > 0


@pytest.mark.parametrize('name', ['segmentation', 'change', 'classification'])
def test_downstream_steps(name: str, gpu: Any) -> None:
    found = gpu.downstream_steps(gpu.TINY, 'cpu', name)
    assert len(found['losses']) == 2 and all(map(math.isfinite, found['losses']))


@pytest.mark.parametrize('name', ['detection', 'oriented'])
def test_batches_of_boxes(name: str, gpu: Any) -> None:
    made = gpu.downstream_batch(name, 2, 64)
    key = {'detection': 'bbox_xyxy', 'oriented': 'bbox'}[name]
    for boxes, labels in zip(made[key], made['label'], strict=True):
        assert boxes.shape == (len(labels), {'detection': 4, 'oriented': 8}[name])
        assert 0 <= boxes.min() and boxes.max() <= 64


def test_what_fails_is_counted_and_the_rest_goes_on(gpu: Any, tmp_path: Path) -> None:
    report = gpu.Report(str(tmp_path / 'out.json'), 60, {})

    def fail() -> None:
        raise RuntimeError('of this kind')

    assert report.attempt('part', 'bad', fail) is None
    assert report.attempt('part', 'good', lambda: {'is': 1}) == {'is': 1}
    assert report.finish() == 1
    written = json.loads((tmp_path / 'out.json').read_text())
    assert written['errors'] == ['part/bad']
    assert 'of this kind' in written['parts']['part']['bad']['error']


def test_without_time_all_is_skipped(gpu: Any, tmp_path: Path) -> None:
    errors, found = run(gpu, tmp_path, '--parts', 'agree', '--budget', '0')
    assert errors == 0 and found['skipped'] == ['agree/resnet_test']


def test_differences_are_found(gpu: Any) -> None:
    one = {
        'losses': torch.tensor([1.0, 2.0, 4.0]), 'teacher': torch.zeros(2),
        'queue': torch.zeros(2), 'centre': torch.zeros(2), 'seen': 4,
        'gradient': {'a': torch.tensor([1.0, 0.0]), 'b': torch.tensor([0.0, 1.0])},
    }  # fmt: skip
    other = copy.deepcopy(one)
    other['losses'][1] = 2.5
    other['queue'][0] = 0.25
    other['gradient']['b'] = torch.tensor([1.0, 0.0])
    found = gpu.differences(one, other)
    assert found['losses'] == pytest.approx([0, 0.2, 0])
    assert found['queue'] == 0.25 and found['teacher'] == 0
    assert found['gradient cosine'] == pytest.approx(0.5)
    assert found['worst gradient'] == ['b', 0]
    with pytest.raises(RuntimeError, match='other keys'):
        gpu.differences(one, other | {'seen': 5})


def test_waits_are_counted_by_place(gpu: Any) -> None:
    with gpu.Waits('cpu') as waits:
        for _ in range(2):
            warnings.warn('called a synchronizing CUDA operation', stacklevel=1)
        warnings.warn('of another kind', stacklevel=1)
    assert list(waits.found.values()) == [2]
    assert 'test_waits_are_counted_by_place' in next(iter(waits.found))
