# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from cmid_geo.plots.boxes import boxes_figure
from cmid_geo.plots.canvas import stretch
from cmid_geo.plots.predictions import confusion_figure, prediction_figure
from cmid_geo.plots.pretraining import (
    plot_cells,
    plot_curves,
    plot_map,
    plot_matches,
    plot_rebuilt,
    plot_reconstructions,
    plot_views,
    read_metrics,
)
from cmid_geo.transforms import View


@pytest.fixture(autouse=True)
def nothing_leaks() -> Any:
    yield
    # pyplot knows of no figure that is made here
    assert not plt.get_fignums()


@pytest.fixture
def make_view() -> Callable[..., View]:
    """Two views of one band and 2 x 2 cells, of random values from 0 to 1."""

    def make(hidden: list[int]) -> View:
        mask = torch.zeros(2, 4, dtype=torch.bool)
        mask[:, hidden] = True
        places = torch.tensor([[x, y] for y in (15.5, 47.5) for x in (15.5, 47.5)])
        image = torch.linspace(-0.5, 1.5, 2 * 64 * 64).clamp(0, 1)[torch.randperm(8192)]
        valid = torch.ones(2, 64, 64, dtype=torch.bool)
        return View(image.view(2, 1, 64, 64), mask.view(2, 2, 2), places.repeat(2, 1, 1), valid)  # fmt: skip

    return make


def titles(figure: Figure) -> list[str]:
    figure.canvas.draw()
    return [axis.get_title() for axis in figure.axes]


