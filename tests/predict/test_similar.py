# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Search for places like given ones, in made-up features."""

import json
import math
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import rasterio
from pyproj import Transformer
from rasterfiles import write

from cmid_geo import find_similar
from cmid_geo.__main__ import main

#: Centre of the cell in the third row and fifth column.
X, Y = 500045.0, 4999975.0


def angles(rows: int = 20, cols: int = 30) -> np.ndarray:
    """Angle of each cell's vector in degrees: the cosine of two cells is that of their difference."""
    return np.arange(rows * cols, dtype=float).reshape(rows, cols) / 10


def features(degrees: np.ndarray) -> np.ndarray:
    """Vectors of all lengths at these angles."""
    lengths = 1 + np.arange(degrees.size).reshape(degrees.shape) % 7
    turned = np.radians(degrees)
    return (lengths * np.stack([np.cos(turned), np.sin(turned)])).astype(np.float32)


def make(path: Path, degrees: np.ndarray, **options: object) -> Path:
    return write(path, features(degrees), nodata=math.nan, **options)


def read(path: Path) -> np.ndarray:
    with rasterio.open(path) as file:
        assert file.count == 1 and math.isnan(file.nodata)
        return file.read(1)


def test_cosine_is_that_of_the_angle(tmp_path: Path) -> None:
    path = make(tmp_path / 'a.tif', angles())
    found = find_similar(path, [(X, Y)], tmp_path / 'out', number=4)
    with rasterio.open(found.maps[0]) as file, rasterio.open(path) as given:
        assert (file.transform, file.crs, file.shape) == (given.transform, given.crs, given.shape)  # fmt: skip
        notes = json.loads(file.tags()['cmid_geo'])
    assert notes['points'] == [[X, Y]]
    expected = np.cos(np.radians(angles() - angles()[2, 4]))
    np.testing.assert_allclose(read(found.maps[0]), expected, atol=1e-6)
    shown = found.maps[0]._repr_html_()
    assert 'a_similar.tif' in shown and 'data:image/png' in shown
    table = gpd.read_file(found.cells)
    assert table.crs.to_epsg() == 32633
    # The neighbours by angle, not the cell itself; equal ones by position
    centres = [(point.x, point.y) for point in table.centroid]
    assert centres == [(X - 10, Y), (X + 10, Y), (X - 20, Y), (X + 20, Y)]
    assert table.area.tolist() == [100] * 4
    assert table['score'].iloc[0] == pytest.approx(math.cos(math.radians(0.1)))
    assert set(table['raster']) == {'a'}
    assert sorted(each.name for each in (tmp_path / 'out').iterdir()) == ['a_similar.tif', 'similar.gpkg']  # fmt: skip


def test_the_query_is_the_mean_of_unit_vectors(tmp_path: Path) -> None:
    degrees = angles()
    degrees[0, 0], degrees[5, 5] = 10, 70
    path = make(tmp_path / 'a.tif', degrees)
    points = [(500005.0, 4999995.0), (500055.0, 4999945.0)]
    found = find_similar([path], points, tmp_path)
    expected = np.cos(np.radians(degrees - 40))
    np.testing.assert_allclose(read(found.maps[0]), expected, atol=1e-6)


@pytest.mark.parametrize('window', [7, 16, 1000])
def test_windows_change_nothing(tmp_path: Path, window: int) -> None:
    # Many equal scores, of which any might be kept
    rng = np.random.default_rng(0)
    vectors = rng.integers(-1, 3, (5, 40, 50)).astype(np.float16)
    path = write(tmp_path / 'a.tif', vectors)
    whole = find_similar(path, [(X, Y)], tmp_path / 'whole', number=37)
    parts = find_similar(path, [(X, Y)], tmp_path / 'parts', number=37, window=window)
    np.testing.assert_array_equal(read(whole.maps[0]), read(parts.maps[0]))
    tables = [gpd.read_file(each.cells) for each in (whole, parts)]
    assert len(tables[0]) == 37 and tables[0]['score'].is_monotonic_decreasing
    assert tables[0].equals(tables[1])


