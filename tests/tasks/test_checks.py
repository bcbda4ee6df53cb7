# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Runs that must not start, and runs that must stop."""

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from chips import Chips
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, IterableDataset

from cmid_geo.callbacks.monitoring import CollapseAlarm
from cmid_geo.datamodules import SceneDataModule
from cmid_geo.datasets import write_synthetic_scenes
from cmid_geo.ops.value_range import ValueRange
from cmid_geo.tasks import CMID
from cmid_geo.tasks.checks import check_batch, check_data

Make = Callable[..., CMID]
Trainers = Callable[..., Trainer]


def test_warmup_longer_than_the_run(
    make_task: Make, make_trainer: Trainers, loader: DataLoader
) -> None:
    task = make_task(warmup_steps=None)
    with pytest.raises(
        ValueError, match=r'warm-up of 40 steps .* run of 8: lower.*raise'
    ):
        make_trainer(max_epochs=2).fit(task, loader)
    make_trainer(fast_dev_run=True).fit(make_task(warmup_steps=None), loader)


def test_epochs_become_steps(
    make_task: Make, make_trainer: Trainers, loader: DataLoader
) -> None:
    task = make_task(warmup_steps=None, warmup_epochs=1.5, teacher_temp_steps=None)
    trainer = make_trainer(max_epochs=4, accumulate_grad_batches=2)
    trainer.fit(task, loader)
    horizon = task.horizon
    assert horizon is not None
    assert (horizon.total, horizon.warmup, horizon.temperature) == (8, 3, 100)
    assert (horizon.batch, horizon.chips) == (8, 16)
    schedule = trainer.lr_scheduler_configs[0].scheduler
    assert schedule.base_lrs == [1e-3 * 8 / 64] * 2
    assert [group['weight_decay'] for group in trainer.optimizers[0].param_groups] == [
        0.0,
        0.02,
    ]


def test_no_decay_of_biases_and_norms(
    make_task: Make, make_trainer: Trainers, loader: DataLoader
) -> None:
    task, trainer = make_task(), make_trainer(max_steps=1)
    trainer.fit(task, loader)
    without = {id(p) for p in trainer.optimizers[0].param_groups[0]['params']}
    for name, parameter in task.named_parameters():
        if parameter.requires_grad:
            assert (id(parameter) in without) == (parameter.ndim == 1), name


def test_all_that_is_in_the_way_is_told_at_once(
    make_task: Make, make_trainer: Trainers, tmp_path: Path
) -> None:
    write_synthetic_scenes(tmp_path, scenes=1, size=192)
    data = SceneDataModule(str(tmp_path / 'images'), 64, length=3, batch_size=4)
    task = make_task(in_channels=4, queue_size=33, warmup_steps=None)
    with pytest.raises(ValueError) as caught:
        make_trainer(max_epochs=2).fit(task, data)
    first, *faults = str(caught.value).splitlines()
    assert first == '3 things are in the way:'
    # As if the first were mended
    assert 'raise length to 4' in faults[0]
    assert 'warm-up of 10 steps is longer than the run of 2' in faults[1]
    assert 'queue_size=33 is more than the 8 keys' in faults[2]
    assert 'length=17' in faults[2]


def test_data_without_a_whole_batch(make_task: Make, make_trainer: Trainers) -> None:
    loader = DataLoader(Chips(3), batch_size=4, drop_last=True)
    with pytest.raises(ValueError, match='^the data hold no whole batch of 4 chips'):
        make_trainer(max_epochs=2).fit(make_task(queue_size=8), loader)


class Endless(IterableDataset):
    def __iter__(self) -> Any:
        while True:
            yield Chips(1)[0]


def test_epochs_of_unknown_length(make_task: Make, make_trainer: Trainers) -> None:
    loader = DataLoader(Endless(), batch_size=4)
    with pytest.raises(
        ValueError, match=r'length of an epoch.*give steps, CMID\(warmup_steps'
    ):
        make_trainer(max_steps=2).fit(make_task(warmup_steps=None), loader)
    with pytest.raises(ValueError, match='no end.*max_epochs'):
        make_trainer(max_steps=-1, max_epochs=-1).fit(make_task(), loader)
    task = make_task()
    make_trainer(max_steps=2).fit(task, loader)
    assert int(task.queue.seen) == 16


