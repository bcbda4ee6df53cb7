# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

import base64
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from affine import Affine
from PIL import Image
from rasterfiles import noise, write

from cmid_geo.datasets import SceneDataset, reader, tables
from cmid_geo.datasets.grids import Grid
from cmid_geo.datasets.rasters import read_raster
from cmid_geo.datasets.tables import crs_name, html_table, list_some, scene_table


def picture_in(html: str) -> np.ndarray:
    found = re.search(r'data:image/png;base64,([^"]+)"', html)
    assert found is not None
    return np.array(Image.open(io.BytesIO(base64.b64decode(found[1]))))


def rows_in(html: str) -> dict[str, str]:
    return dict(re.findall(r'<th[^>]*>(.*?)</th><td[^>]*>(.*?)</td>', html))


def test_a_scene(tmp_path: Path) -> None:
    image = noise(4, 300, 600)
    image[:, :150] = 0
    names = ('red', 'green', 'blue', 'nir')
    path = write(tmp_path / 'a&b_<i>_20200131.tif', image, nodata=0, descriptions=names)
    scene = SceneDataset(path).scenes[0]
    html = scene._repr_html_()
    rows = rows_in(html)
    # A name is text, whatever is in it
    assert '<i>' not in html and rows['path'].endswith('a&amp;b_&lt;i&gt;_20200131.tif')
    assert (
        rows['size'] == '600 x 300 pixels' and rows['bands'] == 'red, green, blue, nir'
    )
    assert (rows['type'], rows['date'], rows['no data']) == ('uint8', '2020-01-31', '0')
    assert rows['CRS'].startswith('EPSG:')
    picture = picture_in(html)
    assert picture.shape == (100, 200, 4)
    assert (picture[:49, :, 3] == 0).all() and (picture[51:, :, 3] == 255).all()
    assert len(html) < 150_000


def test_a_file_that_is_gone_still_has_a_table(tmp_path: Path) -> None:
    path = write(tmp_path / 'a.tif', noise(1, 32, 32))
    scene = SceneDataset(path).scenes[0]
    path.unlink()
    html = scene._repr_html_()
    rows = rows_in(html)
    assert '<img' not in html and rows['size'] == '32 x 32 pixels'
    assert rows['picture'].startswith('none: ') and 'a.tif' in rows['picture']
    assert rows['date'] == 'none' and rows['no data'] == 'no value'


def test_pictures_are_read_decimated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = SceneDataset(write(tmp_path / 'a.tif', noise(3, 1000, 500))).scenes[0]
    shapes: list[tuple[int, ...]] = []

    def watched(*args: Any) -> Any:
        found = read_raster(*args)
        shapes.append(found[0].shape)
        return found

    monkeypatch.setattr(reader, 'read_raster', watched)
    assert picture_in(scene_table(scene)).shape == (200, 100, 4)
    assert shapes == [(3, 200, 100)]


def test_large_files_without_overviews_are_not_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, 'MOST_DECODED', 1000)
    path = write(tmp_path / 'a.tif', noise(1, 64, 64))
    rows = rows_in(SceneDataset(path).scenes[0]._repr_html_())
    assert 'has no overviews: add some by gdaladdo' in rows['picture']


def test_bands_in_files_of_several_resolutions(tmp_path: Path) -> None:
    write(tmp_path / 'a_B02.tif', noise(1, 64, 64), res=10)
    write(tmp_path / 'a_B03.tif', noise(1, 32, 32), res=20)
    scene = SceneDataset(tmp_path).scenes[0]
    html = scene._repr_html_()
    # Each pixel is a square of three
    assert picture_in(html).shape == (192, 192, 4)
    assert rows_in(html)['path'].count('<br>') == 1


def test_grids() -> None:
    grid = Grid('no WKT', Affine(10, 0, 500000, 0, -20, 4600000), 30, 40)
    rows = rows_in(grid._repr_html_())
    assert rows == {
        'size': '30 x 40 pixels', 'CRS': 'unknown', 'resolution': '10 x 20',
        'bounds': '500000, 4599200, 500300, 4600000',
    }  # fmt: skip
    turned = Grid('', Affine.rotation(90) * Affine.scale(3, -3), 1, 1)
    assert rows_in(turned._repr_html_())['resolution'] == '3 x 3, not north up'


def test_texts() -> None:
    assert html_table({'a<': 'x\n"y"\t'}) == (
        '<table><tr><th style="text-align: left">a&lt;</th>'
        '<td style="text-align: left">x<br>&quot;y&quot;\\t</td></tr></table>'
    )
    assert list_some(['a', 'b', 'c'], 2) == 'a, b, ... (3)'
    assert crs_name('GEOGCS["mine"]') == 'unknown'
