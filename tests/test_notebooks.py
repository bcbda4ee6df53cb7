# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""The form of the notebooks; ``.ci/run`` executes them."""

import json
from pathlib import Path
from typing import Any

import pytest

NOTEBOOKS = sorted((Path(__file__).parent.parent / 'notebooks').glob('*.ipynb'))


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def cells(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    return json.loads(request.param.read_text())['cells']


def text_of(cells: list[dict[str, Any]], kind: str) -> str:
    chosen = [cell for cell in cells if cell['cell_type'] == kind]
    return '\n'.join(''.join(cell['source']) for cell in chosen)


def test_there_are_notebooks() -> None:
    assert NOTEBOOKS


def test_outputs_are_cleared(cells: list[dict[str, Any]]) -> None:
    for cell in cells:
        assert not cell.get('outputs')
        assert cell.get('execution_count') is None


def test_they_are_short(cells: list[dict[str, Any]]) -> None:
    assert 15 <= len(cells) <= 25
    assert len(text_of(cells, 'markdown').split()) <= 600


def test_a_picture_comes_by_the_third_cell(cells: list[dict[str, Any]]) -> None:
    first = text_of(cells[:3], 'code')
    assert 'plt.' in first or 'plot_' in first


def test_they_are_set_up_by_one_line(cells: list[dict[str, Any]]) -> None:
    assert text_of(cells, 'code').count('pip install') <= 1


def test_they_end_on_a_map_and_where_to_go(cells: list[dict[str, Any]]) -> None:
    assert '.tif' in text_of(cells, 'code')
    assert cells[-1]['cell_type'] == 'markdown'
    assert 'Where to go next' in ''.join(cells[-1]['source'])
