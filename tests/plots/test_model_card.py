# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""The card, as those who render it read it."""

from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from markdown import markdown

from cmid_geo.models import export_backbone
from cmid_geo.plots.model_card import model_card


class Reader(HTMLParser):
    """The tags of a page, and the text of its tables' cells."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.rows: list[list[str]] = []
        self.inside = False

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.add(tag)
        self.inside = tag in ('td', 'th') or self.inside
        if tag == 'tr':
            self.rows.append([])
        if tag in ('td', 'th'):
            self.rows[-1].append('')

    def handle_endtag(self, tag: str) -> None:
        self.inside = self.inside and tag not in ('td', 'th')

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.rows[-1][-1] += data


HOSTILE = ['a|b', '<script>x</script>', 'c\n\n# d', '*e* `f` [g](h)']


def test_names_of_any_text_stay_text(
    make_task: Callable[..., Any], tmp_path: Path
) -> None:
    task = make_task(in_channels=4, bands=HOSTILE)
    backbone = export_backbone(task, tmp_path / 'backbone.ckpt')
    (tmp_path / 'metrics.csv').write_text('train_loss\n')
    data = '1 scene, the first of them x|`<b>y</b>\n.tif'
    card = model_card(backbone, task, data, tmp_path / 'metrics.csv', 16)
    reader = Reader()
    reader.feed(
        markdown(card.split('---\n', 2)[2], extensions=['tables', 'fenced_code'])
    )
    assert not reader.tags & {'script', 'b', 'a'}
    values = [row for row in reader.rows if len(row) == 5]
    assert [row[0] for row in values] == [
        'band',
        'a|b',
        HOSTILE[1],
        r'c\n\n# d',
        HOSTILE[3],
    ]
    assert ['data', data.replace('\n', r'\n')] in reader.rows


@pytest.mark.parametrize('name', ['B8A', 'near-infrared', 'band 1', 'nir_2'])
def test_ordinary_names_are_as_they_are(
    name: str, make_task: Callable[..., Any], tmp_path: Path
) -> None:
    task = make_task(in_channels=1, bands=[name])
    backbone = export_backbone(task, tmp_path / 'backbone.ckpt')
    (tmp_path / 'metrics.csv').write_text('train_loss\n')
    card = model_card(backbone, task, 'x', tmp_path / 'metrics.csv', 16)
    assert f'\n| {name} | 0 | 1 |' in card


def test_it_says_what_was_measured_or_that_nothing_was(
    make_task: Callable[..., Any], tmp_path: Path
) -> None:
    task = make_task()
    backbone = export_backbone(task, tmp_path / 'backbone.ckpt')
    (tmp_path / 'metrics.csv').write_text('train_loss\n')
    given = backbone, task, 'x', tmp_path / 'metrics.csv', 16
    plain = model_card(*given)
    assert 'for a task has **not** been measured' in plain
    card = model_card(*given, '| a | b |\n| --- | --- |\n| features | 77.0 % |')
    reader = Reader()
    reader.feed(markdown(card.split('---\n', 2)[2], extensions=['tables']))
    assert ['features', '77.0 %'] in reader.rows
    assert 'worth elsewhere has **not** been measured' in card
