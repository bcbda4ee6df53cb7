# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""The memory of a run: right after each step, in each checkpoint, over each process."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from chips import SMALL, Chips
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy
from processes import start
from torch import nn
from torch.utils.data import DataLoader

from cmid_geo.tasks import CMID
from cmid_geo.transforms import View

Make = Callable[..., CMID]
Trainers = Callable[..., Trainer]


class Recorder(Checkpoint):
    """Copies of the state after each batch, taken when checkpoints are: last of all."""

    def __init__(self) -> None:
        self.states: list[dict[str, torch.Tensor]] = []
        self.steps: list[int] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        self.states.append({k: v.clone() for k, v in pl_module.state_dict().items()})
        self.steps.append(trainer.global_step)


def test_memory_follows_each_step_by_hand(
    make_task: Make, make_trainer: Trainers, loader: DataLoader
) -> None:
    task, outputs = make_task(momentum=0.5, center_momentum=0.9), []
    step = task.training_step
    task.training_step = lambda batch, batch_idx: (
        outputs.append(step(batch, batch_idx)) or outputs[-1]
    )
    center = torch.zeros(12)
    teacher = {k: v.clone() for k, v in task.teacher.named_parameters()}
    recorder = Recorder()
    make_trainer(max_epochs=1, callbacks=[recorder]).fit(task, loader)
    keys = torch.cat([o['keys'].flatten(0, 1) for o in outputs])
    for n, state in enumerate(recorder.states):
        written = keys[: 8 * (n + 1)]
        for i in range(max(0, len(written) - 24), len(written)):
            assert torch.equal(state['queue.keys'][i % 24], written[i])
        center = 0.9 * center + 0.1 * outputs[n]['scores'][0]
        torch.testing.assert_close(state['assign.center'], center)
        m = task.teacher_momentum(n)
        for name, old in teacher.items():
            teacher[name] = m * old + (1 - m) * state[f'student.{name}']
            torch.testing.assert_close(state[f'teacher.{name}'], teacher[name])
    assert m > 0.8, 'the momentum rises'


def test_accumulation_moves_queue_each_batch_and_teacher_each_step(
    make_task: Make, make_trainer: Trainers, loader: DataLoader
) -> None:
    recorder, task = Recorder(), make_task(momentum=0.5)
    trainer = make_trainer(
        max_epochs=1, accumulate_grad_batches=2, callbacks=[recorder]
    )
    trainer.fit(task, loader)
    assert recorder.steps == [0, 1, 1, 2]
    assert [int(s['queue.seen']) for s in recorder.states] == [8, 16, 24, 32]
    name = 'teacher.projector.layers.0.weight'
    weights = [s[name] for s in recorder.states]
    start = make_task().state_dict()[name]
    assert torch.equal(weights[0], start) and not torch.equal(weights[1], start)
    assert torch.equal(weights[2], weights[1]) and not torch.equal(
        weights[3], weights[2]
    )


def test_checkpoint_of_a_step_holds_the_memory_after_it(
    make_task: Make, make_trainer: Trainers, loader: DataLoader, tmp_path: Path
) -> None:
    save = ModelCheckpoint(tmp_path, '{step}', every_n_train_steps=1, save_top_k=-1)
    recorder, task = Recorder(), make_task(momentum=0.5)
    make_trainer(max_epochs=1, callbacks=[save, recorder]).fit(task, loader)
    for step in (1, 2, 3, 4):
        state = torch.load(tmp_path / f'step={step}.ckpt', weights_only=True)[
            'state_dict'
        ]
        expected = recorder.states[step - 1]
        assert all(torch.equal(state[name], value) for name, value in expected.items())


def test_resumed_run_equals_one_that_did_not_stop(
    make_task: Make, make_trainer: Trainers, loader: DataLoader, tmp_path: Path
) -> None:
    """Views are drawn from the step, so that both runs see the same."""

    def run(
        task: CMID, path: Path | None = None, stop: int = -1
    ) -> tuple[CMID, Trainer]:
        step = task.training_step

        def drawn(batch: Any, batch_idx: int) -> Any:
            torch.manual_seed(task.trainer.global_step)
            return step(batch, batch_idx)

        task.training_step = drawn
        save = ModelCheckpoint(tmp_path, '{step}', every_n_train_steps=4, save_top_k=-1)
        trainer = make_trainer(max_epochs=2, callbacks=[save, StopAt(stop)])
        trainer.fit(task, loader, ckpt_path=path)
        return task, trainer

    whole, trainer = run(make_task(momentum=0.5))
    run(make_task(momentum=0.5), stop=4)
    torch.manual_seed(7)
    other = CMID(**(SMALL | {'momentum': 0.5}))
    resumed, again = run(other, tmp_path / 'step=4.ckpt')
    assert again.global_step == trainer.global_step == 8
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value, msg=name)
    first, second = trainer.optimizers[0].state_dict(), again.optimizers[0].state_dict()
    assert first['param_groups'] == second['param_groups']
    for number, state in first['state'].items():
        for name, value in state.items():
            torch.testing.assert_close(second['state'][number][name], value)
    rates = [
        t.lr_scheduler_configs[0].scheduler.get_last_lr() for t in (trainer, again)
    ]
    assert rates[0] == rates[1]
    assert whole.teacher_momentum(7) == resumed.teacher_momentum(7)


