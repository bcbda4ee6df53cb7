# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""The cost of a step beside its floor, at small sizes: that costs are counted and tables are whole."""

import importlib
import mmap
from dataclasses import replace
from pathlib import Path
from typing import Any

import networks  # noqa: F401
import pytest
import torch

FOLDER = Path(__file__).parent.parent / 'benchmarks'


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    # As Python does for a script: its neighbours can be imported
    monkeypatch.syspath_prepend(FOLDER)
    module = importlib.import_module('step_cost')
    base = module.CPU.base | {
        'model': 'resnet_test',
        'batch': 2,
        'size': 32,
        'queue': 16,
    }
    factors = {'batch': (2, 4), 'bands': (3, 4)}
    heads = {'hidden_dim': 32, 'output_dim': 16, 'num_prototypes': 32}
    sizes = replace(module.CPU, base=base, growth=factors, heads=heads)
    monkeypatch.setattr(module, 'CPU', sizes)
    monkeypatch.setattr(torch, 'set_num_threads', lambda _: None)
    return module


def test_costs_are_counted_in_turns(script: Any) -> None:
    order = []
    work = {'short': lambda: order.append('s'), 'long': lambda: order.append('l')}
    found = script.in_turns(work, 3)
    assert ''.join(order) == 'sl' * 4
    assert [len(costs) for costs in found.values()] == [3, 3]
    heavy = script.cost(lambda: torch.ones(2**24).exp())
    light = script.cost(lambda: None)
    assert heavy.processor > light.processor and heavy.wall > light.wall
    # Memory that the allocator cannot have kept; pages may be huge ones of 2 MiB
    fresh = script.cost(lambda: mmap.mmap(-1, 2**27).write(bytes(2**27)))
    assert fresh.pages >= 32 > light.pages
    cost = script.Cost
    above, below = [cost(3.0, 2, 0, 0)] * 3, [cost(2.0, 2, 0, 0)] * 3
    assert script.ratio(above, below, 'wall') == '1.500 (1.500 to 1.500)'


def test_a_visible_quarter_costs_what_a_vit_of_a_quarter_costs(script: Any) -> None:
    image = torch.rand(2, 3, 160, 160)
    quarter = script.VisibleQuarter('vit_test', image, 1, 0)
    whole = script.Bare('vit_test', image, 1, 0)
    patches = whole.network.patch_embed.num_patches
    assert quarter.features().shape[1] - whole.network.num_prefix_tokens == patches // 4
    assert whole.features().shape[1] - whole.network.num_prefix_tokens == patches
    quarter()
    grown = [each.grad for each in quarter.network.blocks.parameters()]
    assert all(each is not None and each.any() for each in grown)


def test_tables_are_whole(
    script: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ['--repeats', '1', '--batch', '2', '--model', 'resnet_test']
    script.main([*few, '--size', '32'])
    assert 'ratio  ' in capsys.readouterr().out
    picture = tmp_path / 'growth.png'
    script.main([*few, '--growth', '--growth-models', 'resnet_test', '--plot', str(picture)])  # fmt: skip
    rows = [line.split(' | ')[1:3] for line in capsys.readouterr().out.splitlines()]
    assert rows[3:] == [['batch', '2'], ['batch', '4'], ['bands', '3'], ['bands', '4']]
    assert picture.stat().st_size > 1000
