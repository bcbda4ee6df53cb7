# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from lightning.pytorch import LightningModule, Trainer
from rasterio.env import get_gdal_config
from rasterio.transform import from_origin
from torch import Tensor

from cmid_geo.datamodules import SceneDataModule
from cmid_geo.datasets import Chip, SceneDataset
from cmid_geo.tasks import CMID


class Recorder(LightningModule):
    """Keeps the batches it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.windows: dict[str, list[list[int]]] = {}

    def record(self, stage: str, batch: dict[str, Tensor]) -> Tensor:
        assert batch['image'].min() >= 0 and batch['image'].max() <= 1
        self.windows.setdefault(stage, []).extend(batch['window'].tolist())
        return self.weight * batch['image'].mean()

    def training_step(self, batch: dict[str, Tensor]) -> Tensor:
        return self.record(f'train{self.current_epoch}', batch)

    def validation_step(self, batch: dict[str, Tensor]) -> None:
        if not self.trainer.sanity_checking:
            self.record(f'val{self.current_epoch}', batch)

    def test_step(self, batch: dict[str, Tensor]) -> None:
        self.record('test', batch)

    def predict_step(self, batch: dict[str, Tensor]) -> None:
        self.record('predict', batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    profile = {'driver': 'GTiff', 'count': 2, 'height': 80, 'width': 100, 'nodata': 0}
    profile |= {'dtype': 'uint16', 'crs': 'EPSG:32633'}
    profile['transform'] = from_origin(500000, 5000000, 10, 10)
    for year in (2019, 2020):
        array = rng.integers(100, 1000, (2, 80, 100), np.uint16)
        array[:, :10, :10] = 0
        with rasterio.open(tmp_path / f'{year}.tif', 'w', **profile) as file:
            file.write(array)
    return tmp_path


def test_scaled_without_trainer(folder: Path) -> None:
    dm = SceneDataModule(
        str(folder), 32, 8, 4, low=[0.0, 500.0], high=1000.0, min_valid=0.1, seed=0
    )
    dm.setup('fit')
    chips = list(dm.train_sampler)
    (raw, _) = list(dm.train_dataloader())
    batch = dm.on_after_batch_transfer(raw, 0)
    low = torch.tensor([0.0, 500.0])[:, None, None]
    expected = ((raw['image'].float() - low) / (1000 - low)).clamp(0, 1)
    expected = expected * raw['valid'][:, None]
    torch.testing.assert_close(batch['image'], expected)
    dataset = SceneDataset(folder)
    assert raw['image'].dtype == torch.uint16
    assert torch.equal(raw['image'][2].float(), dataset[chips[2]]['image'])
    assert dm.bands == ('B1', 'B2') and dm.statistics.high == (1000, 1000)


def test_chips_of_a_region_are_read_by_one_worker(folder: Path) -> None:
    dm = SceneDataModule(str(folder), 32, 40, 4, num_workers=2, seed=0)
    dm.setup('fit')
    assert (dm.train_sampler.chips_per_region, dm.train_sampler.open_regions) == (8, 8)
    assert list(dm.val_sampler) == list(dm._random_chips(dm.dataset, 4, 1))


def test_memory_of_workers_is_bounded(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv('GDAL_CACHEMAX', raising=False)
    dm = SceneDataModule(str(folder), 32, 8, 4, num_workers=1, seed=0)
    dm.setup('fit')
    # In the worker: this process keeps its own
    dm.train_dataset.transforms = with_cache
    before = get_gdal_config('GDAL_CACHEMAX')
    batch = next(iter(dm.train_dataloader()))
    assert batch['cache'].tolist() == [2**27] * 4
    assert get_gdal_config('GDAL_CACHEMAX') == before
    monkeypatch.setenv('GDAL_CACHEMAX', '64')
    assert next(iter(dm.train_dataloader()))['cache'].tolist() == [before] * 4


def with_cache(sample: dict[str, Tensor]) -> dict[str, Tensor]:
    """A sample that tells how large GDAL's cache may be where it was read."""
    return sample | {'cache': torch.tensor(get_gdal_config('GDAL_CACHEMAX'))}


