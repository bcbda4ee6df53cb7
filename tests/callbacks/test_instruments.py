# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from chips import Chips
from lightning.pytorch import Callback, Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from cmid_geo.callbacks.feature_rank import FeatureRank
from cmid_geo.callbacks.loss_gradients import LossGradients
from cmid_geo.models import create_backbone
from cmid_geo.tasks import CMID
from cmid_geo.tasks.schedules import tell_span

ROOT = Path(__file__).parents[2]
RANKS = ('rankme_student', 'lidar_student', 'rankme_teacher', 'lidar_teacher')


class Seen(Callback):
    """What was logged, by name."""

    def __init__(self) -> None:
        self.values: dict[str, list[float]] = {}

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self._note(trainer)

    def on_validation_end(self, trainer: Trainer, *_: Any) -> None:
        self._note(trainer)

    def _note(self, trainer: Trainer) -> None:
        for name, value in trainer.callback_metrics.items():
            self.values.setdefault(name, []).append(float(value))


class Nothing(Callback):
    """Stands where an instrument would."""


def test_a_run_is_the_same_with_and_without(
    make_task: Callable[..., CMID], make_trainer: Callable[..., Trainer]
) -> None:
    ends: list[dict[str, Tensor]] = []
    for used in (True, False):
        task, seen = make_task(queue_size=8), Seen()
        watching: list[Callback] = [FeatureRank(6, 1), LossGradients(2)]
        given = [seen, *(watching if used else [])]
        trainer = make_trainer(max_epochs=2, log_every_n_steps=1, callbacks=given)
        configured = task.configure_callbacks

        def ours(configured: Any = configured) -> Any:
            kinds = (FeatureRank, LossGradients)
            return [each for each in configured() if not isinstance(each, kinds)]

        task.configure_callbacks = ours  # ty: ignore[invalid-assignment]
        torch.manual_seed(3)
        trainer.fit(task, DataLoader(Chips(8), 4), DataLoader(Chips(8), 4))
        ends.append({k: v.clone() for k, v in task.state_dict().items()})
        assert (set(RANKS) <= set(seen.values)) == used
        assert ('gradient_norm_local' in seen.values) == used
    assert ends[0].keys() == ends[1].keys()
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_cosines_and_norms_are_those_of_the_losses(
    make_task: Callable[..., CMID], make_trainer: Callable[..., Trainer]
) -> None:
    task = make_task(queue_size=8, local_weight=0.0)
    trainer = make_trainer(
        max_steps=2, log_every_n_steps=1, callbacks=[LossGradients(1)]
    )
    trainer.fit(task, DataLoader(Chips(8), 4))
    found = trainer.callback_metrics
    assert found['gradient_norm_local'] == 0
    assert found['gradient_norm_global'] > 0 < found['gradient_norm_reconstruction']
    norms = [found[f'gradient_norm_{name}'] for name in ('reconstruction', 'global')]
    cosines = [
        found[f'gradient_cosine_{name}'] for name in ('reconstruction', 'global')
    ]
    # The parts along the sum add up to it: |g1| cos1 + |g2| cos2 = |g1 + g2|
    along = sum(n * c for n, c in zip(norms, cosines))
    assert max(norms) - min(norms) - 1e-4 <= along <= sum(norms) + 1e-4
    assert 0 <= found['residual_weight'] < 0.1


def test_residual_weights_are_those_of_the_last_norms() -> None:
    for name, first in (('resnet18', 0.0), ('resnet50', 0.0), ('convnext_atto', 1e-6)):
        backbone = create_backbone(name)
        blocks = 16 if name == 'resnet50' else 8 if name == 'resnet18' else 12
        assert len(backbone.residual_scales()) == blocks
        assert backbone.residual_weight() == pytest.approx(first)
    assert create_backbone('vit_test').residual_weight() is None


def test_a_queue_too_long_is_told_with_a_cure(recwarn: pytest.WarningsRecorder) -> None:
    tell_span({'queue_size': 65536, 'momentum': 0.996}, 256)
    assert not recwarn
    with pytest.warns(
        UserWarning, match=r'2\.05 time constants.*queue_size=19199'
    ) as told:
        tell_span({'queue_size': 65536, 'momentum': 0.996}, 64)
    slower = float(str(told[0].message).split('momentum=')[-1].split(')')[0])
    tell_span({'queue_size': 65536, 'momentum': slower}, 64)
    tell_span({'queue_size': 19199, 'momentum': 0.996}, 64)
    assert not recwarn
    # Of a tiny batch too: no teacher that stands still
    with pytest.warns(UserWarning) as told:
        tell_span({'queue_size': 65536, 'momentum': 0.996}, 2)
    assert 0.9999 < float(str(told[0].message).split('momentum=')[-1].split(')')[0]) < 1


# A process without the checks of types, which a compiler would follow too and then compile little
COMPILED = """
from chips import SMALL, Chips
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader

from cmid_geo.callbacks.loss_gradients import LossGradients
from cmid_geo.tasks import CMID

options = {'model': 'resnet18', 'queue_size': 8, 'compiled': True}
trainer = Trainer(
    accelerator='cpu', max_steps=2, log_every_n_steps=1, callbacks=[LossGradients(2)], logger=False,
    enable_checkpointing=False, enable_progress_bar=False,
)
trainer.fit(CMID(**(SMALL | options)), DataLoader(Chips(8), 4))
assert trainer.callback_metrics['gradient_norm_global'] > 0
"""


def test_compiled_networks_are_looked_at(tmp_path: Path) -> None:
    paths = os.pathsep.join([str(ROOT), str(ROOT / 'tests' / 'helpers')])
    environment = os.environ | {'PYTHONPATH': paths}
    command = [sys.executable, '-W', 'ignore', '-c', COMPILED]
    done = subprocess.run(command, cwd=tmp_path, env=environment, check=False)
    assert done.returncode == 0


def test_ranks_of_broken_features_are_told_as_such(
    make_task: Callable[..., CMID], make_trainer: Callable[..., Trainer]
) -> None:
    task = make_task()
    with torch.no_grad():
        task.student.backbone.network.conv1.weight.fill_(torch.nan)
    found = make_trainer().validate(task, DataLoader(Chips(8), 4), verbose=False)[0]
    assert math.isnan(found['lidar_student']) and found['lidar_teacher'] > 1