@pytest.mark.parametrize(
    'module', ['canvas', 'predictions', 'boxes', 'loggers', 'samples']
)
def test_figures_of_tasks_import_no_matplotlib(module: str) -> None:
    code = f'import sys, cmid_geo.plots.{module}; print("matplotlib" in sys.modules)'
    # The package's root imports all that there is: only its path is wanted here
    root = Path(sys.modules['cmid_geo'].__file__ or '').parent
    setup = f'import sys, types; p = types.ModuleType("cmid_geo"); p.__path__ = [{str(root)!r}]; sys.modules["cmid_geo"] = p\n'
    found = subprocess.run(
        [sys.executable, '-c', setup + code], capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == 'False'


def test_stretch_goes_from_the_2nd_to_the_98th_percentile() -> None:
    image = torch.arange(101.0).view(1, 1, 101) + 500
    seen = stretch(image)[0, :, 0]
    assert seen[2] == pytest.approx(0, abs=1e-5) and seen[98] == pytest.approx(1)
    assert seen[50] == pytest.approx(0.5) and seen.min() == 0 and seen.max() == 1
    # One value alone, far from 0
    assert np.isfinite(stretch(torch.full((3, 4, 4), 5000.0))).all()


@pytest.mark.parametrize('shape', [(2, 8, 8), (2, 5, 8, 8)])
def test_predictions(shape: tuple[int, ...]) -> None:
    truth = torch.randint(3, (8, 8))
    truth[0] = 255
    figure = prediction_figure(torch.rand(shape), truth, truth.clamp_max(2), None, 255)
    dates = 1 if len(shape) == 3 else 2
    assert titles(figure) == ['image'] * dates + ['truth', 'prediction']
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list('012')
    target = figure.axes[-2].images[0].get_array()
    assert target.mask[0].all() and not target.mask[1:].any()


def test_a_mask_of_which_nothing_is_known() -> None:
    nothing = torch.full((8, 8), 255)
    figure = prediction_figure(torch.rand(3, 8, 8), nothing, nothing, None, 255)
    assert len(figure.legends[0].get_texts()) == 2


def test_confusion() -> None:
    figure = confusion_figure(torch.tensor([[3, 1], [0, 0]]), ['a', 'b'])
    figure.canvas.draw()
    assert [text.get_text() for text in figure.axes[0].texts] == ['75', '25']


def test_boxes() -> None:
    boxes, labels = torch.tensor([[1.0, 2, 5, 6]]), torch.tensor([1])
    found = [(boxes.repeat(2, 1), labels.repeat(2), torch.tensor([0.9, 0.1]))]
    image = torch.rand(1, 2, 8, 8)
    figure = boxes_figure(image, [(boxes, labels)], found, ['none', 'ship'])
    assert titles(figure) == ['truth', 'found, score 0.3 and above']
    assert [t.get_text() for axis in figure.axes for t in axis.texts] == ['ship', 'ship 0.90']  # fmt: skip
    assert titles(boxes_figure(image, [(boxes, labels)], titles=False)) == ['']


METRICS = """step,train_loss,train_reconstruction,train_global,train_local,global_chance,teacher_entropy,fresh_rank
0,3,1,1,1,0.7,2,0.5
1,,,,,,,
2,2,1,0.5,1,1.6094379,2,0.4
"""


def test_a_run(make_task: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / 'metrics.csv').write_text(METRICS)
    values, full = read_metrics(tmp_path / 'metrics.csv', 4)
    assert values['train_loss'].tolist() == [3, 2] and full.tolist() == [False, True]
    assert len(titles(plot_curves(tmp_path / 'metrics.csv', 4))) == 4

    task = make_task(in_channels=4)
    size = task.hparams['size']
    first, second = task.augmentations(torch.rand(2, 4, size, size))
    names = ['B02', 'B03', 'B04', 'B08']
    views = plot_views(first, second, names)
    assert titles(views)[:3] == ['view 1, plain', 'view 2, strong', 'view 1, seen by student']  # fmt: skip
    assert 1 <= len(views.artists) <= 16
    rebuilt = plot_reconstructions(task.eval(), first, names)
    assert titles(rebuilt)[0] == 'view' and len(rebuilt.axes) == 8
    colours = np.zeros((3, 32, 48), dtype=np.uint8)
    assert titles(plot_map(torch.rand(4, 32, 48), colours, names))[0] == 'scene'


def test_only_hidden_cells_are_rebuilt(make_view: Callable[..., View]) -> None:
    view = make_view(hidden=[0, 3])
    rebuilt = {'step 1': torch.zeros(2, 1, 64, 64), 'step 2': torch.ones(2, 1, 64, 64)}
    figure = plot_rebuilt(view, rebuilt, ['pan'], samples=1)
    assert titles(figure) == ['view', 'seen by student', 'step 1', 'step 2']
    whole, _, black, white = (np.asarray(axis.images[0].get_array()) for axis in figure.axes)  # fmt: skip
    hidden = np.kron(np.eye(2), np.ones((32, 32))).astype(bool)
    # The view goes from 0 to 1
    assert (black[hidden] == 0).all() and (white[hidden] == 1).all()
    for shown in (black, white):
        np.testing.assert_array_equal(shown[~hidden], whole[~hidden])


def test_matches_are_blue_where_the_ground_is_the_same(
    make_view: Callable[..., View],
) -> None:
    view = make_view(hidden=[])
    right, wrong = torch.arange(4).repeat(2, 1), torch.tensor([[0, 0, 0, 0]] * 2)
    figure = plot_matches(view, view, {'a': right, 'b': wrong}, ['pan'], 4, samples=1)
    assert titles(figure) == ['a\nview 1', 'a\nview 2', 'b\nview 1', 'b\nview 2']
    colours = [to_rgba(line.get_edgecolor()) for line in figure.artists]
    assert colours == [to_rgba(c) for c in ['C0'] * 4 + ['C0', 'C3', 'C3', 'C3']]
    assert [line.xy2 for line in figure.artists[4:]] == [(15.5, 15.5)] * 4


def test_cells_of_places_are_shown_once_and_those_without_label_stay_white() -> None:
    truth = [torch.tensor([[0, 1], [2, -1]]), torch.tensor([[3, 3]])]
    found = [torch.zeros(2, 2, dtype=torch.long), torch.tensor([[1, 2]])]
    # Two dates of each place
    figure = plot_cells({'truth': [*truth, *truth], 'found': found * 2})
    assert titles(figure) == ['truth', 'found', '', '']
    shown = [axis.images[0].get_array() for axis in figure.axes]
    assert shown[0].mask.tolist() == [[False, False], [False, True]]
    assert shown[2].tolist() == [[3, 3]] and shown[3].tolist() == [[1, 2]]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ['0', '1', '2', '3']
    named = plot_cells({'truth': truth}, ['a', 'b', 'c', 'd', 'e'])
    assert len(named.legends[0].get_texts()) == 5
