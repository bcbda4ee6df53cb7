# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Runs that are resumed end as if they had not been stopped."""

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.strategies import FSDPStrategy
from runs import RUNS, differences, run

from cmid_geo.tasks.resuming import check_strategy, seed_all


def saving(folder: Path, steps: int = 1) -> list[Any]:
    options: Any = {'auto_insert_metric_name': False, 'save_top_k': -1}
    by_step = ModelCheckpoint(
        folder, 'step{step}', every_n_train_steps=steps, **options
    )
    by_epoch = ModelCheckpoint(
        folder, 'epoch{step}', save_on_train_epoch_end=True, **options
    )
    return [by_step, by_epoch]


@pytest.mark.parametrize(
    ('workers', 'options'),
    [
        (0, {}),
        (2, {}),
        (0, {'accumulate_grad_batches': 2, 'val_check_interval': 0.5}),
        (0, {'limit_train_batches': 2, 'limit_val_batches': 0}),
        (0, {'max_steps': 5}),
        (0, {'precision': 'bf16-mixed'}),
    ],
    ids=['plain', 'workers', 'accumulated', 'limited', 'by steps', 'bfloat16'],
)
def test_pretraining_resumes_exactly_from_every_checkpoint(
    workers: int, options: dict[str, Any], tmp_path: Path
) -> None:
    whole = run(
        'pretraining', tmp_path, None, saving(tmp_path / 'kept'), workers, **options
    )
    files = sorted(tmp_path.glob('kept/[se]*.ckpt'))
    assert len(files) >= 4
    for path in files:
        again = run('pretraining', tmp_path, path, [], workers, **options)
        assert not differences(whole, again), path.name


class Measured(Callback):
    """Keeps what each validation found, and after which step."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, float]] = []

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        self.rows.append(
            (trainer.global_step, float(trainer.callback_metrics['val_loss']))
        )


@pytest.mark.parametrize(
    'options',
    [
        {},
        {'max_steps': 8},
        {'val_check_interval': 0.34},
        {'check_val_every_n_epoch': 2},
    ],
    ids=['plain', 'by steps', 'within epochs', 'every other epoch'],
)
def test_no_validation_is_lost(options: dict[str, Any], tmp_path: Path) -> None:
    """Saved before a validation, after it, or before the plateau schedule knows of it."""
    after = ModelCheckpoint(
        tmp_path / 'kept', 'valid{step}', monitor='val_loss', save_top_k=-1,
        save_on_train_epoch_end=False, auto_insert_metric_name=False,
    )  # fmt: skip
    measured, options = Measured(), {'max_epochs': 3} | options
    callbacks = [measured, *saving(tmp_path / 'kept'), after]
    whole = run('segmentation', tmp_path, None, callbacks, **options)
    # After the end there is no training that a schedule could change
    files = sorted(
        set(tmp_path.glob('kept/*.ckpt')) - {tmp_path / 'kept' / 'epoch9.ckpt'}
    )
    assert len(files) >= 12
    for path in files:
        again, step = (
            Measured(),
            int(path.stem[5:] if 'step' not in path.stem else path.stem[4:]),
        )
        ended = run('segmentation', tmp_path, path, [again], **options)
        assert not differences(whole, ended), path.name
        due = [row for row in measured.rows if row[0] > step - ('step' in path.stem)]
        assert again.rows == due, path.name


def test_runs_resume_again_after_the_last_batch_of_an_epoch(tmp_path: Path) -> None:
    """Where Lightning alone repeats an epoch (its issues 18060 and 19815)."""
    whole = run('pretraining', tmp_path, None, saving(tmp_path / 'kept'), max_epochs=3)
    last = tmp_path / 'kept' / 'step3.ckpt'
    run('pretraining', tmp_path, last, saving(tmp_path / 'again'), max_epochs=3)
    files = sorted(tmp_path.glob('again/[se]*.ckpt'))
    assert {path.name for path in files} >= {'step4.ckpt', 'step6.ckpt', 'epoch6.ckpt'}
    for path in files:
        again = run('pretraining', tmp_path, path, max_epochs=3)
        assert not differences(whole, again), path.name


def test_gradients_accumulated_before_a_checkpoint_are_kept(tmp_path: Path) -> None:
    """A resumed run saves at its first batch, in the middle of an accumulation."""
    options: Any = {'accumulate_grad_batches': 3}
    whole = run('pretraining', tmp_path, None, saving(tmp_path / 'kept'), **options)
    first = tmp_path / 'kept' / 'step1.ckpt'
    run('pretraining', tmp_path, first, saving(tmp_path / 'again'), **options)
    held = [
        path
        for path in sorted(tmp_path.glob('again/*.ckpt'))
        if torch.load(path, weights_only=True).get('gradients')
    ]
    assert held
    for path in held:
        assert not differences(whole, run('pretraining', tmp_path, path, **options))


@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('name', [name for name in RUNS if name != 'pretraining'])
def test_tasks_resume_exactly(name: str, workers: int, tmp_path: Path) -> None:
    whole = run(name, tmp_path, None, saving(tmp_path / 'kept'), workers)
    for file in ('step2', f'epoch{whole["step"] // 2}'):
        path = tmp_path / 'kept' / f'{file}.ckpt'
        assert not differences(whole, run(name, tmp_path, path, [], workers)), file


def test_other_seeds_train_otherwise(tmp_path: Path) -> None:
    """Else all of this could hold of a run that draws nothing."""
    whole = run('pretraining', tmp_path, None, saving(tmp_path / 'kept'))
    path = tmp_path / 'kept' / 'step2.ckpt'
    content = torch.load(path, weights_only=True)
    content['seed'] += 1
    torch.save(content, path)
    assert differences(whole, run('pretraining', tmp_path, path))


def test_keys_seed_independently() -> None:
    drawn = set()
    for key in ((1, 0, 0, 0), (1, 1, 0, 0), (1, 0, 1, 0), (1, 0, 0, 1), (2, 0, 0, 0)):
        seed_all(*key)
        drawn.add(float(torch.rand(())))
    assert len(drawn) == 5
    seed_all(1, 0, 0, 0)
    assert float(torch.rand(())) in drawn


def test_sharded_parameters_are_refused() -> None:
    with pytest.raises(ValueError, match=r"FSDPStrategy .*Trainer\(strategy='ddp'\)"):
        check_strategy(FSDPStrategy(), 'CMID')


def test_compiled_backbones_change_no_names(
    make_task: Any, make_trainer: Any, loader: Any, tmp_path: Path
) -> None:
    plain, task = make_task(), make_task(compiled=True)
    called: list[int] = []

    def backend(graph: Any, inputs: Any) -> Any:
        called.append(1)
        return graph.forward

    for source in (task.student, task.teacher):
        compile_ = source.backbone.compile
        source.backbone.compile = functools.partial(compile_, backend=backend)
    losses = []
    for each in (plain, task):
        torch.manual_seed(0)
        trainer = make_trainer(max_steps=1)
        trainer.fit(each, loader)
        losses.append(trainer.callback_metrics['train_loss'])
    assert called
    assert list(plain.state_dict()) == list(task.state_dict())
    torch.testing.assert_close(*losses)
