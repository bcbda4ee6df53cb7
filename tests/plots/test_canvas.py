# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.colors import to_rgba

from cmid_geo.plots.canvas import (
    blank,
    check_lengths,
    class_colours,
    display_bands,
    show_image,
    stretch,
    subplots,
)

SENTINEL2 = ['B01', 'B02', 'B03', 'B04', 'B05', 'B06', 'B07', 'B08', 'B8A', 'B09', 'B10', 'B11', 'B12']  # fmt: skip


@pytest.mark.parametrize(
    ('bands', 'shown'),
    [
        (['pan'], [0, 0, 0]),
        (['red', 'green', 'blue'], [0, 1, 2]),
        (['nir', 'R', 'G', 'B'], [1, 2, 3]),
        (SENTINEL2, [3, 2, 1]),
        (['B1', 'B2', 'B3', 'B4'], [0, 1, 2]),
        (1, [0, 0, 0]),
        (2, [0, 0, 0]),
        (13, [0, 1, 2]),
    ],
)
def test_bands_to_show(bands: list[str] | int, shown: list[int]) -> None:
    assert display_bands(bands) == shown


@pytest.mark.parametrize('count', [1, 3, 4, 13])
def test_no_data_is_transparent_over_hatches_and_stretches_nothing(count: int) -> None:
    image = torch.linspace(1000, 2000, 64).reshape(1, 8, 8).repeat(count, 1, 1)
    # Far from all others: were it counted, the rest would be one grey
    image[:, 0, :4] = -9999
    image[-1, 7, 7] = torch.nan
    valid = torch.ones(8, 8, dtype=torch.bool)
    valid[0, :4] = False
    _, ((axis,),) = subplots(1, 1, 2, 2)
    show_image(axis, image, None, valid, 'a title')
    colours = axis.images[0].get_array()
    hidden = ~valid.numpy()
    # The last band of thirteen is not shown: what it lacks hides nothing
    hidden[7, 7] = count in (1, 3)
    assert ((colours[..., 3] == 0) == hidden).all()
    assert colours[..., :3][~hidden].min() == 0 and colours[..., :3][~hidden].max() == 1
    assert colours[4, 0, 0] == pytest.approx(0.5, abs=0.05)
    # One band, or many alike, are grey
    assert (colours[..., 0] == colours[..., 2]).all()
    assert axis.get_title() == 'a title' and axis.patches[0].get_hatch() == '////'
    assert axis.patches[0].get_facecolor() == to_rgba('0.9')


def test_images_without_gaps_are_not_hatched() -> None:
    figure, ((axis,),) = subplots(1, 1, 2, 2)
    show_image(axis, torch.randint(255, (4, 8, 8), dtype=torch.uint8))
    assert not axis.patches and (axis.images[0].get_array()[..., 3] == 1).all()
    assert len(figure.axes) == 1 and not plt.get_fignums()


def test_nothing_but_no_data_is_drawn_too() -> None:
    image = torch.full((3, 4, 4), torch.nan)
    assert (stretch(image) == 0).all()
    _, ((axis,),) = subplots(1, 1, 2, 2)
    show_image(axis, image)
    assert (axis.images[0].get_array()[..., 3] == 0).all() and axis.patches


def test_one_image_in_the_colours_of_another() -> None:
    first = torch.linspace(0, 100, 101).view(1, 1, 101)
    seen = stretch(first + 50, first)
    assert seen[0, 0, 0] == pytest.approx(0.5) and seen[0, 60, 0] == 1


def test_blank_takes_what_is_not_finite_in_any_band() -> None:
    image = torch.ones(2, 3, 2, 2)
    image[0, 1, 0, 0] = torch.inf
    gone = blank(image).isnan()
    assert gone[0, :, 0, 0].all() and gone.sum() == 3


@pytest.mark.parametrize('count', [3, 15, 30])
def test_classes_have_colours_of_their_own(count: int) -> None:
    assert len(set(class_colours(count))) == count


def test_parts_of_other_samples_are_refused() -> None:
    check_lengths(images=[1, 2], labels=None)
    with pytest.raises(ValueError, match='2 images, 3 labels: give one of each'):
        check_lengths(images=[1, 2], labels=[1, 2, 3])
