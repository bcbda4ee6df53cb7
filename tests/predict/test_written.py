# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

import base64
import io
import pickle
import re
from pathlib import Path

import geopandas as gpd
import numpy as np
import rasterio
import shapely
from PIL import Image
from rasterfiles import noise, write
from torch import Tensor, nn

from cmid_geo.predict import WrittenMap, predict_scene
from cmid_geo.predict.api import Tally


class Bright(nn.Module):
    """One where the first band is bright."""

    def forward(self, image: Tensor) -> Tensor:
        return (image[:, :1] > 100).float()


def picture_in(html: str) -> np.ndarray:
    found = re.search(r'data:image/png;base64,([^"]+)"', html)
    assert found is not None
    return np.array(Image.open(io.BytesIO(base64.b64decode(found[1]))))


def rows_in(html: str) -> dict[str, str]:
    return dict(re.findall(r'<th[^>]*>(.*?)</th><td[^>]*>(.*?)</td>', html))


def test_a_map_is_its_path_and_shows_itself(tmp_path: Path) -> None:
    scene = write(tmp_path / 'scene.tif', noise(2, 64, 96))
    found = predict_scene(Bright(), str(scene), tmp_path / 'map.tif', size=32)
    assert found == tmp_path / 'map.tif' and isinstance(found, Path)
    assert pickle.loads(pickle.dumps(found)) == found
    html = found._repr_html_()
    assert rows_in(html)['size'] == '96 x 64 pixels'
    picture = picture_in(html)
    # Few pixels are enlarged, and stay what they are
    assert picture.shape == (128, 192, 4)
    assert (picture[::2, ::2] == picture[1::2, 1::2]).all()


def test_classes_have_the_colours_of_the_map(tmp_path: Path) -> None:
    classes = np.zeros((1, 32, 32), np.uint8)
    classes[:, :, 16:], classes[:, :4] = 1, 255
    path = tmp_path / 'classes.tif'
    profile = {
        'driver': 'GTiff',
        'height': 32,
        'width': 32,
        'count': 1,
        'dtype': 'uint8',
    }
    place = {'crs': 'EPSG:32633', 'transform': rasterio.Affine(10, 0, 0, 0, -10, 0)}
    with rasterio.open(path, 'w', nodata=255, **profile, **place) as file:
        file.write(classes)
        file.write_colormap(1, {0: (10, 20, 30), 1: (200, 100, 0)})
    picture = picture_in(WrittenMap(path)._repr_html_())
    assert picture.shape == (192, 192, 4)
    assert picture[120, 12].tolist() == [10, 20, 30, 255]
    assert picture[120, 180].tolist() == [200, 100, 0, 255]
    assert (picture[:24, :, 3] == 0).all()


def test_objects(tmp_path: Path) -> None:
    path = tmp_path / 'objects.gpkg'
    boxes = gpd.GeoDataFrame({'class': ['a'], 'score': [0.5]}, geometry=[shapely.box(0, 0, 1, 2)], crs='EPSG:32633')  # fmt: skip
    boxes.to_file(path, layer='objects')
    rows = rows_in(WrittenMap(path)._repr_html_())
    assert (rows['objects'], rows['CRS']) == ('1', 'EPSG:32633')
    assert rows['fields'] == 'class, score' and rows['bounds'] == '0, 0, 1, 2'


def test_what_is_gone_or_no_map(tmp_path: Path) -> None:
    rows = rows_in(WrittenMap(tmp_path / 'gone.tif')._repr_html_())
    assert rows['picture'] == 'none: there is no such file'
    for name in ('torn.tif', 'torn.gpkg'):
        (tmp_path / name).write_bytes(b'II*\0nothing')
        rows = rows_in(WrittenMap(tmp_path / name)._repr_html_())
        assert name in rows['path'] and any('none: ' in v or 'unknown: ' in v for v in rows.values())  # fmt: skip


def test_a_run_shows_counts_failures_and_first_maps(tmp_path: Path) -> None:
    made = [write(tmp_path / f'{number}.tif', noise(1, 32, 32)) for number in range(7)]
    tally = Tally(made, [], {'bad<.tif': 'is torn'})
    html = tally._repr_html_()
    assert rows_in(html.split('</table>')[0])['made'] == '7'
    assert 'bad&lt;.tif: is torn' in html and html.count('<img') == 5
    assert rows_in(Tally()._repr_html_()) == {'made': '0', 'there already': '0', 'failed': '0'}  # fmt: skip
