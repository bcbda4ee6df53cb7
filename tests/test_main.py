# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""The command, as a user calls it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import rasterio
import torch
import yaml
from hostile import Evil, serve, write_module
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_only
from rasterfiles import noise, write

from cmid_geo import CMID, SceneDataModule
from cmid_geo.__main__ import _list_bands, demonstrate, main
from cmid_geo.callbacks.export_backbone import check_writable
from cmid_geo.datasets import SceneDataset, write_synthetic_scenes
from cmid_geo.demo import judge, small_task
from cmid_geo.models import export_backbone
from cmid_geo.tasks.cmid import SMALL_DATA

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


@pytest.mark.parametrize('name', ['small', 'resnet50', 'swin_base', 'vit_base'])
def test_configs_fit(
    name: str, scenes: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = CONFIGS / f'pretrain_{name}.yaml'
    given = yaml.safe_load(config.read_text())
    # Base-sized networks are built, but small ones run
    small = {
        'swin_base': 'swin_test',
        'vit_base': 'vit_test',
        'resnet50': 'resnet_test',
    }
    model = small.get(name, given['model']['init_args']['model'])
    main(['fit', f'--config={config}', f'--data.paths={scenes}', '--data.bands=null', *TINY,
          f'--model.model={model}', '--model.in_channels=4'])  # fmt: skip
    (backbone,) = folder.rglob('backbone.ckpt')
    about = torch.load(backbone, weights_only=True)['hyper_parameters']
    assert about['model'] == model
    assert about['bands'] == ['red', 'green', 'blue', 'nir']
    assert about['low'] == [0] * 4 and about['high'] == [255] * 4


def test_the_small_recipe_is_the_named_set_of_arguments() -> None:
    given = yaml.safe_load((CONFIGS / 'pretrain_small.yaml').read_text())['model']
    assert SMALL_DATA.items() <= given['init_args'].items()
    assert given['init_args'].keys() - SMALL_DATA.keys() == {'model', 'in_channels'}
    task = CMID.small_data('resnet_test', in_channels=5, queue_size=7)
    assert task.hparams['queue_size'] == 7 and task.hparams['in_channels'] == 5
    expected = SMALL_DATA | {'model': 'resnet_test', 'queue_size': 7}
    assert {name: task.hparams[name] for name in expected} == expected


@pytest.mark.parametrize('given', [[], ['--trainer.precision=32-true']])
def test_the_small_recipe_chooses_the_precision_unless_it_is_given(
    given: list[str], scenes: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Trainer] = []
    monkeypatch.setattr('cmid_geo.cli.fast_precision', lambda on_cpu: 'bf16-mixed')
    monkeypatch.setattr('cmid_geo.cli.restore_from_files', made.append)
    words = [word for word in TINY if 'precision' not in word]
    main(['fit', f'--config={CONFIGS / "pretrain_small.yaml"}', f'--data.paths={scenes}', *words, *given,
          '--trainer.fast_dev_run=true', '--model.in_channels=4'])  # fmt: skip
    assert made[0].precision == ('32-true' if given else 'bf16-mixed')


def test_validate_test_and_predict_from_a_checkpoint(
    scenes: Path, folder: Path, capsys: pytest.CaptureFixture
) -> None:
    config = [
        f'--config={CONFIGS / "pretrain_small.yaml"}',
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
    text = (CONFIGS / 'pretrain_small.yaml').read_text()
    wrong.write_text(text.replace('queue_size', 'queue_sise'))
    with pytest.raises(SystemExit) as error:
        main(['fit', f'--config={wrong}', f'--data.paths={scenes}'])
    assert error.value.code == 2
    assert 'queue_sise' in capsys.readouterr().err
    assert not list(folder.rglob('*.ckpt'))


@pytest.mark.slow
def test_demo_leaves_what_it_promises(
    folder: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Fewer than the demo's 16, for time's sake
    monkeypatch.setattr('cmid_geo.demo.BATCH', 6)
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
    assert '20 steps of 6 chips' in card and '| nir | 0 | 255 |' in card
    assert 'train_global' in card and '4.86' in card
    # The scenes have masks beside them
    assert '| features of random weights |' in card
    for name in ('checkpoint.ckpt', 'backbone.ckpt', 'views.png', 'reconstructions.png', 'curves.png',
                 'cells.png', 'features.png', 'features.tif', 'logs/metrics.csv'):  # fmt: skip
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


def test_masks_that_cannot_be_used_do_not_end_the_demo(
    folder: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(folder / 'images' / 'a.tif', noise(3, 64, 64))
    write(folder / 'masks' / 'a.tif', noise(1, 64, 64) * 0 + 255)
    dataset, task = SceneDataset(folder / 'images'), small_task(3, 20)
    assert judge(task, dataset, folder, None) == ''
    assert 'Not measured: half of the scenes has no label' in capsys.readouterr().out
    monkeypatch.setattr('cmid_geo.demo.MOST_MEASURED', 64 * 64 - 1)
    assert judge(task, dataset, folder, None) == ''
    assert not capsys.readouterr().out


def test_demo_refuses_early(folder: Path) -> None:
    with pytest.raises(ValueError, match=r'steps=5: .*at least 20'):
        demonstrate(steps=5)
    (folder / 'file').touch()
    with pytest.raises(ValueError, match='cannot be written.*--out DIR'):
        check_writable(folder / 'file' / 'inside', '--out DIR')


def test_checkpoints_made_in_python_work_from_the_command(
    scenes: Path, folder: Path, capsys: pytest.CaptureFixture
) -> None:
    data = SceneDataModule(str(scenes), patch_size=64, length=4, batch_size=2, seed=0)
    task = CMID('resnet_test', in_channels=4, size=64, queue_size=4, hidden_dim=8, output_dim=4,
                num_prototypes=4, warmup_steps=0, teacher_temp_steps=1)  # fmt: skip
    trainer = Trainer(
        accelerator='cpu', max_epochs=1, logger=False, enable_progress_bar=False
    )
    trainer.fit(task, data)
    checkpoint = next(p for p in folder.rglob('*.ckpt') if p.name != 'backbone.ckpt')
    config = f'--config={CONFIGS / "pretrain_small.yaml"}'
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


@pytest.mark.parametrize(
    ('logger', 'tables', 'boards'), [(None, 1, 1), ('true', 1, 1), ('false', 0, 0),
                                     ('lightning.pytorch.loggers.TensorBoardLogger', 0, 1)],
)  # fmt: skip
def test_metrics_are_written_as_a_table_unless_a_logger_is_chosen(
    logger: str | None, tables: int, boards: int, scenes: Path, folder: Path
) -> None:
    words = [word for word in TINY if 'logger' not in word]
    chosen = [f'--trainer.logger={logger}'] if logger else []
    if boards and not tables:
        chosen.append('--trainer.logger.save_dir=logs')
    main(['fit', f'--config={CONFIGS / "pretrain_small.yaml"}', f'--data.paths={scenes}', *words, *chosen,
          '--model.in_channels=4', '--trainer.log_every_n_steps=1'])  # fmt: skip
    written = list(folder.rglob('metrics.csv'))
    assert len(written) == tables
    events = list(folder.rglob('events.out.tfevents*'))
    assert len(events) == boards
    for path in written:
        assert path.parent == events[0].parent
        heads = path.read_text().splitlines()[0].split(',')
        assert {'step', 'train_loss', 'train_global', 'val_loss'} <= set(heads)


def test_output_that_cannot_be_written(scenes: Path, folder: Path) -> None:
    (folder / 'file').touch()
    flags = [
        f'--config={CONFIGS / "pretrain_small.yaml"}',
        f'--data.paths={scenes}',
        *TINY,
    ]
    told = r'^cmid-geo fit: the output folder .*cannot be written.*default_root_dir'
    with pytest.raises(SystemExit, match=told):
        main(['fit', *flags, '--model.in_channels=4', '--trainer.logger=true',
              f'--trainer.default_root_dir={folder / "file" / "inside"}'])  # fmt: skip


#: What a checkpoint may name; MODULE stands for one that leaves a file when it is imported.
NAMED = [
    {'_class_path': 'MODULE.Thing'},
    {'_class_path': 'os.system'},
    {'_class_path': 'cmid_geo.tasks.CMID', 'augmentations': 'MODULE.Thing'},
    {'_class_path': 'cmid_geo.tasks.CMID', 'augmentations': {'class_path': 'MODULE.Thing'}},
    {'_class_path': 'cmid_geo.tasks.CMID', 'augmentations': 'class_path: MODULE.Thing'},
    {'augmentations': 'MODULE.Thing'},
    {'class_path': 'MODULE.Thing'},
    {'_class_path': 'torchgeo.tasks.Classification', 'class_weights': 'MODULE.Thing'},
    {'_instantiator': 'MODULE.Thing', 'model': 'resnet18'},
]  # fmt: skip


@pytest.mark.parametrize('number', range(len(NAMED)))
def test_a_checkpoint_does_not_choose_what_is_imported(
    number: int, scenes: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = f'named_{number}'
    monkeypatch.syspath_prepend(folder)
    marker = write_module(folder, module)
    named = json.loads(json.dumps(NAMED[number]).replace('MODULE', module))
    content = {'hyper_parameters': named, 'state_dict': {}}
    torch.save(content | {'pytorch-lightning_version': '2.6.0'}, folder / 'odd.ckpt')
    flags = [
        f'--config={CONFIGS / "pretrain_small.yaml"}',
        f'--data.paths={scenes}',
        *TINY,
    ]
    with pytest.raises(
        SystemExit,
        match='cmid-geo test: odd.ckpt .*where you trust|that Lightning saved',
    ):
        main(['test', *flags, '--ckpt_path=odd.ckpt'])
    assert not marker.exists()


@pytest.mark.allow_hosts(['127.0.0.1'])
@pytest.mark.parametrize('command', ['fit', 'predict'])
def test_a_checkpoint_runs_nothing(
    command: str, scenes: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv('NO_PROXY', '127.0.0.1')
    monkeypatch.setenv('TORCH_HOME', str(folder / 'torch'))
    torch.save({'state_dict': {}, 'evil': Evil(folder / 'done')}, folder / 'evil.ckpt')
    flags = [
        f'--config={CONFIGS / "pretrain_small.yaml"}',
        f'--data.paths={scenes}',
        *TINY,
    ]
    with serve(folder) as url:
        for where, told in (
            (f'{url}/evil.ckpt', 'read as a URL'),
            ('evil.ckpt', 'evil.ckpt was refused'),
        ):
            with pytest.raises(SystemExit, match=f'cmid-geo {command}: .*{told}'):
                main([command, *flags, f'--ckpt_path={where}'])
    assert not (folder / 'done').exists()


def test_help_lists_all_commands(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as error:
        main(['--help'])
    assert error.value.code == 0
    listed = capsys.readouterr().out.partition('Available subcommands:')[2]
    for command in ('fit', 'validate', 'test', 'predict', 'demo', 'map', 'export'):
        assert f'\n    {command} ' in listed


@pytest.mark.parametrize(
    ('given', 'read'),
    [
        (['map', '--bands', '1,2,3', 'c.ckpt', 'x.tif'], '[1, 2, 3]'),
        (
            ['map', 'c.ckpt', 'x.tif', '--bands', '1', '2', '3', '--out', 'o'],
            '[1, 2, 3]',
        ),
        (['map', '--bands', '3', '1', 'c.ckpt', 'x.tif'], '[3, 1]'),
        (['map', '--bands=B04, B03'], '["B04", "B03"]'),
        (['map', '--bands', 'B8A', 'B04', 'there'], '["B8A", "B04"]'),
        (['fit', '--data.bands', '1', '2', '--data.length=4'], '[1, 2]'),
        (['fit', '--data.init_args.bands=B02,B03'], '["B02", "B03"]'),
    ],
)
def test_bands_as_lists_of_words(given: list[str], read: str, folder: Path) -> None:
    (folder / 'there').touch()
    words = _list_bands(given)
    (option,) = (word for word in words if 'bands' in word)
    assert option.partition('=')[2] == read
    assert [w for w in words if w.endswith(('.ckpt', '.tif', 'there'))] == [
        w for w in given if w.endswith(('.ckpt', '.tif', 'there'))
    ]


@pytest.mark.parametrize(
    'words',
    [
        ['map', '--bands', '["B04", "B03"]', 'c.ckpt', 'scenes'],
        ['map', '--bands=[1,2]', 'c.ckpt'],
        ['fit', '--data.bands=null'],
        ['fit', '--data.dict_kwargs.bands', 'all'],
        ['map', 'c.ckpt', 'scenes', '--bands'],
        ['map', '--bands', '--out', 'maps'],
    ],
)
def test_other_bands_stay_as_they_are(words: list[str]) -> None:
    assert _list_bands(words) == words


def test_a_run_resumes_with_the_weights_that_it_began_with(folder: Path) -> None:
    """Weights name their bands, the data do not: what was learned of them comes back."""
    task = CMID('resnet_test', in_channels=4, size=64, queue_size=4, hidden_dim=8, output_dim=4,
                num_prototypes=4, bands=['red', 'green', 'blue', 'nir'])  # fmt: skip
    export_backbone(task, 'weights.ckpt')
    write(folder / 'image.tif', noise(4, 96, 96))
    write(folder / 'mask.tif', noise(1, 96, 96) % 2)
    flags = [
        '--model=cmid_geo.tasks.SemanticSegmentation', '--model.model=unet', '--model.backbone=resnet_test',
        '--model.weights=weights.ckpt', '--model.in_channels=4', '--model.num_classes=2',
        '--data=SegmentationDataModule', '--data.images=image.tif', '--data.masks=mask.tif',
        '--data.patch_size=64', '--data.length=4', '--data.batch_size=2', '--data.num_workers=0',
        '--trainer.accelerator=cpu', '--trainer.logger=false', '--trainer.enable_progress_bar=false',
        '--trainer.default_root_dir=run', '--trainer.enable_model_summary=false',
    ]  # fmt: skip
    main(['fit', *flags, '--trainer.max_epochs=1'])
    (path,) = Path('run').rglob('epoch*.ckpt')
    known = torch.load(path, weights_only=True)['hyper_parameters']
    assert known['bands'] == [1, 2, 3, 4]
    main(['fit', *flags, '--trainer.max_epochs=2', f'--ckpt_path={path}'])
    (path,) = Path('run').rglob('epoch=1*.ckpt')
    # An export is no run
    (export,) = Path('.').glob('weights.ckpt')
    with pytest.raises(SystemExit, match='exported backbone, not the checkpoint of a'):
        main(['fit', *flags, f'--ckpt_path={export}'])


def test_errors_of_a_task_are_its_own_sentence(folder: Path) -> None:
    flags = [
        '--model=cmid_geo.tasks.Classification', '--model.num_classes=3', '--model.in_channels=4',
        '--model.model=resnet18', '--model.randaugment=9', '--data=ImageFolderDataModule',
        '--data.root=.',
    ]  # fmt: skip
    with pytest.raises(SystemExit) as error:
        main(['fit', *flags])
    assert str(error.value).startswith('cmid-geo fit: randaugment=9 changes colours')


def test_errors_are_a_sentence(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    recwarn: pytest.WarningsRecorder,
    capsys: pytest.CaptureFixture,
) -> None:
    flags = [
        f'--config={CONFIGS / "pretrain_small.yaml"}',
        '--data.paths=nowhere',
        *TINY,
    ]
    with pytest.raises(SystemExit) as error:
        main(['fit', *flags])
    assert str(error.value).startswith("cmid-geo fit: no file matches 'nowhere'")
    # Lightning repeats the words, where there are any in sys.argv
    assert not [w for w in recwarn if 'args parameter' in str(w.message)]
    monkeypatch.setenv('CMID_GEO_TRACEBACK', '1')
    with pytest.raises(ValueError, match="^no file matches 'nowhere'"):
        main(['fit', *flags])
    monkeypatch.delenv('CMID_GEO_TRACEBACK')

    def broken(**_: Any) -> None:
        raise TypeError('a mistake of ours')

    monkeypatch.setattr('cmid_geo.cli.Command', broken)
    with pytest.raises(TypeError, match='a mistake of ours'):
        main(['fit', *flags])


def test_an_error_of_one_process_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr('cmid_geo.cli.GRACE', 0.2)
    monkeypatch.setattr(rank_zero_only, 'rank', 1)
    with pytest.raises(SystemExit, match=r'^cmid-geo map \(process 1\): .*nowhere'):
        main(['map', 'nowhere.ckpt', 'x.tif', '--out', 'maps'])


@pytest.mark.slow
def test_an_error_of_all_processes_is_told_once(scenes: Path, folder: Path) -> None:
    config = f'--config={CONFIGS / "pretrain_small.yaml"}'
    words = ['fit', config, f'--data.paths={scenes}', *TINY, '--model.in_channels=4',
             '--trainer.devices=2', '--trainer.strategy=ddp', '--model.queue_size=999']  # fmt: skip
    done = subprocess.run(
        [sys.executable, '-m', 'cmid_geo', *words],
        capture_output=True, text=True, check=False, env=os.environ | {'OMP_NUM_THREADS': '1'},
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.count('queue_size=999 is more than') == 1
    assert 'Traceback' not in done.stderr and 'cmid-geo fit: ' in done.stderr


ROOT = Path(__file__).parent.parent
TINY_RUN = [
    'fit',
    f'--config={ROOT / "configs" / "pretrain_small.yaml"}',
    '--data.paths=nowhere',
]


@pytest.mark.parametrize(
    ('words', 'told'),
    [
        (
            ['--ckpt_path=last'],
            'runs/pretrain_small holds no whole checkpoint of a run',
        ),
        (['--resume=gone'], 'gone holds no whole checkpoint of a run'),
        (['--resume=gone', '--ckpt_path=last'], 'both tell where to go on from'),
        (
            ['--trainer.callbacks=null', '--ckpt_path=last'],
            'lightning_logs holds no whole',
        ),
    ],
)
def test_nothing_to_resume_from_ends_the_command(
    words: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=told):
        main([*TINY_RUN, *words])


def test_arguments_that_a_checkpoint_replaces_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'run').mkdir()
    shutil.copy(ROOT / 'tests' / 'data' / 'old' / 'cmid_resnet.ckpt', tmp_path / 'run')
    match = r'cmid_resnet.ckpt goes on .*lr=.* instead of 0.5.*--model.weights'
    with (
        pytest.warns(UserWarning, match=match),
        # Whether or not another test made the old network known to timm
        pytest.raises(SystemExit, match='resnet_old|nowhere'),
    ):
        main([*TINY_RUN, '--model.lr=0.5', '--resume=run'])