class StopAt(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        trainer.should_stop = trainer.should_stop or trainer.global_step == self.step


class GivenViews(nn.Module):
    """Views that depend on nothing but the chip: the chip itself, and its mirror image."""

    def forward(
        self, chips: torch.Tensor, valid: torch.Tensor | None = None
    ) -> tuple[View, View]:
        eye = torch.tensor([15.5, 47.5])
        y, x = torch.meshgrid(eye, eye, indexing='ij')
        positions = torch.stack([x, y], -1).view(1, 4, 2).expand(len(chips), 4, 2)
        # Which cell is seen depends on the chip too
        seen = (chips.mean((1, 2, 3)) * 1e4).long() % 4
        mask = torch.ones(len(chips), 4, dtype=torch.bool).scatter(
            1, seen[:, None], False
        )
        mask, full = (
            mask.view(-1, 2, 2),
            torch.ones(len(chips), 64, 64, dtype=torch.bool),
        )
        flipped = positions.view(-1, 2, 2, 2).flip(2).reshape(-1, 4, 2)
        first = View(chips, mask, positions, full)
        return first, View(chips.flip(3), mask.flip(1), flipped, full)


class Shares(torch.utils.data.Sampler):
    """The share of each batch of 8 that this process takes."""

    def __init__(self, rank: int, world: int) -> None:
        self.rank, self.each = rank, 8 // world

    def __iter__(self) -> Any:
        for batch in range(0, 24, 8):
            first = batch + self.rank * self.each
            yield from range(first, first + self.each)

    def __len__(self) -> int:
        return 24 // 8 * self.each


def train(rank: int, world: int, folder: str, port: str) -> None:
    """Three steps of one of *world* processes; the first one saves."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    task = CMID(
        # All four cells: of the smallest gradients Adan would show the order of summing
        **(SMALL | {'model': 'vit_test', 'queue_size': 40, 'matches': 4}),
        lr=1e-2, momentum=0.5, momentum_end=0.5, spectral_weight=0.0,
        augmentations=GivenViews(),
    )  # fmt: skip
    task.hparams['warmup_steps'] = 0
    if rank == 0:
        torch.save(task.state_dict(), f'{folder}/start.pt')
    strategy: Any = 'auto'
    if world > 1:
        os.environ.update(
            MASTER_ADDR='127.0.0.1', MASTER_PORT=port, LOCAL_RANK=str(rank),
            NODE_RANK='0', WORLD_SIZE=str(world), RANK=str(rank), GROUP_RANK='0', LOCAL_WORLD_SIZE=str(world),
            TORCHELASTIC_RUN_ID='test',
        )  # fmt: skip
        strategy = DDPStrategy(process_group_backend='gloo')
    loader = DataLoader(Chips(24), batch_size=8 // world, sampler=Shares(rank, world))
    trainer = Trainer(
        accelerator='cpu', devices=world, strategy=strategy, max_epochs=1, logger=False,
        use_distributed_sampler=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(task, loader)
    if world > 1:
        assert strategy._ddp_kwargs['broadcast_buffers'] is False
    torch.save(task.state_dict(), f'{folder}/end{world}_{rank}.pt')


def test_two_and_four_processes_equal_one(tmp_path: Path, unused_port: int) -> None:
    for world in (1, 2, 4):
        start(train, (world, str(tmp_path), str(unused_port)), nprocs=world)
    names = ('start', 'end1_0', 'end2_0', 'end2_1', 'end4_0', 'end4_3')
    begun, one, *others = (torch.load(tmp_path / f'{name}.pt') for name in names)
    assert {int(end['queue.seen']) for end in (one, *others)} == {48}
    for name, value in one.items():
        for other in others:
            torch.testing.assert_close(
                other[name],
                value,
                atol=1e-5,
                rtol=0,
                msg=lambda text, name=name: f'{name}: {text}',
            )
    for part in ('queue.keys', 'assign.center', 'student.', 'teacher.'):
        moved = max((one[n] - begun[n]).abs().max() for n in one if n.startswith(part))
        assert moved > 1e-3, part
