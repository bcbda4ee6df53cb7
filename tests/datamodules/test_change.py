# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
import yaml
from lightning.pytorch import Trainer
from PIL import Image
from rasterio.transform import from_origin
from torchgeo.datasets import OSCD

from cmid_geo.__main__ import main
from cmid_geo.datamodules import ChangeDataModule, LEVIRCDDataModule, OSCDDataModule
from cmid_geo.datasets import Chip
from cmid_geo.datasets.label_fraction import draw_fraction
from cmid_geo.datasets.samplers import ListedChips
from cmid_geo.tasks import ChangeDetection


@pytest.fixture
def trainer(tmp_path: Path) -> Trainer:
    return Trainer(
        accelerator='cpu', max_epochs=1, limit_train_batches=2, logger=False,
        num_sanity_val_steps=0,
        enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    """Values from 1 to 199."""
    return np.random.default_rng(seed).integers(1, 200, shape).astype('uint8')


def write(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(
        path, 'w', driver='GTiff', count=len(array), height=array.shape[1],
        width=array.shape[2], dtype=array.dtype, crs='EPSG:32633',
        transform=from_origin(500000, 5000000, 10, 10),
    ) as file:  # fmt: skip
        file.write(array)


@pytest.fixture(scope='module')
def cities(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp('cities')
    for number, city in enumerate(('ayr', 'bonn', 'cork')):
        for date in ('20200101', '20210101'):
            # The later the city, the brighter
            image = noise(2, 72, 90, seed=number).astype('uint16') + 1000 * number
            write(root / city / f'{date}.tif', image)
        mask = np.zeros((1, 72, 90), 'uint8')
        mask[:, 10:20, 10 : 20 + 10 * number] = 1
        write(root / city / 'change.tif', mask)
    return root


def make(root: Path, **options: Any) -> ChangeDataModule:
    defaults = {
        'patch_size': 32, 'length': 8, 'batch_size': 4,
        'val_places': ['bonn'], 'test_places': ['cork'],
    }  # fmt: skip
    return ChangeDataModule(str(root), **(defaults | options))


def task(bands: int = 2) -> ChangeDetection:
    return ChangeDetection(backbone='resnet_test', in_channels=bands)


def test_trains_validates_tests_and_predicts(trainer: Trainer, cities: Path) -> None:
    data, model = make(cities), task()
    trainer.fit(model, data)
    assert trainer.callback_metrics['val_loss'].isfinite()
    assert model.low.tolist() == pytest.approx(list(data.statistics.low))
    found = trainer.test(model, data, verbose=False)[0]
    assert 0 <= found['test_OverallF1Score'] <= 1
    # 3 x 3 windows of 32 pixels cover 72 x 90
    assert sum(len(each) for each in trainer.predict(model, data)) == 9


def test_places_are_held_out(cities: Path) -> None:
    data = make(cities)
    data.setup('fit')
    assert data.names == {'train': ('ayr',), 'val': ('bonn',), 'test': ('cork',)}
    assert {chip.scenes for chip in data.train_sampler} == {(0,)}
    assert data.train_dataset.places == ('ayr',)
    # Statistics are those of the place to train on
    assert max(data.statistics.high) < 200
    alone = make(cities, val_places=None, test_places=None)
    alone.setup('fit')
    assert alone.names['train'] == alone.names['val'] == alone.names['test']


@pytest.mark.parametrize(
    ('options', 'stage', 'warned'),
    [
        ({'val_places': None}, 'fit', 'val_places=None: validation runs on the places'),
        ({'val_places': None, 'test_places': None}, 'test', 'test_places=None: the te'),
        ({'test_places': None}, 'test', ''),
        ({'val_places': None}, 'test', ''),
        ({}, 'fit', ''),
    ],
)
def test_places_that_are_not_held_out_are_told(
    cities: Path, options: dict[str, Any], stage: str, warned: str,
    recwarn: pytest.WarningsRecorder,
) -> None:  # fmt: skip
    make(cities, **options).setup(stage)
    told = [str(each.message) for each in recwarn if '_places=' in str(each.message)]
    assert [each.startswith(warned) for each in told] == [True] * bool(warned)


def test_every_pixel_is_judged_once(cities: Path) -> None:
    data = make(cities)
    data.setup('test')
    batches = list(data.test_dataloader())
    valid = sum(int(batch['valid'].sum()) for batch in batches)
    change = sum(int(batch['mask'][batch['valid']].sum()) for batch in batches)
    assert (valid, change) == (72 * 90, 10 * 30)


def test_training_chips_are_altered_and_scaled(trainer: Trainer, cities: Path) -> None:
    for augment in (True, False):
        data = make(cities, augment=augment)
        data.setup('fit')
        batch = next(iter(data.train_dataloader()))
        data.trainer = trainer
        trainer.training = True
        altered = data.on_after_batch_transfer(batch, 0)
        trainer.validating = True
        scaled = data.on_after_batch_transfer(batch, 0)
        assert altered['image'].shape == scaled['image'].shape == (4, 2, 2, 32, 32)
        assert scaled['image'].min() >= 0 and scaled['image'].max() <= 1
        assert torch.equal(altered['image'], scaled['image']) != augment
        assert torch.equal(scaled['mask'], batch['mask'])


def test_the_same_seed_gives_the_same_chips(cities: Path) -> None:
    chips = []
    for seed in (0, 0, 1):
        data = make(cities, seed=seed)
        data.setup('fit')
        chips.append(list(data.train_sampler))
    assert chips[0] == chips[1] != chips[2]


def test_a_share_of_the_labels(cities: Path) -> None:
    kept = []
    for share in (0.25, 0.5, 1.0):
        data = make(cities, label_fraction=share, length=40, patch_size=16)
        data.setup('fit')
        kept.append({(chip.col, chip.row) for chip in data.train_sampler})
        if share < 1:
            # Of the windows with change too
            samples = [data.train_dataset[chip] for chip in data.train_sampler]
            assert any(sample['mask'].any() for sample in samples)
    # 5 x 6 windows: 4 of them change
    assert len(kept[0]) == round(26 * 0.25) + 1 and len(kept[1]) == 13 + 2
    assert kept[0] < kept[1]


def test_shares_are_of_each_kind_and_nested() -> None:
    kinds = [0] * 90 + [1] * 10
    some, more = (draw_fraction(kinds, share, 3) for share in (0.1, 0.5))
    assert [sum(index >= 90 for index in each) for each in (some, more)] == [1, 5]
    assert (len(some), len(more)) == (10, 50) and set(some) < set(more)
    assert draw_fraction(kinds, 0.1, 4) != some
    assert draw_fraction(kinds, 1.0, 3) == list(range(100))
    assert draw_fraction(kinds, 0.001, 3)[1] >= 90


def test_few_chips_come_equally_often() -> None:
    chips = [Chip((0,), col, 0, 8, 8) for col in range(3)]
    sampler = ListedChips(chips, 9, seed=5)
    first = list(sampler)
    assert [first.count(chip) for chip in chips] == [3, 3, 3] and len(sampler) == 9
    assert list(sampler) == first
    orders = set()
    for epoch in range(5):
        sampler.set_epoch(epoch)
        orders.add(tuple(sampler))
    assert len(orders) > 1


@pytest.mark.parametrize(
    ('options', 'cure'),
    [
        ({'val_places': ['oslo']}, "choose of ['ayr', 'bonn', 'cork']"),
        ({'val_places': ['cork']}, 'name each once'),
        ({'test_places': ['ayr', 'cork']}, 'leave one to train on'),
        ({'label_fraction': 0.0}, 'give one above 0'),
        ({'length': 3}, 'raise length to 4'),
    ],
)
def test_bad_arguments(cities: Path, options: dict[str, Any], cure: str) -> None:
    with pytest.raises(ValueError) as caught:
        make(cities, **options).setup('fit')
    assert cure in str(caught.value)


# TorchGeo's


def write_image(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


@pytest.fixture(scope='module')
def levir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp('levir')
    for split in ('train', 'val', 'test'):
        for index in range(2):
            name = f'{split}_{index}.png'
            for folder in 'AB':
                write_image(root / folder / name, noise(50, 70, 3, seed=index))
            mask = np.zeros((50, 70), 'uint8')
            mask[:10, :10] = 255
            write_image(root / 'label' / name, mask)
    return root


@pytest.fixture(scope='module')
def onera(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp('onera')
    title = 'Onera Satellite Change Detection dataset - '
    sizes = {'train': [(50, 70), (40, 40), (64, 33)], 'test': [(45, 52)]}
    for split, several in sizes.items():
        for index, (height, width) in enumerate(several):
            city = f'{split}{index}'
            mask = np.zeros((height, width), 'uint8')
            mask[:10, :10] = 255
            labels = root / f'{title}{split.capitalize()} Labels'
            write_image(labels / city / 'cm' / 'cm.png', mask)
            images = root / f'{title}Images' / city
            for date in (1, 2):
                for band in OSCD.all_bands:
                    array = noise(height, width, seed=date).astype('uint16') * 10
                    write_image(images / f'imgs_{date}_rect' / f'{band}.tif', array)
            (images / 'dates.txt').write_text('date_1: 20150101\ndate_2: 20180101\n')
    return root


def run(trainer: Trainer, data: Any, model: ChangeDetection) -> dict[str, Any]:
    """Fit, validate and test, and return the batches of each stage, as the task saw them."""
    seen: dict[str, Any] = {}
    forward = model.shared_step

    def watch(batch: Any, batch_idx: int, stage: str) -> torch.Tensor:
        seen.setdefault(stage, []).append(batch)
        return forward(batch, batch_idx, stage)

    model.shared_step = watch
    trainer.fit(model, data)
    trainer.test(model, data, verbose=False)
    return seen


def test_levir(trainer: Trainer, levir: Path) -> None:
    data = LEVIRCDDataModule(2, 32, root=str(levir), length=4)
    model = task(3)
    seen = run(trainer, data, model)
    assert [len(seen[stage]) for stage in ('train', 'val', 'test')] == [2, 2, 2]
    train, test = seen['train'][0], seen['test'][0]
    assert train['image'].shape == (2, 2, 3, 32, 32)
    # All of an image, and nothing of what was added to it
    assert test['image'].shape == (1, 2, 3, 64, 96) and test['valid'].sum() == 50 * 70
    assert test['mask'].sum() == 100
    assert model.low.tolist() == [0] * 3 and model.high.tolist() == [255] * 3


def test_onera(trainer: Trainer, onera: Path) -> None:
    bands = ('B02', 'B03', 'B04', 'B08')
    data = OSCDDataModule(2, 32, 0.34, root=str(onera), bands=bands, length=4)
    model = task(4)
    seen = run(trainer, data, model)
    assert seen['train'][0]['image'].shape == (2, 2, 4, 32, 32)
    assert seen['test'][0]['image'].shape == (1, 2, 4, 64, 64)
    assert seen['test'][0]['valid'].sum() == 45 * 52
    assert seen['test'][0]['mask'].sum() == 100
    # The mean of a band lies in the middle where its spread allows
    low, high = model.low[3].item(), model.high[3].item()
    assert (low, high) == pytest.approx(
        (1963.46 - 2 * 842.59, 1963.46 + 2 * 842.59), abs=0.1
    )


def test_crops_of_a_city_that_is_too_small(onera: Path) -> None:
    data = OSCDDataModule(1, 64, root=str(onera), val_split_pct=0.34)
    data.setup('fit')
    for index in range(len(data.train_dataset)):
        sample = data.train_dataset[index]
        assert sample['image'].shape == (2, 13, 64, 64)
        assert sample['mask'].shape == (1, 64, 64)
        assert 0 < sample['valid'].sum() < 64 * 64
        assert (sample['image'] * ~sample['valid'] == 0).all()


@pytest.mark.parametrize('kind', [LEVIRCDDataModule, OSCDDataModule])
def test_a_share_of_the_images(kind: Any, levir: Path, onera: Path) -> None:
    options: dict[str, Any] = {'root': str(levir)}
    if kind is OSCDDataModule:
        options = {'root': str(onera), 'val_split_pct': 0.34}
    data = kind(batch_size=1, label_fraction=0.5, **options)
    data.setup('fit')
    assert len(data.train_dataset) == 1
    short = kind(batch_size=2, length=None, label_fraction=0.5, **options)
    with pytest.raises(ValueError, match='1 crops an epoch are less than a batch of 2'):
        short.setup('fit')
    with pytest.raises(ValueError, match='give one above 0'):
        kind(label_fraction=2.0, **options)


def test_dates_and_labels_are_altered_alike(levir: Path, trainer: Trainer) -> None:
    data = LEVIRCDDataModule(2, 32, root=str(levir))
    data.augmentation.colour = torch.nn.Identity()
    data.setup('fit')
    batch = next(iter(data.train_dataloader()))
    # Each pixel's number, in both dates and the mask
    number = torch.arange(50 * 70).view(50, 70)
    batch['image'] = (number / 3500 * 255).expand(2, 2, 3, -1, -1)
    batch['mask'] = number.expand(2, 1, -1, -1)
    altered = data.augment_batch(data.scale(batch))
    expected = altered['mask'][:, :, None] / 3500 * altered['valid'][:, None, None]
    assert altered['mask'].shape == (2, 1, 32, 32)
    torch.testing.assert_close(
        altered['image'], expected.expand_as(altered['image']), atol=1e-4, rtol=0
    )


@pytest.mark.parametrize('name', ['resnet50', 'swin_base'])
def test_configs_fit(name: str, cities: Path, tmp_path: Path) -> None:
    config = Path(__file__).parents[2] / 'configs' / f'change_{name}.yaml'
    small = {'resnet50': 'resnet_test', 'swin_base': 'swin_test'}
    assert yaml.safe_load(config.read_text())['model']['init_args']['model'] == 'bit'
    main([
        'fit', f'--config={config}', f'--data.root={cities}', '--data.bands=[1, 2]',
        f'--model.backbone={small[name]}', '--model.in_channels=2',
        '--data.length=2', '--data.batch_size=2', '--data.num_workers=0',
        '--data.patch_size=64', '--data.val_places=[cork]', '--data.mask_name=change',
        '--trainer.max_epochs=1', '--trainer.logger=false', '--trainer.accelerator=cpu',
        f'--trainer.default_root_dir={tmp_path}', '--trainer.callbacks=null',
        '--trainer.enable_checkpointing=false',
    ])  # fmt: skip
    assert not list(tmp_path.rglob('*.ckpt'))
