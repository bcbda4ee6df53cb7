# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Polygons of classes, in maps whose areas are known."""

import contextlib
import math
import sqlite3
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from pyproj import Geod, Transformer
from rasterfiles import noise, write

from cmid_geo.predict import write_class_polygons
from cmid_geo.predict.class_polygons import ground_areas, is_own_package

#: A square of 4 x 4 pixels with a hole of one of another class, a single pixel, and no data right.
CLASSES = np.zeros((1, 10, 12), np.uint8)
CLASSES[0, 2:6, 2:6] = 1
CLASSES[0, 3, 3] = 2
CLASSES[0, 8, 8] = 1
CLASSES[0, :, 11] = 255


def make(path: Path, names: tuple[str, ...] = (), **options: object) -> Path:
    write(path, CLASSES, nodata=255, **options)
    with rasterio.open(path, 'r+') as file:
        file.update_tags(1, **{f'class_{i}': name for i, name in enumerate(names)})
    return path


def test_areas_classes_and_holes(tmp_path: Path) -> None:
    path = make(tmp_path / 'map.tif', ('land', 'lake', 'isle'), origin=(500000, 5000000))  # fmt: skip
    table = gpd.read_file(write_class_polygons(path)).sort_values('area')
    assert table['class'].tolist() == ['isle', 'lake', 'lake', 'land'] or table['class'].tolist() == ['lake', 'isle', 'lake', 'land']  # fmt: skip
    assert sorted(table.area) == [100, 100, 1500, 11000 - 1600 - 100]
    # On the central meridian UTM's lengths are 0.9996 of those on the ground
    np.testing.assert_allclose(table['area'], table.area / 0.9996**2, rtol=1e-4)
    assert table.crs.to_epsg() == 32633
    lake = table[table['area'] > 1000].iloc[0]
    assert (lake['label'], lake['class'], len(lake.geometry.interiors)) == (1, 'lake', 1)  # fmt: skip
    assert lake.geometry.bounds == (500020, 4999940, 500060, 4999980)


@pytest.mark.parametrize('crs', ['EPSG:4326', 'EPSG:3857', 'EPSG:3035'])
def test_the_smallest_area_is_on_the_ground(tmp_path: Path, crs: str) -> None:
    # At 60 degrees north Web Mercator shows areas four times as large as they are
    scale = {'EPSG:4326': 1e-3, 'EPSG:3857': 100.0, 'EPSG:3035': 100.0}[crs]
    origin = {'EPSG:4326': (10, 60), 'EPSG:3857': (1113194.9, 8399737.9), 'EPSG:3035': (4321000, 4100000)}[crs]  # fmt: skip
    path = make(tmp_path / 'map.tif', origin=origin, res=scale, crs=crs)
    metres = {
        # A degree of longitude is half as long as one of latitude there
        'EPSG:4326': 111_412 * 55_800 * 1e-6,
        'EPSG:3857': 10_000 / 4,
        'EPSG:3035': 10_000,
    }[crs]
    table = gpd.read_file(write_class_polygons(path, min_area=1.5 * metres))
    assert table['label'].value_counts().to_dict() == {0: 1, 1: 1}
    lake = table[table['label'] == 1]['area'].iloc[0]
    assert lake == pytest.approx(15 * metres, rel=0.01)
    single = gpd.read_file(write_class_polygons(path, min_area=0.9 * metres))
    assert len(single) == 4


def test_classes_without_names_are_text(tmp_path: Path) -> None:
    path = make(tmp_path / 'map.tif', ('', '', 'isle'))
    table = gpd.read_file(write_class_polygons(path, tmp_path / 'deep/a.gpkg'))
    assert set(zip(table['label'], table['class'])) == {(0, '0'), (1, '1'), (2, 'isle')}


def test_older_qgis_knows_the_version(tmp_path: Path) -> None:
    path = make(tmp_path / 'map.tif', ('', '', 'isle'))
    header = write_class_polygons(path).read_bytes()[:100]
    # SQLite's user version; QGIS 3.22 warns of 1.4, which is 10400
    assert int.from_bytes(header[60:64], 'big') == 10200


def test_blocks_do_not_cut_and_stale_polygons_go(tmp_path: Path) -> None:
    path = tmp_path / 'map.tif'
    write(path, np.ones((1, 300, 300), np.uint8))
    turned = Affine.translation(500000, 5000000) * Affine.rotation(30) * Affine.scale(10, -10)  # fmt: skip
    write(path, np.ones((1, 300, 300), np.uint8), transform=turned)
    (whole,) = gpd.read_file(write_class_polygons(path)).geometry
    assert whole.area == pytest.approx(9_000_000)
    write(path, np.full((1, 9, 9), 255, np.uint8), nodata=255)
    assert len(gpd.read_file(write_class_polygons(path))) == 0
    assert {each.name for each in tmp_path.iterdir()} == {'map.tif', 'map.gpkg'}