def test_queue_larger_than_the_data(
    make_task: Make, make_trainer: Trainers, loader: DataLoader
) -> None:
    match = r'queue_size=33 is more than the 32 keys .*CMID\(queue_size=32\).*length=17'
    with pytest.raises(ValueError, match=match):
        make_trainer(max_epochs=1).fit(make_task(queue_size=33), loader)
    make_trainer(max_epochs=1).fit(make_task(queue_size=32), loader)


def test_batch_that_does_not_divide_the_queue(
    make_task: Make, make_trainer: Trainers, loader: DataLoader
) -> None:
    for size in (3, 23, 29):
        task, trainer = make_task(queue_size=size), make_trainer(max_epochs=2)
        trainer.fit(task, loader)
        torch.testing.assert_close(task.queue.keys.norm(dim=1), torch.ones(size))
        assert trainer.callback_metrics['train_loss'].isfinite()


def test_data_that_do_not_fit() -> None:
    task = {'in_channels': 3, 'size': 224}
    four = SimpleNamespace(value_range=ValueRange((), (0.0,) * 4, (1.0,) * 4))
    with pytest.raises(
        ValueError, match=r'4 bands but CMID\(in_channels=3\): pass in_channels=4'
    ):
        check_data(four, task)
    with pytest.raises(
        ValueError, match=r'chips are 200 pixels but views need 224.*patch_size'
    ):
        check_data(SimpleNamespace(patch_size=(256, 200)), task)
    check_data(SimpleNamespace(patch_size=224), task)
    four.patch_size = 200
    with pytest.raises(ValueError, match=r'(?s)2 things.*4 bands.*200 pixels'):
        check_data(four, task)


@pytest.mark.parametrize('scale', [255.0, -1.0, math.nan])
def test_values_that_are_not_in_the_unit_range(scale: float) -> None:
    image = torch.rand(2, 3, 64, 64) * scale
    with pytest.raises(ValueError, match=r'CMID takes \[0, 1\].*only scale: dm.aug = '):
        check_batch({'image': image}, 3)
    check_batch({'image': image, 'valid': torch.zeros(2, 64, 64, dtype=torch.bool)}, 3)


def test_batches_without_images() -> None:
    with pytest.raises(ValueError, match=r"holds \['mask'\]: CMID reads 'image'"):
        check_batch({'mask': torch.zeros(1)}, 3)


def test_bad_values_stop_before_the_first_step(
    make_task: Make, make_trainer: Trainers
) -> None:
    chips = [{'image': chip * 255} for chip in Chips().chips]
    task, trainer = make_task(), make_trainer(max_epochs=1)
    with pytest.raises(ValueError, match='chips hold values from'):
        trainer.fit(task, DataLoader(chips, batch_size=4))
    assert trainer.global_step == 0


@pytest.mark.parametrize('position', [0, 1, 2])
def test_loss_that_is_not_finite(
    position: int,
    make_task: Make,
    make_trainer: Trainers,
    loader: DataLoader,
    tmp_path: Path,
) -> None:
    task = make_task()
    compare = task.compare

    def spoilt(*views: Any) -> Any:
        compared = compare(*views)
        if task.trainer.global_step == 2:
            compared.losses[position] = compared.losses[position] * math.nan
        return compared

    task.compare = spoilt
    save = ModelCheckpoint(
        tmp_path, '{step}', every_n_train_steps=1, save_top_k=-1, save_last=True
    )
    name = ('reconstruction', 'global', 'local')[position]
    match = f'not finite in batch 2 of epoch 0: {name} nan. Look.*weights=.*last.*a resumed run keeps'
    with pytest.raises(FloatingPointError, match=match):
        make_trainer(max_epochs=1, callbacks=[save]).fit(task, loader)
    assert sorted(p.name for p in tmp_path.glob('*.ckpt')) == [
        'last.ckpt',
        'step=1.ckpt',
        'step=2.ckpt',
    ]
    state = torch.load(tmp_path / 'last.ckpt', weights_only=True)['state_dict']
    assert all(v.isfinite().all() for v in state.values())


