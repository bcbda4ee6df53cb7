# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""The command, as a user calls it."""

from pathlib import Path

import pytest
import rasterio
import torch
import yaml
from lightning.pytorch import Trainer

from cmid_geo import CMID, SceneDataModule
from cmid_geo.__main__ import main
from cmid_geo.datasets import write_synthetic_scenes
from cmid_geo.demo import demo
from cmid_geo.tasks.handover import check_writable

CONFIGS = Path(__file__).parent.parent / 'configs'
#: Makes any configuration small enough for a test.
TINY = [
    '--trainer.accelerator=cpu', '--trainer.devices=1', '--trainer.logger=false', '--trainer.precision=32-true',
    '--trainer.max_epochs=1', '--trainer.enable_model_summary=false',
    '--data.length=4', '--data.batch_size=2', '--data.num_workers=0', '--data.val_length=2',
    '--data.patch_size=64', '--model.size=64', '--model.queue_size=4', '--model.hidden_dim=8',
    '--model.output_dim=4', '--model.num_prototypes=4', '--model.warmup_epochs=0',
]  # fmt: skip


@pytest.fixture(scope='module')
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('scenes')
    write_synthetic_scenes(folder, scenes=1, size=192)
    return folder / 'images'


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize('name', ['tiny', 'resnet50', 'swin_base', 'vit_base'])
def test_configs_fit(
    name: str, scenes: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = CONFIGS / f'pretrain_{name}.yaml'
    given = yaml.safe_load(config.read_text())
    # Base-sized networks are built, but small ones run
    small = {
        'swin_base': 'swin_tiny_patch4_window7_224',
        'vit_base': 'vit_tiny_patch16_224',
        'resnet50': 'resnet18',
    }
    model = small.get(name, given['model']['init_args']['model'])
    main(['fit', f'--config={config}', f'--data.paths={scenes}', '--data.bands=null', *TINY,
          f'--model.model={model}', '--model.in_channels=4'])  # fmt: skip
    (backbone,) = folder.rglob('backbone.ckpt')
    about = torch.load(backbone, weights_only=True)['hyper_parameters']
    assert about['model'] == model
    assert about['bands'] == ['red', 'green', 'blue', 'nir']
    assert about['low'] == [0] * 4 and about['high'] == [255] * 4


def test_validate_test_and_predict_from_a_checkpoint(
    scenes: Path, folder: Path, capsys: pytest.CaptureFixture
) -> None:
    config = [
        f'--config={CONFIGS / "pretrain_tiny.yaml"}',
        f'--data.paths={scenes}',
        *TINY,
    ]
    main(['fit', *config, '--model.in_channels=4'])
    checkpoint = next(p for p in folder.rglob('*.ckpt') if p.name != 'backbone.ckpt')
    for command, word in (('validate', 'val_loss'), ('test', 'test_loss')):
        main([command, *config, '--model.in_channels=4', f'--ckpt_path={checkpoint}'])
        assert word in capsys.readouterr().out
    main(['predict', *config, '--model.in_channels=4', f'--ckpt_path={checkpoint}'])


def test_wrong_key_is_named_before_anything_runs(
    scenes: Path, folder: Path, capsys: pytest.CaptureFixture
) -> None:
    wrong = folder / 'wrong.yaml'
    text = (CONFIGS / 'pretrain_tiny.yaml').read_text()
    wrong.write_text(text.replace('queue_size', 'queue_sise'))
    with pytest.raises(SystemExit) as error:
        main(['fit', f'--config={wrong}', f'--data.paths={scenes}'])
    assert error.value.code == 2
    assert 'queue_sise' in capsys.readouterr().err
    assert not list(folder.rglob('*.ckpt'))


@pytest.mark.slow
def test_demo_leaves_what_it_promises(
    folder: Path, capsys: pytest.CaptureFixture
) -> None:
    write_synthetic_scenes(folder / 'scenes', scenes=1, size=200)
    main(
        [
            'demo',
            f'--scenes={folder / "scenes" / "images"}',
            f'--out={folder / "out"}',
            '--steps=20',
        ]
    )
    out = folder / 'out'
    card = (out / 'MODEL_CARD.md').read_text()
    assert 'resnet18, pretrained by CMID on red, green, blue, nir' in card
    assert '20 steps of 16 chips' in card and '| nir | 0 | 255 |' in card
    assert 'train_global' in card and '4.86' in card
    for name in ('checkpoint.ckpt', 'backbone.ckpt', 'views.png', 'reconstructions.png', 'curves.png',
                 'features.png', 'features.tif', 'logs/metrics.csv'):  # fmt: skip
        assert (out / name).stat().st_size > 1000, name
    scene = min((folder / 'scenes' / 'images').glob('*.tif'))
    with rasterio.open(scene) as one, rasterio.open(out / 'features.tif') as two:
        assert (one.crs, one.transform, one.shape) == (
            two.crs,
            two.transform,
            two.shape,
        )
        assert two.read().std() > 10
    said = capsys.readouterr().out
    assert 'global loss rises at first' in said and 'What next' in said


def test_demo_refuses_early(folder: Path) -> None:
    with pytest.raises(ValueError, match=r'steps=5: .*at least 20'):
        demo(steps=5)
    (folder / 'file').touch()
    with pytest.raises(ValueError, match='cannot be written.*--out DIR'):
        check_writable(folder / 'file' / 'inside', '--out DIR')


def test_checkpoints_made_in_python_work_from_the_command(
    scenes: Path, folder: Path, capsys: pytest.CaptureFixture
) -> None:
    data = SceneDataModule(str(scenes), patch_size=64, length=4, batch_size=2, seed=0)
    task = CMID('resnet18', in_channels=4, size=64, queue_size=4, hidden_dim=8, output_dim=4,
                num_prototypes=4, warmup_steps=0, teacher_temp_steps=1)  # fmt: skip
    trainer = Trainer(
        accelerator='cpu', max_epochs=1, logger=False, enable_progress_bar=False
    )
    trainer.fit(task, data)
    checkpoint = next(p for p in folder.rglob('*.ckpt') if p.name != 'backbone.ckpt')
    config = f'--config={CONFIGS / "pretrain_tiny.yaml"}'
    flags = [
        config,
        f'--data.paths={scenes}',
        *TINY,
        '--model.in_channels=4',
        f'--ckpt_path={checkpoint}',
    ]
    main(['validate', *flags])
    shown = capsys.readouterr().out
    assert 'val_loss' in shown
    # The same views, networks and temperature: the same loss as at the end of the fit
    assert f'{trainer.callback_metrics["val_reconstruction"].item():.4f}'[:5] in shown


def test_output_that_cannot_be_written(scenes: Path, folder: Path) -> None:
    (folder / 'file').touch()
    flags = [
        f'--config={CONFIGS / "pretrain_tiny.yaml"}',
        f'--data.paths={scenes}',
        *TINY,
    ]
    with pytest.raises(ValueError, match=r'cannot be written.*default_root_dir'):
        main(['fit', *flags, '--model.in_channels=4', '--trainer.logger=true',
              f'--trainer.default_root_dir={folder / "file" / "inside"}'])  # fmt: skip
