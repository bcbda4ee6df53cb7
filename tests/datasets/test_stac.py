# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""STAC items in the place of paths."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pystac
import pytest
from rasterfiles import noise, write

from cmid_geo import SceneDataModule, SceneDataset

GEOTIFF = pystac.MediaType.COG


def item_of(name: str, assets: dict[str, pystac.Asset], **options: Any) -> pystac.Item:
    given: dict[str, Any] = {'datetime': datetime(2021, 5, 3, 10, 30, tzinfo=UTC)}
    item = pystac.Item(name, None, None, properties={}, **(given | options))
    for key, asset in assets.items():
        item.add_asset(key, asset)
    return item


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    # Names that state other dates, or none
    names = ['2001-01-01.tif', 'second.tif']
    return [
        write(tmp_path / 'scenes' / name, noise(2, 64, 64, seed), descriptions=('a', 'b'))
        for seed, name in enumerate(names)
    ]  # fmt: skip


@pytest.fixture
def items(files: list[Path]) -> list[pystac.Item]:
    first = item_of(
        'first',
        {
            'image': pystac.Asset(str(files[0]), media_type=GEOTIFF, roles=['data']),
            'also': pystac.Asset('nowhere.tif', media_type=GEOTIFF),
            'thumb': pystac.Asset('x.tif', media_type=GEOTIFF, roles=['thumbnail']),
        },
    )
    span = {
        'datetime': None,
        'start_datetime': datetime(2022, 1, 5, 23, tzinfo=UTC),
        'end_datetime': datetime(2022, 1, 7, 1, tzinfo=UTC),
    }
    plain = {'image': pystac.Asset(str(files[1]), media_type=GEOTIFF)}
    return [first, item_of('second', plain, **span)]


DAYS = [
    (pd.Timestamp('2021-05-03'), pd.Timestamp('2021-05-03 23:59:59.999999')),
    (pd.Timestamp('2022-01-05'), pd.Timestamp('2022-01-07 23:59:59.999999')),
]


def test_items_and_collections(
    tmp_path: Path, files: list[Path], items: list[pystac.Item]
) -> None:
    collection = pystac.ItemCollection(items)
    path = tmp_path / 'all.json'
    collection.save_object(str(path))
    for given in (items, collection, [collection], str(path), [path]):
        dataset = SceneDataset(given)
        assert dataset.files == [str(each) for each in files]
        assert [(s.start, s.stop) for s in dataset.scenes] == DAYS
    # Beside paths, which keep the dates of their names
    mixed = SceneDataset([items[1], files[0]])
    assert [s.start for s in mixed.scenes] == [pd.Timestamp('2001-01-01'), DAYS[1][0]]
    assert mixed[mixed.bounds]['image'].shape == (2, 64, 64)


def test_hrefs_relative_to_the_file(tmp_path: Path, files: list[Path]) -> None:
    asset = pystac.Asset('./scenes/second.tif', media_type=GEOTIFF)
    item = item_of('one', {'image': asset})
    with pytest.raises(ValueError, match="'one' names './scenes.*item.set_self_href"):
        SceneDataset(item)
    path = tmp_path / 'one.json'
    path.write_text(json.dumps(item.to_dict()))
    dm = SceneDataModule(str(path), patch_size=32, length=4, batch_size=4)
    dm.setup('fit')
    assert dm.dataset.files == [str(files[1])]
    assert dm.dataset.scenes[0].start == DAYS[0][0]
    item.set_self_href(str(path))
    assert SceneDataset(item).files == [str(files[1])]


@pytest.mark.parametrize(
    ('href', 'message'),
    [
        ('https://127.0.0.1/a.tif', 'which is not here: download it, or give the URL'),
        ('/nowhere/a.tif', 'where no file is: correct the href'),
    ],
)
def test_hrefs_elsewhere(href: str, message: str) -> None:
    item = item_of('far', {'image': pystac.Asset(href, roles=['data'])})
    with pytest.raises(ValueError, match=message):
        SceneDataset([item])


def test_what_is_no_item(tmp_path: Path, files: list[Path]) -> None:
    path = tmp_path / 'a.json'
    with pytest.raises(ValueError, match='no file .*a.json.*check the spelling'):
        SceneDataset(path)
    path.write_text('{"type": "Catalog"}')
    with pytest.raises(ValueError, match="holds a 'Catalog', and no STAC item"):
        SceneDataset(path)
    path.write_text('{"type": "Feature"}')
    with pytest.raises(ValueError, match='holds no STAC item that can be read'):
        SceneDataset(path)
    with pytest.raises(ValueError, match="'bare' has no raster among its assets"):
        SceneDataset([item_of('bare', {'text': pystac.Asset('a', media_type='text/html')})])  # fmt: skip
    with pytest.raises(ValueError, match='is a Catalog: give items'):
        SceneDataset([pystac.Catalog('all', 'of them')])


def test_a_pattern_of_items(tmp_path: Path, files: list[Path], items: list[pystac.Item]) -> None:  # fmt: skip
    for item in items:
        item.save_object(dest_href=str(tmp_path / 'items' / f'{item.id}.json'))
    dataset = SceneDataset(str(tmp_path / 'items' / '*.json'))
    assert dataset.files == [str(each) for each in files]