def test_unwritable_folder(
    make_task: Make, make_trainer: Trainers, loader: DataLoader, tmp_path: Path
) -> None:
    (tmp_path / 'file').touch()
    save = ModelCheckpoint(tmp_path / 'file' / 'inside')
    task, trainer = make_task(), make_trainer(max_epochs=1, callbacks=[save])
    with pytest.raises(ValueError, match='inside cannot be written.*choose another'):
        trainer.fit(task, loader)
    assert trainer.global_step == 0


def metrics(**changed: float) -> dict[str, torch.Tensor]:
    healthy = {'embedding_std': 0.3, 'assignment_entropy': 2.4, 'teacher_entropy': 1.5}
    return {name: torch.tensor(value) for name, value in (healthy | changed).items()}


@pytest.mark.parametrize(
    ('sign', 'value', 'cause'),
    [
        ('embedding_std', 0.03, 'one embedding'),
        ('assignment_entropy', 0.6, 'one prototype'),
        ('teacher_entropy', 2.48, 'no prototype from another'),
    ],
)
def test_alarm_only_when_a_sign_lasts(sign: str, value: float, cause: str) -> None:
    alarm = CollapseAlarm(patience=3)
    task = SimpleNamespace(
        hparams={'output_dim': 8, 'num_prototypes': 12},
        horizon=SimpleNamespace(warmup=5),
    )

    def watch(step: int, **changed: float) -> None:
        trainer: Any = SimpleNamespace(
            callback_metrics=metrics(**changed), global_step=step, log_every_n_steps=1
        )
        alarm.on_train_batch_end(trainer, task, None, None, 0)

    bad = {sign: value}
    for step in range(6):
        watch(step, **bad)  # in the warm-up nothing counts
    watch(6, **bad)
    watch(7, **bad)
    watch(8)  # healthy again
    watch(9, **bad)
    watch(10, **bad)
    assert not alarm.raised
    with pytest.warns(UserWarning, match=f'collapse at step 11: .*{cause}'):
        watch(11, **bad)
    assert alarm.raised == {sign: 11}


@pytest.mark.parametrize(
    ('options', 'contrast', 'cause'),
    [
        # A teacher so hot that it tells no prototype from another
        (
            {'teacher_temp_start': 3.0, 'teacher_temp': 3.0},
            1.0,
            'no prototype from another',
        ),
        # Chips without any feature
        ({}, 0.0, 'all images get one embedding'),
    ],
)
def test_run_made_to_collapse_is_noticed(
    options: dict, contrast: float, cause: str, make_task: Make, make_trainer: Trainers
) -> None:
    chips = [{'image': 0.5 + contrast * (chip - 0.5)} for chip in Chips().chips]
    task = make_task(queue_size=8, **options)
    trainer = make_trainer(max_epochs=8, log_every_n_steps=1)
    with pytest.warns(UserWarning, match=cause):
        trainer.fit(task, DataLoader(chips, batch_size=4))
    assert trainer.global_step == 32


def test_healthy_run_raises_no_alarm(
    make_task: Make, make_trainer: Trainers, loader: DataLoader
) -> None:
    trainer = make_trainer(max_epochs=8, log_every_n_steps=1)
    trainer.fit(make_task(), loader)
    (alarm,) = (c for c in trainer.callbacks if isinstance(c, CollapseAlarm))
    assert not alarm.raised


def test_the_alarm_is_silent_on_other_tasks(make_trainer: Trainers) -> None:
    alarm, other = CollapseAlarm(), torch.nn.Identity()
    alarm.on_train_batch_end(make_trainer(), other, None, None, 0)
    assert not alarm.raised