def test_simplified_borders(tmp_path: Path) -> None:
    rows, cols = np.indices((40, 40))
    path = write(tmp_path / 'map.tif', (rows > cols).astype(np.uint8)[None])
    steps = gpd.read_file(write_class_polygons(path))
    simple = gpd.read_file(write_class_polygons(path, tolerance=15))
    assert min(steps.count_coordinates()) > 70 and max(simple.count_coordinates()) < 8
    np.testing.assert_allclose(simple['area'], steps['area'])


def test_what_is_no_map_of_classes_is_refused(tmp_path: Path) -> None:
    many = write(tmp_path / 'many.tif', noise(3, 9, 9))
    with pytest.raises(ValueError, match='3 bands of uint8.*--output classes'):
        write_class_polygons(many)
    path = make(tmp_path / 'map.tif')
    for wrong in (-1.0, math.nan):
        with pytest.raises(ValueError, match='min_area=.*: give 0 or more'):
            write_class_polygons(path, min_area=wrong)
    with pytest.raises(ValueError, match='give a name with .gpkg'):
        write_class_polygons(path, tmp_path / 'a.shp')
    assert not list(tmp_path.glob('*.gpkg'))


def test_files_of_the_user_are_told_from_ours(tmp_path: Path) -> None:
    package = write_class_polygons(make(tmp_path / 'map.tif'))
    assert is_own_package(package)
    table = gpd.read_file(package)
    # A layer of the same name, and a layer added to ours
    table.to_file(tmp_path / 'other.gpkg', layer='classes')
    table.to_file(package, layer='corrections')
    assert not is_own_package(tmp_path / 'other.gpkg')
    assert not is_own_package(package)


def box(*sides: float) -> np.ndarray:
    return np.array([shapely.box(*sides)], object)


def test_areas_of_wide_polygons() -> None:
    # Between points so near a geodesic is a line of the CRS
    dense = shapely.segmentize(shapely.box(10, 40, 70, 60), 0.01)
    expected = Geod(ellps='WGS84').polygon_area_perimeter(*dense.exterior.xy)[0]
    (area,) = ground_areas(box(10, 40, 70, 60), 'EPSG:4326')
    assert area == pytest.approx(expected, rel=1e-6)
    corners = Transformer.from_crs(4326, 3857, always_xy=True).transform_bounds(10, 40, 70, 60)  # fmt: skip
    assert ground_areas(box(*corners), 'EPSG:3857') == pytest.approx(area, rel=1e-5)
    # 510 million square kilometres, and what lies on both sides of 180 degrees
    assert ground_areas(box(-180, -90, 180, 90), 'EPSG:4326')[0] / 1e12 == pytest.approx(510.0656, rel=1e-6)  # fmt: skip
    sides = [ground_areas(box(west, 10, west + 20, 20), 'EPSG:4326') for west in (10, 170)]  # fmt: skip
    assert sides[0] == pytest.approx(sides[1])
    sphere = ground_areas(box(0, 0, 90, 90), '+proj=longlat +R=6371000 +type=crs')
    assert sphere == pytest.approx(math.pi / 2 * 6371000**2)
    hole = shapely.difference(box(10, 40, 70, 60), box(20, 45, 30, 50))
    assert ground_areas(hole, 'EPSG:4326')[0] == pytest.approx(area - ground_areas(box(20, 45, 30, 50), 'EPSG:4326')[0])  # fmt: skip


def test_areas_in_grads_and_feet() -> None:
    # NTF (Paris): its degrees are a hundredth of a right angle
    grads = ground_areas(box(0, 400 / 9, 20 / 9, 420 / 9), 'EPSG:4807')
    degrees = ground_areas(box(0, 40, 2, 42), '+proj=longlat +ellps=clrk80ign +type=crs')  # fmt: skip
    assert grads == pytest.approx(degrees)
    # A projection of the same system, and one in US survey feet
    metres = ground_areas(box(600000, 2200000, 610000, 2210000), 'EPSG:27572')
    assert metres == pytest.approx(1e8, rel=1e-3)
    feet = ground_areas(box(1e6, 2e5, 1e6 + 100, 2e5 + 100), 'EPSG:2263')
    assert feet == pytest.approx(100**2 * 0.3048006**2, rel=1e-3)


def test_a_package_that_is_open_is_not_replaced(tmp_path: Path) -> None:
    path = make(tmp_path / 'map.tif')
    package = write_class_polygons(path)
    with contextlib.closing(sqlite3.connect(package, isolation_level=None)) as opened:
        # As QGIS opens it
        opened.execute('PRAGMA journal_mode = WAL')
        opened.execute("UPDATE gpkg_contents SET identifier = 'mine'")
        assert Path(f'{package}-wal').exists()
        with pytest.raises(ValueError, match=r'open in another program.*map.gpkg-wal.*close it'):  # fmt: skip
            write_class_polygons(path)
        held = opened.execute('SELECT identifier FROM gpkg_contents').fetchall()
    assert held == [('mine',)] and not Path(f'{package}-wal').exists()
    before = package.stat().st_ino
    write_class_polygons(path)
    assert package.stat().st_ino != before and len(gpd.read_file(package)) == 4
