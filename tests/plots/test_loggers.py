# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cmid_geo.plots.loggers import log_figure, way_of
from cmid_geo.plots.predictions import confusion_figure


class Wandb:
    """Takes what Lightning's WandbLogger takes."""

    def __init__(self) -> None:
        self.seen: list[Any] = []
        self.experiment = SimpleNamespace()

    def log_image(self, key: str, images: list[Any], step: int | None = None) -> None:
        self.seen.append((key, images, step))


class MLflow:
    """Takes what Lightning's MLFlowLogger and its client take."""

    run_id = 'run'

    def __init__(self, folder: Path) -> None:
        self.folder, self.seen = folder, []
        self.experiment = self

    def log_figure(self, run_id: str, figure: Any, artifact_file: str) -> None:
        path = self.folder / artifact_file
        path.parent.mkdir(parents=True, exist_ok=True)
        # As its client does
        figure.savefig(path)
        self.seen.append((run_id, artifact_file))


def task_with(*loggers: Any, first: bool = True) -> Any:
    trainer = SimpleNamespace(is_global_zero=first, sanity_checking=False)
    return SimpleNamespace(loggers=loggers, global_step=3, trainer=trainer)


def test_each_logger_gets_the_figure_its_own_way(tmp_path: Path) -> None:
    wandb, mlflow = Wandb(), MLflow(tmp_path)
    board = TensorBoardLogger(tmp_path, 'board', '')
    made: list[Figure] = []

    def make() -> Figure:
        made.append(confusion_figure(torch.eye(2)))
        return made[-1]

    csv = CSVLogger(tmp_path, 'csv', '')
    log_figure(task_with(csv, board, wandb, mlflow), 'val/1', make)
    assert len(made) == 1 and not plt.get_fignums()
    ((key, (picture,), step),) = wandb.seen
    assert (key, step) == ('val/1', 3) and isinstance(picture, Image.Image)
    assert picture.mode == 'RGB' and picture.size[0] > 300
    assert len(picture.getcolors(10**6) or ()) > 10
    assert mlflow.seen == [('run', 'figures/val/1/step_00000003.png')]
    assert Image.open(tmp_path / mlflow.seen[0][1]).size == picture.size
    board.experiment.flush()
    events = EventAccumulator(str(tmp_path / 'board'), size_guidance={'images': 0})
    events.Reload()
    assert events.Tags()['images'] == ['val/1']
    assert [event.step for event in events.Images('val/1')] == [3]


@pytest.mark.parametrize('other', [False, True])
def test_nothing_is_drawn_for_nobody(other: bool, tmp_path: Path) -> None:
    # Only a logger of text; or another process than the first
    logger = Wandb() if other else CSVLogger(tmp_path)
    task = task_with(logger, SimpleNamespace(), first=not other)
    log_figure(task, 'a', lambda: pytest.fail('drawn'))
    assert getattr(logger, 'seen', []) == []


def test_nothing_to_show_is_not_logged() -> None:
    wandb = Wandb()
    log_figure(task_with(wandb), 'a', lambda: None)
    assert wandb.seen == [] and way_of(None) is None


def test_figures_of_pyplot_are_closed() -> None:
    from matplotlib import pyplot as plt

    before = plt.get_fignums()
    log_figure(task_with(Wandb()), 'val', plt.figure)
    assert plt.get_fignums() == before