def test_two_dates(folder: Path) -> None:
    dm = SceneDataModule(str(folder), 32, 8, 4, dates=2, seed=0, low=0.0, high=1000.0)
    dm.setup('fit')
    raw = next(iter(dm.train_dataloader()))
    batch = dm.on_after_batch_transfer(raw, 0)
    assert batch['image'].shape == (4, 2, 2, 32, 32)
    assert batch['valid'].shape == (4, 2, 32, 32)
    expected = raw['image'].float().clamp(0, 1000) / 1000
    torch.testing.assert_close(batch['image'], expected)
    assert all(set(scenes) == {0, 1} for scenes in batch['scene'].tolist())


def test_invalid_is_zero_whatever_the_range(folder: Path) -> None:
    dm = SceneDataModule(str(folder), 80, 4, 4, low=-1000.0, high=1000.0, seed=0)
    dm.setup('fit')
    batch = dm.on_after_batch_transfer(next(iter(dm.train_dataloader())), 0)
    outside = ~batch['valid'][:, None].expand_as(batch['image'])
    assert outside.any() and batch['image'][outside].eq(0).all()
    assert batch['image'][~outside].min() > 0.5


def test_trainer(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dm = SceneDataModule(str(folder), 32, 10, 4, num_workers=1, val_length=6, seed=0)
    model = Recorder()
    quiet = {
        'logger': False,
        'enable_progress_bar': False,
        'enable_model_summary': False,
    }
    trainer = Trainer(
        accelerator='cpu', max_epochs=2, enable_checkpointing=False, **quiet
    )
    trainer.fit(model, dm)
    trainer.test(model, dm, verbose=False)
    trainer.predict(model, dm, return_predictions=False)
    seen = model.windows
    assert (
        len(seen['train0']) == len(seen['train1']) == 8
    )  # an incomplete batch is dropped
    assert seen['train0'] != seen['train1']
    assert len(seen['val0']) == 6 and seen['val0'] == seen['val1'] == seen['test']
    assert seen['val0'] != seen['train0'][:6]
    assert len(seen['predict']) == 2 * 3 * 4
    assert capsys.readouterr().out.count('low       high') == 1


def test_held_out_scenes(folder: Path) -> None:
    train, held = str(folder / '2019.tif'), str(folder / '2020.tif')
    dm = SceneDataModule([train], 32, 8, 4, val_paths=held, seed=0)
    dm.setup('fit')
    assert dm.train_dataset.files == [train] and dm.val_dataset.files == [held]
    assert len(dm.val_sampler) == 4
    (folder / 'other').mkdir()
    with rasterio.open(folder / '2020.tif') as file:
        profile, array = file.profile, file.read(1)
    with rasterio.open(
        folder / 'other' / 'x.tif', 'w', **profile | {'count': 1}
    ) as file:
        file.write(array, 1)
    dm = SceneDataModule(train, 32, 8, 4, val_paths=str(folder / 'other'), seed=0)
    with pytest.raises(ValueError, match='choose the same by bands='):
        dm.setup('fit')


def write_named(path: Path, bands: tuple[str, ...]) -> Path:
    """Scene whose bands hold the lengths of their names."""
    with rasterio.open(
        path, 'w', driver='GTiff', width=40, height=40, count=len(bands), dtype='uint8',
        crs='EPSG:32633', transform=from_origin(500000, 5000000, 10, 10),
    ) as file:  # fmt: skip
        for index, band in enumerate(bands, 1):
            file.write(np.full((40, 40), len(band), 'uint8'), index)
        file.descriptions = bands
    return path


@pytest.mark.parametrize('bands', [('blue', 'red'), ('nir', 'blue', 'red')])
def test_bands_of_held_out_scenes_are_taken_by_name(
    tmp_path: Path, bands: tuple[str, ...]
) -> None:
    train = write_named(tmp_path / 'a.tif', ('red', 'blue'))
    held = write_named(tmp_path / 'b.tif', bands)
    dm = SceneDataModule(str(train), 32, 4, 4, val_paths=str(held), seed=0)
    with pytest.warns(UserWarning, match="read by name, as bands=.'red', 'blue'."):
        dm.setup('fit')
    assert dm.val_dataset.bands == ('red', 'blue')
    image = dm.val_dataset[dm.val_sampler[0]]['image']
    assert image[:, 0, 0].tolist() == [3, 4]


#: As many bands as Sentinel-2 has, more than ten, of which several begin with a 1.
SENTINEL2 = ('B01', 'B02', 'B03', 'B04', 'B05', 'B06', 'B07', 'B08', 'B8A', 'B09', 'B11', 'B12')  # fmt: skip


@pytest.mark.parametrize(
    'bands',
    [
        SENTINEL2,
        tuple(name.replace('B0', 'B') for name in SENTINEL2),
        ('',) * len(SENTINEL2),
    ],
    ids=['same', 'other spelling', 'not named'],
)
def test_held_out_scenes_of_the_same_bands_are_read_as_they_are(
    tmp_path: Path, bands: tuple[str, ...], recwarn: pytest.WarningsRecorder
) -> None:
    train = write_named(tmp_path / 'a.tif', SENTINEL2)
    held = write_named(tmp_path / 'b.tif', bands)
    SceneDataModule(str(train), 32, 4, 4, val_paths=str(held), seed=0).setup('fit')
    assert not [each for each in recwarn if 'by name' in str(each.message)]


def test_held_out_scenes_of_other_bands_are_refused(tmp_path: Path) -> None:
    train = write_named(tmp_path / 'a.tif', ('red', 'blue'))
    held = write_named(tmp_path / 'b.tif', ('red', 'nir'))
    dm = SceneDataModule(str(train), 32, 4, 4, val_paths=str(held), seed=0)
    with pytest.raises(ValueError, match='nir.*choose the same by bands='):
        dm.setup('fit')


def test_bad_input(folder: Path) -> None:
    with pytest.raises(
        ValueError, match=r'length=8 .*batch of 64 .*raise length to 64'
    ):
        SceneDataModule(str(folder), length=8).setup('fit')
    dm = SceneDataModule(str(folder), 101, 8, 4)
    with pytest.raises(
        ValueError, match=r'100x80.*lower the size of the chips \(patch_size'
    ):
        dm.setup('fit')
    with pytest.raises(ValueError, match=r"call setup\('fit'\)"):
        dm.on_after_batch_transfer({'image': torch.zeros(1, 2, 4, 4)}, 0)


def test_a_trained_task_hands_over_its_values(tmp_path: Path) -> None:
    """New scenes are read by the values the network was trained with, not by their own."""
    for folder, top in (('old', 1000), ('new', 4000)):
        (tmp_path / folder).mkdir()
        data = np.linspace(1, top, 96 * 96).reshape(1, 96, 96).astype('uint16')
        with rasterio.open(
            tmp_path / folder / 'a.tif', 'w', driver='GTiff', width=96, height=96, count=1,
            dtype='uint16', crs='EPSG:32633', transform=rasterio.transform.from_origin(0, 0, 1, 1),
        ) as file:  # fmt: skip
            file.write(data)
    options = {'patch_size': 64, 'length': 4, 'batch_size': 2, 'seed': 0}
    quiet = {'accelerator': 'cpu', 'logger': False, 'enable_progress_bar': False,
             'enable_model_summary': False, 'default_root_dir': tmp_path}  # fmt: skip
    task = CMID('resnet_test', in_channels=1, size=64, queue_size=4, hidden_dim=8, num_prototypes=4,
                warmup_steps=1, teacher_temp_steps=1)  # fmt: skip
    Trainer(max_steps=1, **quiet).fit(
        task, SceneDataModule(str(tmp_path / 'old'), **options)
    )
    assert 900 < task.high.item() < 1000
    new = SceneDataModule(str(tmp_path / 'new'), **options)
    new.setup('predict')
    before = new.on_after_batch_transfer(next(iter(new.predict_dataloader())), 0)[
        'image'
    ]
    features = Trainer(**quiet).predict(task, new)
    after = new.on_after_batch_transfer(next(iter(new.predict_dataloader())), 0)[
        'image'
    ]
    assert (before == 1).float().mean() < 0.1 and (after == 1).float().mean() > 0.3
    with torch.no_grad():
        expected = task.eval()(after).mean((2, 3))
    torch.testing.assert_close(features[0], expected)


def test_files_that_say_too_little(folder: Path) -> None:
    for path in folder.glob('*.tif'):
        with rasterio.open(path) as file:
            array, profile = file.read(), file.profile | {'crs': None, 'nodata': None}
        with rasterio.open(path, 'w', **profile) as file:
            file.write(array)
    data = SceneDataModule(
        str(folder), 32, 8, 4, nodata=0, file_crs='EPSG:32633', min_valid=0.1
    )
    data.setup('fit')
    scenes = data.train_dataset
    assert scenes.crs == 'EPSG:32633'
    valid = scenes[Chip((0,), 0, 0, 100, 80)]['valid']
    assert not valid[:10, :10].any() and valid.sum() == 8000 - 100
