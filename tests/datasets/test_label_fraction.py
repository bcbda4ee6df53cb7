# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

import numpy as np
import pytest

from cmid_geo.datasets.label_fraction import check_fraction, draw_fraction, hold_out


def test_fractions_keep_every_class() -> None:
    labels = np.repeat([0, 1, 2], [1000, 100, 3])
    drawn = draw_fraction(labels, 0.05, 1)
    assert np.bincount(labels[drawn]).tolist() == [50, 5, 1]
    assert drawn == draw_fraction(labels, 0.05, 1)
    assert drawn != draw_fraction(labels, 0.05, 2)
    assert set(drawn) < set(draw_fraction(labels, 0.5, 1))
    assert draw_fraction(labels, 1.0) == list(range(1103))
    for wrong in (0.0, 1.5, -0.1):
        with pytest.raises(ValueError, match=f'label_fraction={wrong}'):
            draw_fraction(labels, wrong)


def test_fractions_of_chips_cover_rare_classes() -> None:
    classes = [[0]] * 100
    classes[7], classes[8] = [0, 1], [0, 2]
    drawn = draw_fraction(classes, 0.02)
    assert {7, 8} <= set(drawn) and len(drawn) <= 4


def test_parts_keep_every_class_and_its_share() -> None:
    # 60 images with cars, 40 with ships and cars, 3 with a crane beside cars, 20 empty
    counts = np.zeros((123, 3), np.int64)
    counts[:103, 0] = 5
    counts[60:100, 1] = 2
    counts[100:103, 2] = 1
    classes = [np.flatnonzero(row) for row in counts]
    for seed in range(5):
        for fraction in (0.01, 0.1, 0.5):
            drawn = draw_fraction(classes, fraction, seed)
            assert drawn == sorted(set(drawn))
            assert (counts[drawn] > 0).any(0).all()
            ships = sum(60 <= place < 100 for place in drawn)
            assert ships == max(1, round(40 * fraction))
            assert sum(place >= 103 for place in drawn) == round(20 * fraction)
    assert draw_fraction(classes, 0.1, 0) == draw_fraction(classes, 0.1, 0)
    assert draw_fraction(classes, 0.1, 0) != draw_fraction(classes, 0.1, 1)
    assert draw_fraction(classes, 1.0, 0) == list(range(123))


def test_a_class_that_is_never_the_rarest_is_kept() -> None:
    # Every image with a car has a ship as well, and ships are as rare
    counts = np.array([[1, 1, 1]] * 3 + [[0, 0, 1]] * 2 + [[1, 1, 0]])
    classes = [np.flatnonzero(row) for row in counts]
    drawn = draw_fraction(classes, 0.1, 3)
    assert (counts[drawn] > 0).any(0).all() and len(drawn) < 6
    with pytest.raises(ValueError, match='label_fraction=0.0 is a fraction'):
        draw_fraction(classes, 0.0)


LABELS = ([1, 1, 2], [1], [2], [], [3], [1, 3], [2, 2], [], [1], [2])


@pytest.mark.parametrize('seed', range(5))
def test_images_of_several_classes(seed: int) -> None:
    assert draw_fraction(LABELS, 1.0) == list(range(10))
    for fraction in (0.01, 0.3, 0.5):
        chosen = draw_fraction(LABELS, fraction, seed)
        seen = set().union(*(LABELS[index] for index in chosen))
        assert seen == {1, 2, 3}
        assert len(chosen) <= max(3, round(fraction * 10) + 1)


def test_images_without_a_class_keep_their_share() -> None:
    labels = [[1]] * 60 + [[2]] * 30 + [[]] * 10
    chosen = [draw_fraction(labels, 0.2, seed) for seed in range(4)]
    assert len({tuple(each) for each in chosen}) == 4
    for each in chosen:
        assert np.bincount(np.repeat([1, 2, 0], [60, 30, 10])[each]).tolist() == [
            2,
            12,
            6,
        ]
    assert len(draw_fraction([[]] * 10, 0.01)) == 1


def test_a_held_out_part_and_few_labels_of_the_rest() -> None:
    classes = [0] * 20 + [1] * 10
    drawn, held = hold_out(classes, 0.2, 0.5, 3)
    assert not set(drawn) & set(held)
    assert [sum(classes[i] for i in each) for each in (drawn, held)] == [4, 2]
    assert (len(drawn), len(held)) == (12, 6)
    assert hold_out(classes, None, 1.0, 3) == (list(range(30)), [])
    with pytest.raises(ValueError, match='leaves none to train on: lower it'):
        hold_out([0], 0.5, 1.0)
    with pytest.raises(
        ValueError, match='val_fraction=1.0 .*give one above 0, below 1'
    ):
        check_fraction(1.0, 'val_fraction', whole=False)
