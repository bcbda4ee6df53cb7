# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

from typing import Any

import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from cmid_geo.plots.samples import sample_figure


@pytest.fixture(autouse=True)
def nothing_leaks() -> Any:
    yield
    # pyplot knows of no figure that is made here
    assert not plt.get_fignums()


def titles(figure: Figure) -> list[str]:
    return [axis.get_title() for axis in figure.axes]


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


@pytest.mark.parametrize('bands', [1, 3, 4, 13])
def test_an_image_with_no_data(bands: int) -> None:
    valid = torch.ones(8, 8, dtype=torch.bool)
    valid[:2] = False
    figure = sample_figure(
        {'image': torch.rand(bands, 8, 8), 'valid': valid}, True, 'all'
    )
    assert titles(figure) == ['image'] and figure._suptitle.get_text() == 'all'
    shown = figure.axes[0].images[0].get_array()
    assert (shown[:2, :, 3] == 0).all() and (shown[2:, :, 3] == 1).all()
    assert figure.axes[0].patches[0].get_hatch() and not figure.legends


def test_masks_have_one_legend_and_hatches_where_there_is_no_label() -> None:
    mask = torch.zeros(8, 8).long()
    mask[0], mask[4:] = 255, 2
    sample = {'image': torch.rand(3, 8, 8), 'mask': mask[None], 'prediction': mask % 3}
    figure = sample_figure(sample, names=['a', 'b', 'c'], ignore_index=255)
    assert titles(figure) == ['image', 'truth', 'prediction']
    # Only what is seen
    assert legend(figure) == ['a', 'c']
    truth, found = (axis.images[0].get_array() for axis in figure.axes[1:])
    assert truth.mask[0].all() and not truth.mask[1:].any()
    assert not np.ma.getmaskarray(found).any()
    assert figure.axes[1].patches and not figure.axes[2].patches
    # Classes have the same colours in both
    assert [axis.images[0].norm.vmax for axis in figure.axes[1:]] == [2.5, 2.5]
    assert titles(sample_figure(sample, False)) == ['', '', '']


def test_dates_have_the_same_colours() -> None:
    image = torch.linspace(0, 1, 64).reshape(1, 1, 8, 8).repeat(2, 4, 1, 1)
    image[1] += 10
    figure = sample_figure({'image': image, 'valid': torch.ones(8, 8) > 0})
    assert titles(figure) == ['date 1', 'date 2']
    assert (figure.axes[1].images[0].get_array() == 1).all()
    named = sample_figure({'image': image}, dates=['2001', '2002'])
    assert titles(named) == ['2001', '2002']


def test_labels_stand_above() -> None:
    sample = {'image': torch.rand(3, 8, 8), 'label': torch.tensor(1)}
    assert titles(sample_figure(sample, names=['sea', 'land'])) == ['truth: land']
    sample['prediction'] = torch.tensor(0)
    told = titles(sample_figure(sample, names=['sea', 'land']))
    assert told == ['truth: land\nprediction: sea']
    several = {'image': torch.rand(3, 8, 8), 'label': torch.tensor([1, 0, 1])}
    assert titles(sample_figure(several, names=['a', 'b', 'c'])) == ['truth: a, c']


def test_several_labels_a_pixel_have_a_map_each() -> None:
    mask = torch.zeros(2, 8, 8).long()
    sample = {'image': torch.rand(3, 8, 8), 'mask': mask, 'prediction': 1 - mask}
    figure = sample_figure(sample, names=['road', 'roof'])
    assert titles(figure) == ['image', 'truth: road', 'truth: roof', 'prediction: road', 'prediction: roof']  # fmt: skip
    assert legend(figure) == ['0', '1']


def test_rotated_boxes() -> None:
    corners = torch.tensor([[4.0, 0, 8, 4, 4, 8, 0, 4]])
    one = torch.tensor([1])
    sample = {
        'image': torch.rand(3, 8, 8), 'bbox': corners, 'label': one,
        'prediction_bbox': corners.repeat(2, 1), 'prediction_label': one.repeat(2),
        'prediction_score': torch.tensor([0.9, 0.2]),
    }  # fmt: skip
    figure = sample_figure(sample, names=['background', 'ship'])
    assert titles(figure) == ['truth', 'found, score 0.3 and above']
    texts = [[text.get_text() for text in axis.texts] for axis in figure.axes]
    assert texts == [['ship'], ['ship 0.90']]
    drawn = figure.axes[0].patches[0].get_xy()
    assert drawn[:4].tolist() == corners.reshape(4, 2).tolist()


def test_nothing_to_draw_is_refused() -> None:
    with pytest.raises(ValueError, match=r"holds \['scene'\]: give one with image or"):
        sample_figure({'scene': torch.tensor(1)})


@pytest.mark.parametrize('shape', [(8, 8), (1, 8, 8)])
def test_one_name_is_that_of_what_is_true(shape: tuple[int, ...]) -> None:
    mask = torch.zeros(shape).long()
    sample = {'image': torch.rand(3, 8, 8), 'mask': mask, 'prediction': mask + 1}
    assert legend(sample_figure(sample, names=['building'])) == ['no', 'building']
    # Of two names and of several labels each stands for itself
    assert legend(sample_figure(sample, names=['field', 'road'])) == ['field', 'road']
    for label, told in ((0, 'no'), (1, 'building')):
        image = {'image': torch.rand(3, 8, 8), 'label': torch.tensor(label)}
        assert titles(sample_figure(image, names=['building'])) == [f'truth: {told}']
    several = {'mask': torch.zeros(2, 8, 8).long()}
    assert titles(sample_figure(several, names=['a'])) == ['truth: a', 'truth: 1']
