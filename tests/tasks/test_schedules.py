# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

import math

import pytest

from cmid_geo.tasks.schedules import factor_at, length_of, momentum_at, temperature_at


def test_momentum_and_temperature() -> None:
    assert momentum_at(0, 100) == pytest.approx(0.996)
    assert momentum_at(50, 100) == pytest.approx(0.998)
    assert momentum_at(100, 100) == pytest.approx(1)
    assert temperature_at(0, 50) == pytest.approx(0.04)
    assert temperature_at(25, 50) == pytest.approx(0.055)
    assert temperature_at(80, 50) == pytest.approx(0.07)
    assert temperature_at(0, 0) == pytest.approx(0.04)


def test_rate_of_the_paper() -> None:
    def rate_at(step: int, warmup: int = 10) -> float:
        return 1e-3 * factor_at(step, 100, warmup, 'cosine', 1e-6 / 1e-3)

    assert rate_at(0) == pytest.approx(1e-5)
    half = 1e-6 + (1e-3 - 1e-6) * (1 + math.cos(math.pi * 0.05)) / 2
    assert rate_at(5) == pytest.approx(half * (0.01 + 0.99 / 2))
    assert rate_at(50) == pytest.approx((1e-3 + 1e-6) / 2)
    assert rate_at(100) == pytest.approx(1e-6)
    assert rate_at(0, warmup=0) == pytest.approx(1e-3)


def test_all_schedules_fall() -> None:
    for schedule in ('cosine', 'linear', 'step'):
        values = [factor_at(step, 120, 0, schedule, 0.01) for step in range(121)]
        assert values[0] == 1 and values == sorted(values, reverse=True)
        assert values[-1] == pytest.approx(0.01)
    assert [factor_at(s, 120, 0, 'step') for s in (79, 80, 110)] == pytest.approx(
        [1, 0.1, 0.01]
    )
    assert factor_at(0, 100, 10, 'linear') == pytest.approx(0.01)
    assert factor_at(60, 120, 0, 'cosine') == pytest.approx(0.5)


@pytest.mark.parametrize(
    ('given', 'steps'),
    [
        ({'warmup_steps': 7, 'warmup_epochs': 9.0}, 7),
        # Of 2.5 batches that accumulate the last half is a step too
        ({'warmup_steps': None, 'warmup_epochs': 1.5}, 4),
        ({'warmup_steps': None, 'warmup_epochs': 0}, 0),
    ],
)
def test_lengths_in_steps(given: dict, steps: int) -> None:
    assert length_of('warmup', given, 2.5, 'CMID') == steps


def test_epochs_of_unknown_length() -> None:
    given = {'warmup_steps': None, 'warmup_epochs': 1}
    with pytest.raises(ValueError, match=r'Classification\(warmup_steps=...\)'):
        length_of('warmup', given, math.inf, 'Classification')
