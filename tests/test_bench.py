# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Our backbones in torchgeo-bench: its own command on a data set that is made up."""

import csv
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import networks  # noqa: F401
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cmid_geo.models import export_backbone

base = pytest.importorskip('torchgeo_bench.datasets.base', reason='pip install "cmid-geo[bench]"')  # fmt: skip
CLASSES = 3


class Fields(Dataset):
    """Images of 12 bits, whose red tells the class."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(index)
        image = torch.randint(0, 4096, (5, 32, 32), generator=generator).float()
        image[1] = 200 + 1500 * (index % CLASSES) + image[1] / 16
        return {'image': image, 'label': torch.tensor(index % CLASSES)}


def specs(*names: str) -> list[Any]:
    return [base.BandSpec('s2', name, name, 2000.0, 1000.0, 0.0, 4096.0) for name in names]  # fmt: skip


@pytest.fixture
def task(make_task: Callable[..., Any]) -> Any:
    task = make_task(in_channels=4)
    task.hparams['bands'] = ['red', 'green', 'blue', 'nir']
    with torch.no_grad():
        task.high.copy_(torch.tensor([4000.0, 3000, 2000, 1000]))
        task.mean.copy_(torch.tensor([0.2, 0.3, 0.4, 0.5]))
        task.std.fill_(0.25)
    return task.eval()


def expected(task: Any, image: Tensor) -> Tensor:
    low, high, mean, std = (getattr(task, n)[:, None, None] for n in ('low', 'high', 'mean', 'std'))  # fmt: skip
    normal = (((image - low) / (high - low)).clamp(0, 1) - mean) / std
    with torch.no_grad():
        return task.student.backbone(normal).mean((2, 3))


@pytest.mark.parametrize('name', ['backbone.ckpt', 'backbone.safetensors'])
def test_bands_are_taken_by_name_and_values_by_the_file(
    name: str, task: Any, tmp_path: Path
) -> None:
    from cmid_geo.bench.backbone import CMIDBench

    path = str(export_backbone(task, tmp_path / name))
    image = torch.randint(0, 4096, (2, 5, 64, 32)).float()
    model = CMIDBench(specs('b01', 'b08', 'b02', 'b03', 'b04'), path).eval()
    assert model.used == [4, 3, 2, 1]
    wanted = expected(task, image[:, [4, 3, 2, 1]])
    torch.testing.assert_close(model(image), wanted, atol=1e-4, rtol=1e-4)
    # A band that is not there is as if it had its mean
    fewer = CMIDBench(specs('red', 'blue', 'green'), path).eval()
    given = torch.cat([image[:, [0, 2, 1]], torch.full((2, 1, 64, 32), 500.0)], 1)
    wanted = expected(task, given)
    torch.testing.assert_close(fewer(image[:, :3]), wanted, atol=1e-4, rtol=1e-4)
    by_data = CMIDBench(specs('red', 'blue', 'green'), path, values='dataset')
    torch.testing.assert_close(by_data.normalize_inputs(image[:, :3]), (image[:, [0, 2, 1]] - 2000) / 1000)  # fmt: skip


def test_what_does_not_fit_is_told(task: Any, tmp_path: Path) -> None:
    from cmid_geo.bench.backbone import CMIDBench

    path = str(export_backbone(task, tmp_path / 'named.ckpt'))
    with pytest.raises(ValueError, match='by dataset.bands'):
        CMIDBench(specs('vv', 'vh'), path)
    with pytest.raises(ValueError, match="choose 'weights' or 'dataset'"):
        CMIDBench(specs('red'), path, values='mine')
    task.hparams['bands'] = [1, 2, 3, 4]
    path = str(export_backbone(task, tmp_path / 'unnamed.ckpt'))
    assert CMIDBench(specs('a', 'b', 'c', 'd'), path).used == [0, 1, 2, 3]
    with pytest.raises(ValueError, match='4 bands without names'):
        CMIDBench(specs('red', 'green', 'blue'), path)


def test_the_benchmark_runs_it(
    task: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchgeo_bench import main as bench

    path = export_backbone(task, tmp_path / 'backbone.ckpt')
    sets = [Fields(length) for length in (60, 30, 45)]
    loaders = [DataLoader(each, batch_size=15) for each in sets]

    class Named(base.BenchDataset):
        name, task, num_classes = 'made-up', 'classification', CLASSES
        bands = specs('b08', 'b04', 'b03', 'b02', 'b11')
        rgb_bands = ('b04', 'b03', 'b02')
        split_sizes = {'train': 60, 'val': 30, 'test': 45}  # noqa: RUF012

        @classmethod
        def data_root(cls) -> Path:
            return tmp_path

        def get_dataset(self, split: str, **options: Any) -> Dataset:
            return sets[('train', 'val', 'test').index(split)]

    monkeypatch.setattr(bench, 'get_bench_dataset_class', lambda name: Named)
    monkeypatch.setattr(bench, 'get_datasets', lambda **options: (sets[0], *loaders))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'argv', [
        'torchgeo-bench', 'hydra.searchpath=[pkg://cmid_geo.bench]', 'model=cmid', f'model.weights={path}',
        'dataset.names=[made-up]', 'dataset.bands=all', 'device=cpu', 'output=results.csv', 'eval.bootstrap=5',
        'eval.c_range=[-2,2,3]',
    ])  # fmt: skip
    bench.main()
    with (tmp_path / 'results.csv').open() as file:
        rows = list(csv.DictReader(file))
    assert {row['method'] for row in rows} == {'knn5', 'linear'}
    assert {row['model'] for row in rows} == {'cmid_geo.bench.backbone.CMIDBench'}
    dim = task.student.backbone.num_features
    assert all(int(float(row['feature_dim'])) == dim for row in rows)
    # Red tells the class: a network that did not see the bands in their order, or all values saturated, would not
    assert all(float(row['metric_value']) > 0.8 for row in rows)


def test_layers_of_the_configuration_are_the_networks(
    task: Any, tmp_path: Path
) -> None:
    import yaml
    from torchgeo_bench.segmentation_probe import SegmentationProbe

    import cmid_geo.bench.backbone as module

    config = yaml.safe_load((Path(module.__file__).parent / 'model' / 'cmid.yaml').read_text())  # fmt: skip
    layers = config['eval']['segmentation']['layers']
    path = str(export_backbone(task, tmp_path / 'backbone.ckpt'))
    model = module.CMIDBench(specs('red', 'green', 'blue', 'nir'), path)
    probe = SegmentationProbe(model, layers, num_classes=2, head_type='linear')
    assert len(probe.hooks) == 4
    assert probe(torch.rand(1, 4, 64, 64) * 4000).shape == (1, 2, 64, 64)