def test_points_in_degrees_and_rasters_in_several_systems(tmp_path: Path) -> None:
    one = make(tmp_path / 'one.tif', angles())
    other = make(tmp_path / 'other.tif', angles() + 5, origin=(200000, 5000000), crs='EPSG:32634')  # fmt: skip
    x, y = Transformer.from_crs(32633, 4326, always_xy=True).transform(X, Y)
    found = find_similar([one, other], [(x, y)], tmp_path / 'out', 'EPSG:4326', 3)
    expected = np.cos(np.radians(angles() + 5 - angles()[2, 4]))
    np.testing.assert_allclose(read(found.maps[1]), expected, atol=1e-6)
    table = gpd.read_file(found.cells)
    place = table[table['raster'] == 'other'].to_crs(32634).centroid.iloc[0]
    # Angle 6.4 is that of the fourteenth cell after 5.0, as exact as a transformation
    assert (place.x, place.y) == pytest.approx((200145, 4999995), abs=0.01)
    with pytest.raises(ValueError, match='say that of X Y by --crs'):
        find_similar([one, other], [(X, Y)], tmp_path / 'out')


def test_no_data_stays_and_is_never_found(tmp_path: Path) -> None:
    vectors = features(angles())
    vectors[:, 2, 5] = np.nan
    # One band alone
    vectors[1, 2, 3] = np.nan
    vectors[:, 2, 6] = 0
    path = write(tmp_path / 'a.tif', vectors, nodata=math.nan)
    found = find_similar(path, [(X, Y)], tmp_path, number=10_000)
    scores = read(found.maps[0])
    empty = {tuple(each) for each in np.argwhere(np.isnan(scores)).tolist()}
    assert empty == {(2, 3), (2, 5), (2, 6)}
    assert len(gpd.read_file(found.cells)) == 20 * 30 - 3 - 1
    for x in (X + 10, X - 10, X + 20):
        with pytest.raises(ValueError, match='lies on no data.*choose a place with'):
            find_similar(path, [(X, Y), (x, Y)], tmp_path)


def test_a_second_raster_has_data_where_the_first_has_none(tmp_path: Path) -> None:
    vectors = features(angles())
    vectors[:, 2, 4] = np.nan
    first = write(tmp_path / 'first.tif', vectors)
    second = make(tmp_path / 'second.tif', angles() + 20)
    found = find_similar([first, second], [(X, Y)], tmp_path / 'out', number=1)
    assert read(found.maps[1])[2, 4] == pytest.approx(1)
    expected = math.cos(math.radians(20.1))
    assert read(found.maps[0])[2, 3] == pytest.approx(expected, abs=1e-6)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    path = make(tmp_path / 'a.tif', angles())
    with pytest.raises(ValueError, match='outside of every raster.*x 500000 to 500300'):
        find_similar(path, [(499_000, Y)], tmp_path)
    with pytest.raises(ValueError, match='outside of every raster.*by --crs'):
        find_similar(path, [(15, 45)], tmp_path)
    with pytest.raises(ValueError, match="crs='utm' is no.*give one such as EPSG"):
        find_similar(path, [(15, 45)], tmp_path, 'utm')
    three = write(tmp_path / 'b.tif', np.ones((3, 9, 9), np.float32))
    with pytest.raises(ValueError, match='b.tif has 3 bands but .*a.tif has 2'):
        find_similar([path, three], [(X, Y)], tmp_path)
    classes = write(tmp_path / 'c.tif', np.ones((1, 9, 9), np.uint8))
    with pytest.raises(ValueError, match='1 bands of uint8.*cmid-geo map BACKBONE'):
        find_similar(classes, [(X, Y)], tmp_path)
    again = make(tmp_path / 'deep/a.tif', angles())
    with pytest.raises(ValueError, match="two rasters are called 'a'"):
        find_similar([path, again], [(X, Y)], tmp_path)
    with pytest.raises(ValueError, match='number=0: give at least 1'):
        find_similar(path, [(X, Y)], tmp_path, number=0)
    for points, paths in (([], path), ([(X, Y)], [])):
        with pytest.raises(ValueError, match='=\\[\\]: give'):
            find_similar(paths, points, tmp_path)
    opposite = make(tmp_path / 'd.tif', np.array([[0.0, 180.0]]))
    with pytest.raises(ValueError, match='cancel each other out: give points of one'):
        find_similar(opposite, [(500005, 4999995), (500015, 4999995)], tmp_path)
    assert not list(tmp_path.glob('*similar*'))


def test_every_maker_is_compared_with_every_other(tmp_path: Path) -> None:
    paths = [make(tmp_path / f'{name}.tif', angles()) for name in 'abc']
    # The first tells nothing
    for path, network in zip(paths[1:], ('one', 'two')):
        with rasterio.open(path, 'r+') as file:
            file.update_tags(cmid_geo=json.dumps({'network': network}))
    with pytest.raises(ValueError, match='c.tif was made by network two but .*b.tif'):
        find_similar(paths, [(X, Y)], tmp_path / 'out')
    assert len(find_similar(paths[:2], [(X, Y)], tmp_path / 'out').maps) == 2


@pytest.mark.parametrize('components', [None, 2])
def test_features_of_other_networks_are_refused(
    tmp_path: Path, components: int | None
) -> None:
    paths = [make(tmp_path / f'{name}.tif', angles()) for name in 'ab']
    for path, network in zip(paths, ('one', 'one' if components else 'two')):
        with rasterio.open(path, 'r+') as file:
            notes = {'network': network, 'components': components}
            file.update_tags(cmid_geo=json.dumps(notes))
    with pytest.raises(ValueError, match='map all scenes with one backbone'):
        find_similar(paths, [(X, Y)], tmp_path / 'out')
    assert find_similar(paths[:1], [(X, Y)], tmp_path / 'out').cells.exists()


def test_a_failed_search_leaves_the_earlier_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make(tmp_path / 'a.tif', angles())
    found = find_similar(path, [(X, Y)], tmp_path / 'out')
    before = found.maps[0].read_bytes()

    def fail(*_: object) -> None:
        raise OSError('no space')

    monkeypatch.setattr('cmid_geo.predict.similar._cosine', fail)
    with pytest.raises(OSError, match='no space'):
        find_similar(path, [(X + 10, Y)], tmp_path / 'out')
    assert found.maps[0].read_bytes() == before
    names = {each.name for each in (tmp_path / 'out').iterdir()}
    assert names == {'a_similar.tif', 'similar.gpkg'}


def test_cells_that_are_open_elsewhere_stay(tmp_path: Path) -> None:
    path = make(tmp_path / 'a.tif', angles())
    found = find_similar(path, [(X, Y)], tmp_path / 'out')
    before = found.maps[0].read_bytes(), found.cells.read_bytes()
    found.cells.with_name('similar.gpkg-wal').touch()
    with pytest.raises(ValueError, match='similar.gpkg is open in another program'):
        find_similar(path, [(X + 10, Y)], tmp_path / 'out')
    assert (found.maps[0].read_bytes(), found.cells.read_bytes()) == before


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = {'origin': (-200, 5000000), 'crs': 'EPSG:3035'}
    paths = [make(tmp_path / f'{name}.tif', angles(), **place) for name in 'ab']
    words = ['similar', *map(str, paths), '-155', '4999975.0', '-145.0', '4999975']
    main([*words, '--out', str(tmp_path / 'out'), '--number', '5'])
    assert str(tmp_path / 'out/similar.gpkg') in capsys.readouterr().out
    expected = np.cos(np.radians(angles() - angles()[2, 4:6].mean()))
    np.testing.assert_allclose(read(tmp_path / 'out/b_similar.tif'), expected, atol=1e-6)  # fmt: skip
    assert len(gpd.read_file(tmp_path / 'out/similar.gpkg')) == 5
    with pytest.raises(SystemExit, match='3 numbers: give X and Y of each point'):
        main(words[:-1])


@pytest.mark.parametrize(
    'words',
    [
        '{a} --crs EPSG:4326 {x} {y} --number 2',
        '--number 2 {x} {y} {a} --crs EPSG:4326',
        '--crs=EPSG:4326 --number=2 {x} {y} {a}',
        '{x} --number 2 {y} --crs EPSG:4326 {a}',
        # As some programs write numbers
        '{a} {x:e} --number 2 {y:e} --crs EPSG:4326',
    ],
)
def test_options_of_the_command_stand_anywhere(tmp_path: Path, words: str) -> None:
    path = make(tmp_path / 'a.tif', angles(), origin=(600000, 5200000), crs='EPSG:32614')  # fmt: skip
    x, y = Transformer.from_crs(32614, 4326, always_xy=True).transform(600045, 5199975)
    assert x < 0
    out = tmp_path / 'out'
    main(['similar', '--out', str(out), *words.format(a=path, x=x, y=y).split()])
    assert read(out / 'a_similar.tif')[2, 4] == pytest.approx(1)
    assert len(gpd.read_file(out / 'similar.gpkg')) == 2


def test_unknown_options_of_the_command_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = make(tmp_path / 'a.tif', angles())
    with pytest.raises(SystemExit):
        main(['similar', str(path), str(X), str(Y), '--many', '3'])
    assert 'unrecognized arguments: --many' in capsys.readouterr().err
