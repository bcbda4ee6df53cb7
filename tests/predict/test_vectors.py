# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

import json
import math
import sqlite3
import time
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import shapely
import torch
from affine import Affine
from pyproj import CRS, Transformer
from torch import Tensor

from cmid_geo.datasets.grids import Grid
from cmid_geo.ops.rotated_boxes import corners
from cmid_geo.predict.vectors import (
    OBJECT,
    Objects,
    merge_objects,
    objects_of_window,
    read_notes,
    write_objects,
)

UTM = CRS.from_epsg(32633).to_wkt()
DEGREES = CRS.from_epsg(4326).to_wkt()
SQUARE = Affine(0.5, 0, 500_000.25, 0, -0.5, 4_500_000.75)
#: Turned by 30 degrees
COS, SIN = math.cos(math.pi / 6), math.sin(math.pi / 6)
TURNED = Affine(COS / 2, SIN / 2, 500_000.25, SIN / 2, -COS / 2, 4_500_000.75)


def rectangles(*boxes: tuple[float, float, float, float]) -> np.ndarray:
    """Corners of (x1, y1, x2, y2)."""
    return np.array(
        [[(a, b), (c, b), (c, d), (a, d)] for a, b, c, d in boxes], float
    ).reshape(-1, 4, 2)


def objects(
    *boxes: tuple[float, float, float, float],
    scores: list[float] | None = None,
    labels: list[int] | None = None,
    cut: list[bool] | None = None,
) -> Objects:
    n = len(boxes)
    return np.rec.fromarrays(
        [
            rectangles(*boxes),
            np.array(scores or [0.5] * n, np.float32),
            np.array(labels or [1] * n, np.int64),
            np.array(cut or [False] * n, np.bool_),
        ],
        dtype=OBJECT,
    )


def some_objects(number: int, far: float, seed: int = 0) -> Objects:
    rng = np.random.default_rng(seed)
    boxes = np.concatenate(
        [
            rng.random((number, 2)) * far,
            rng.random((number, 2)) * 25 + 5,
            rng.random((number, 1)) * 3,
        ],
        axis=1,
    )
    return np.rec.fromarrays(
        [
            corners(torch.from_numpy(boxes)).numpy(),
            # Few values, so that many are equal
            (rng.integers(1, 20, number) / 20).astype(np.float32),
            rng.integers(1, 4, number),
            rng.random(number) < 0.3,
        ],
        dtype=OBJECT,
    )


def found(boxes: list, scores: list[float] | None = None) -> dict[str, Tensor]:
    n = len(boxes)
    return {
        'boxes': torch.tensor(boxes, dtype=torch.float32),
        'scores': torch.tensor(scores or [0.5] * n),
        'labels': torch.ones(n, dtype=torch.long),
    }


def bounds(found: Objects) -> list[tuple[float, ...]]:
    around = shapely.bounds(shapely.polygons(found['corners']))
    return sorted(tuple(float(x) for x in box) for box in around)


def equal(first: Objects, second: Objects) -> bool:
    return np.array_equal(first, second)


class TestObjects:
    def test_concatenate_and_choose(self) -> None:
        first = objects((0, 0, 1, 1), (2, 2, 4, 4), scores=[0.1, 0.2])
        second = objects((5, 5, 6, 6), scores=[0.3], labels=[7], cut=[True])
        joined = np.concatenate([first, np.zeros(0, OBJECT), second])
        assert len(joined) == 3
        assert equal(joined[np.array([0, 1])], first)
        assert equal(joined[np.array([False, False, True])], second)
        assert bounds(joined[np.array([2, 0])]) == [(0, 0, 1, 1), (5, 5, 6, 6)]


class TestWindow:
    def place(self, *boxes: tuple, col: int = 30, row: int = 60, **options: object) -> Objects:  # fmt: skip
        options = {'size': 40, 'width': 100, 'height': 100, 'threshold': 0.1} | options
        return objects_of_window(found(list(boxes)), col, row, **options)

    def test_boxes_move_by_the_window(self) -> None:
        assert bounds(self.place((5, 6, 15, 18))) == [(35, 66, 45, 78)]

    def test_rotated_boxes_move_by_the_window(self) -> None:
        half = math.sqrt(8)
        placed = self.place((20, 10, 4, 4, math.pi / 4))
        expected = [(50 - half, 70 - half, 50 + half, 70 + half)]
        assert bounds(placed) == [pytest.approx(expected[0], abs=1e-5)]
        assert shapely.area(shapely.polygons(placed['corners'])) == pytest.approx([16])

    def test_far_in_a_scene_float32_loses_nothing(self) -> None:
        placed = self.place((0.125, 1, 4.375, 5), col=10**8, width=10**9)
        assert bounds(placed) == [(10**8 + 0.125, 61, 10**8 + 4.375, 65)]

    @pytest.mark.parametrize(
        ('box', 'cut'),
        [
            ((5, 5, 35, 35), False),
            ((1.9, 5, 35, 35), True),
            ((2.1, 5, 35, 35), False),
            ((5, 1.9, 35, 35), True),
            ((5, 5, 38.1, 35), True),
            ((5, 5, 37.9, 35), False),
            # Below this window the scene ends
            ((5, 5, 35, 40), False),
            ((10, 20, 4, 30, math.pi / 2), True),
            ((20, 20, 4, 30, math.pi / 2), False),
        ],
    )
    def test_cut_at_edges_inside_the_scene(self, box: tuple, cut: bool) -> None:
        assert self.place(box)['cut'].tolist() == [cut]

    def test_no_edge_of_the_scene_cuts(self) -> None:
        sides = ((0, 5, 9, 9), (5, 0, 9, 9), (31, 5, 40, 9), (5, 31, 9, 40))
        alone = self.place(*sides, col=0, row=0, width=40, height=40)
        assert alone['cut'].tolist() == [False] * 4
        first = self.place(*sides, col=0, row=0)
        assert first['cut'].tolist() == [False, False, True, True]
        middle = self.place(*sides, col=30, row=30)
        assert middle['cut'].tolist() == [True] * 4
        # The last window hangs over: what touches its edge is a mirror image
        over = self.place((15, 5, 40, 9), col=70)
        assert over['cut'].tolist() == [False]
        assert self.place((1, 5, 9, 9), margin=0.5)['cut'].tolist() == [False]

    def test_what_lies_outside_the_scene_goes(self) -> None:
        kept = self.place((10, 2, 20, 8), (25, 2, 35, 8), (16, 2, 26, 8), (10, 22, 20, 28), col=80, row=80)  # fmt: skip
        assert bounds(kept) == [(90, 82, 100, 88)]
        before = self.place((-12, 5, 4, 9), (-4, 5, 12, 9), col=0, row=0)
        assert bounds(before) == [(0, 5, 12, 9)]

    def test_rotated_boxes_are_not_clipped(self) -> None:
        kept = self.place((19, 5, 10, 4, 0), (21, 5, 10, 4, 0), col=80)
        assert bounds(kept) == [(94, 63, 104, 67)]

    def test_low_scores_go(self) -> None:
        low = found([(5, 5, 9, 9), (15, 5, 19, 9), (25, 5, 29, 9)], [0.25, 0.5, 0.75])
        kept = objects_of_window(low, 0, 0, 40, 100, 100, threshold=0.5)
        assert kept['score'].tolist() == [0.5, 0.75]

    @pytest.mark.parametrize(
        'bad',
        [
            (5, 5, 5, 9),
            (5, 5, 5, 5),
            (math.nan, 5, 9, 9),
            (5, 5, math.inf, 9),
            (-math.inf, 5, math.inf, 9),
            (20, 20, 0, 9, 0.3),
            (20, 20, 0, 0, 0),
            (20, 20, 5, 9, math.nan),
            (20, 20, math.inf, 9, 0.3),
        ],
    )
    @pytest.mark.filterwarnings('error')
    def test_no_area_and_no_number_go(self, bad: tuple) -> None:
        good = (10, 10, 20, 20, 0.3)[: len(bad)]
        three = found([bad, good, bad], [0.5, 0.75, 0.25])
        placed = objects_of_window(three, 30, 60, 40, 100, 100, threshold=0)
        assert placed['score'].tolist() == [0.75]
        assert shapely.is_valid(shapely.polygons(placed['corners'])).all()

    def test_scores_that_are_no_number_go(self) -> None:
        assert len(objects_of_window(found([(5, 5, 9, 9)], [math.nan]), 0, 0, 40, 99, 99, threshold=0)) == 0  # fmt: skip

    @pytest.mark.parametrize('numbers', [4, 5])
    def test_nothing_found(self, numbers: int) -> None:
        nothing = found([]) | {'boxes': torch.zeros(0, numbers)}
        placed = objects_of_window(nothing, 0, 0, 40, 100, 100, threshold=0.5)
        assert equal(placed, np.zeros(0, OBJECT))

    def test_other_forms_are_refused(self) -> None:
        with pytest.raises(ValueError, match='boxes have 6 numbers but'):
            self.place((1, 2, 3, 4, 5, 6))


class TestMerge:
    def detect(self, truth: list[tuple], shares: dict[bool, float]) -> list[Objects]:
        """Run a perfect detector over 3 x 3 windows of 40 pixels that overlap by 10."""
        windows = []
        for row in (0, 30, 60):
            for col in (0, 30, 60):
                boxes, scores = [], []
                for x1, y1, x2, y2 in truth:
                    seen = np.clip(
                        np.array([x1 - col, y1 - row, x2 - col, y2 - row]), 0, 40
                    )
                    area = (seen[2] - seen[0]) * (seen[3] - seen[1])
                    if area > 0:
                        boxes.append(seen.tolist())
                        scores.append(shares[area == (x2 - x1) * (y2 - y1)])
                if boxes:
                    windows.append(objects_of_window(found(boxes, scores), col, row, 40, 100, 100, threshold=0.1))  # fmt: skip
        return windows

    @pytest.mark.parametrize('shares', [{True: 0.9, False: 0.5}, {True: 0.5, False: 0.9}])  # fmt: skip
    def test_seams_leave_no_trace(self, shares: dict[bool, float]) -> None:
        truth = [
            (33, 10, 37, 14),  # whole in two windows
            (33, 75, 66, 80),  # whole in one, fragments at its left and right
            (25, 20, 37, 27),  # whole in the first, a fragment in the second
            (63, 33, 67, 37),  # whole in four
            (0, 90, 12, 100),  # in the corner of the scene
            (45, 45, 55, 55),  # in one only
        ]
        windows = self.detect(truth, shares)
        joined = np.concatenate(windows)
        assert len(joined) == 2 + 3 + 2 + 4 + 1 + 1
        merged = merge_objects(joined)
        assert bounds(merged) == sorted(truth)
        assert merged['score'].tolist() == pytest.approx([shares[True]] * len(truth))

    def test_whole_ones_come_before_better_fragments(self) -> None:
        whole, left, right = (10, 10, 50, 20), (10, 10, 40, 20), (30, 10, 50, 20)
        seen = objects(
            left, whole, right, scores=[0.9, 0.3, 0.8], cut=[True, False, True]
        )
        merged = merge_objects(seen)
        assert bounds(merged) == [whole]
        assert merged['score'].tolist() == pytest.approx([0.3])
        # Were the pieces whole, the first would drop it
        apart = merge_objects(
            objects(left, whole, right, scores=[0.9, 0.3, 0.8]), fragment=0.5
        )
        assert bounds(apart) == sorted([left, right])

    def test_small_fragments_go_by_their_own_area(self) -> None:
        whole, piece = (0, 0, 100, 10), (0, 0, 10, 10)
        assert bounds(merge_objects(objects(whole, piece))) == sorted([whole, piece])
        cut = objects(whole, piece, cut=[False, True])
        assert bounds(merge_objects(cut)) == [whole]
        # A fragment that keeps half of itself outside
        half = objects(whole, (0, 5, 10, 15), cut=[False, True])
        assert len(merge_objects(half)) == 2
        assert len(merge_objects(half, fragment=0.4)) == 1

    def test_fragments_that_nobody_saw_whole_stay(self) -> None:
        pieces = objects((0, 0, 40, 9), (30, 0, 70, 9), cut=[True, True])
        assert len(merge_objects(pieces)) == 2

    def test_neighbours_stay(self) -> None:
        # IoU 20/180 and 0: touching along an edge
        boxes = ((0, 0, 10, 10), (8, 0, 18, 10), (18, 0, 28, 10))
        assert bounds(merge_objects(objects(*boxes))) == sorted(boxes)
        assert len(merge_objects(objects(*boxes), nms_thresh=0.1)) == 2

    def test_the_best_stays(self) -> None:
        boxes = ((0, 0, 10, 10), (1, 0, 11, 10), (2, 0, 12, 10))
        merged = merge_objects(objects(*boxes, scores=[0.2, 0.9, 0.5]))
        assert bounds(merged) == [boxes[1]]

    def test_what_is_dropped_drops_nothing(self) -> None:
        # IoU 0.6 between neighbours, 1/3 between the ends
        boxes = ((0, 0, 8, 1), (2, 0, 10, 1), (4, 0, 12, 1))
        merged = merge_objects(objects(*boxes, scores=[0.9, 0.8, 0.7]))
        assert bounds(merged) == [boxes[0], boxes[2]]

    def test_classes_do_not_compete(self) -> None:
        box = (0, 0, 10, 10)
        seen = objects(
            box, box, box, scores=[0.9, 0.8, 0.7], labels=[2, 1, 2], cut=[False, True, True]
        )  # fmt: skip
        assert merge_objects(seen)['label'].tolist() == [2, 1]

    def test_rotated_boxes_overlap_as_drawn(self) -> None:
        # Thin boxes side by side at 45 degrees: upright ones around them overlap by 80 %
        boxes = torch.tensor(
            [[50, 50, 40, 4, 0.785], [53, 47, 40, 4, 0.785], [50, 50, 38, 4, 0.785]]
        )
        three = found(boxes.tolist(), [0.9, 0.8, 0.7])
        seen = objects_of_window(three, 0, 0, 100, 100, 100, threshold=0)
        assert merge_objects(seen)['score'].tolist() == pytest.approx([0.9, 0.8])
        upright = objects(*bounds(seen))
        assert len(merge_objects(upright)) == 1

    def test_equals_the_slow_loop(self) -> None:
        seen = some_objects(300, 150)
        polygons = shapely.polygons(seen['corners'])
        common = shapely.area(
            shapely.intersection(polygons[:, None], polygons[None, :])
        )
        areas = shapely.area(polygons)
        order = sorted(
            range(300),
            key=lambda i: (
                seen['cut'][i],
                -seen['score'][i],
                seen['corners'][i].ravel().tolist(),
            ),
        )
        kept: list[int] = []
        for i in order:
            rivals = [j for j in kept if seen['label'][j] == seen['label'][i]]
            iou = [common[i, j] / (areas[i] + areas[j] - common[i, j]) for j in rivals]
            own = [common[i, j] / areas[i] for j in rivals]
            if max(iou, default=0) <= 0.3 and not (
                seen['cut'][i] and max(own, default=0) > 0.6
            ):
                kept.append(i)
        kept.sort(
            key=lambda i: (-seen['score'][i], seen['corners'][i].ravel().tolist())
        )
        assert 50 < len(kept) < 250
        merged = merge_objects(seen, nms_thresh=0.3, fragment=0.6)
        assert equal(merged, seen[np.array(kept)])

    def test_the_order_of_the_input_is_nothing(self) -> None:
        seen = some_objects(700, 120)
        seen = np.concatenate([seen, seen[np.arange(100)]])
        expected = merge_objects(seen)
        assert 100 < len(expected) < 500
        assert (np.diff(expected['score']) <= 0).all()
        # Equal scores, and equal objects, are there to be mixed up
        assert len(np.unique(expected['score'])) < len(expected) / 2
        rng = np.random.default_rng(1)
        for _ in range(5):
            again = merge_objects(seen[rng.permutation(len(seen))])
            assert equal(again, expected)

    def test_merging_again_changes_nothing(self) -> None:
        once = merge_objects(some_objects(500, 200))
        assert equal(merge_objects(once), once)

    def test_many(self) -> None:
        seen = some_objects(20_000, 4000)
        start = time.perf_counter()
        merged = merge_objects(seen)
        # A table of all pairs would take 3 GB and minutes; this takes about a second
        assert time.perf_counter() - start < 60
        assert 10_000 < len(merged) < 20_000

    def test_none(self) -> None:
        assert equal(merge_objects(np.zeros(0, OBJECT)), np.zeros(0, OBJECT))

    @pytest.mark.parametrize('wrong', [{'nms_thresh': 50}, {'fragment': math.nan}])
    def test_shares_are_shares(self, wrong: dict[str, float]) -> None:
        with pytest.raises(ValueError, match='but a fraction is meant'):
            merge_objects(np.zeros(0, OBJECT), **wrong)


class TestFiles:
    two = objects((10, 20, 14, 30), (0, 0, 3, 2), scores=[0.9, 0.25], labels=[2, 1])
    names = ('background', 'ship', 'tank')

    @pytest.mark.parametrize('transform', [SQUARE, TURNED], ids=['square', 'turned'])
    def test_pixels_land_where_they_are(self, tmp_path: Path, transform: Affine) -> None:  # fmt: skip
        path = tmp_path / 'a.gpkg'
        write_objects(self.two, path, Grid(UTM, transform, 100, 80), self.names, '')
        table = gpd.read_file(path)
        assert table.crs.to_epsg() == 32633
        assert table['class'].tolist() == ['tank', 'ship']
        assert table['label'].tolist() == [2, 1]
        assert table['score'].tolist() == pytest.approx([0.9, 0.25])
        cos, sin = (COS, SIN) if transform is TURNED else (1, 0)
        for polygon, pixels in zip(table.geometry, self.two['corners'], strict=True):
            right, up = pixels[:, 0] / 2, -pixels[:, 1] / 2
            expected = np.stack(
                [500_000.25 + right * cos - up * sin, 4_500_000.75 + right * sin + up * cos], -1
            )  # fmt: skip
            ring = shapely.get_coordinates(polygon)
            assert polygon.is_valid
            assert np.abs(ring[:4] - expected).max() < 1e-6
        if transform is SQUARE:
            assert table.geometry[0].bounds == (500_005.25, 4_499_985.75, 500_007.25, 4_499_990.75)  # fmt: skip

    def test_degrees_stay_degrees(self, tmp_path: Path) -> None:
        grid = Grid(DEGREES, Affine(1e-5, 0, 13.1, 0, -1e-5, 52.3), 100, 80)
        for path in (tmp_path / 'a.gpkg', tmp_path / 'a.geojson'):
            write_objects(self.two, path, grid, None, 'x')
            table = gpd.read_file(path)
            assert table.crs.to_epsg() == 4326
            assert table['class'].tolist() == ['2', '1']
            expected = (13.1001, 52.2997, 13.10014, 52.2998)
            # A micrometre is 1e-11 degrees
            assert table.geometry[0].bounds == pytest.approx(expected, abs=1e-11, rel=0)

    @pytest.mark.parametrize('transform', [SQUARE, TURNED], ids=['square', 'turned'])
    def test_geojson_is_longitude_and_latitude(self, tmp_path: Path, transform: Affine) -> None:  # fmt: skip
        path = tmp_path / 'a.geojson'
        write_objects(self.two, path, Grid(UTM, transform, 100, 80), self.names, 'hi')
        data = json.loads(path.read_text())
        assert 'crs' not in data and data['description'] == 'hi'
        first = data['features'][0]
        assert first['properties'] == {'class': 'tank', 'label': 2, 'score': 0.9}
        (ring,) = first['geometry']['coordinates']
        assert shapely.LinearRing(ring).is_ccw and ring[0] == ring[-1]
        back = Transformer.from_crs(4326, 32633, always_xy=True)
        x, y = back.transform(*np.array(ring[:4]).T)
        t = ~transform
        pixels = zip(t.a * x + t.b * y + t.c, t.d * x + t.e * y + t.f, strict=True)
        placed = {(round(float(c), 5), round(float(r), 5)) for c, r in pixels}
        assert placed == {(10, 20), (14, 20), (14, 30), (10, 30)}
        assert 14.9 < ring[0][0] < 15.1 and 40 < ring[0][1] < 41

    def test_geojson_is_cut_at_180_degrees(self, tmp_path: Path) -> None:
        crs = CRS.from_epsg(32660)
        x, y = Transformer.from_crs(4326, crs, always_xy=True).transform(180, 10)
        grid = Grid(crs.to_wkt(), Affine(10, 0, x - 50, 0, -10, y), 10, 10)
        path = tmp_path / 'a.geojson'
        write_objects(objects((0, 0, 10, 2)), path, grid, None, '')
        (shape,) = gpd.read_file(path).geometry
        parts = shapely.bounds(shapely.get_parts(shape))
        assert sorted(parts[:, 0].round(2)) == [-180, 180]
        assert (parts[:, 2] - parts[:, 0]).max() < 1e-3
        assert shapely.get_num_coordinates(shape) == 10

    @pytest.mark.parametrize('ending', ['gpkg', 'geojson', 'GPKG'])
    @pytest.mark.parametrize('number', [0, 2])
    def test_about_comes_back(self, tmp_path: Path, ending: str, number: int) -> None:
        path, grid = tmp_path / f'a.{ending}', Grid(UTM, SQUARE, 100, 80)
        about = 'weights: "a.ckpt"\nschön = {score: 0.5}; ' * 50
        write_objects(self.two[np.arange(number)], path, grid, self.names, about)
        assert read_notes(path) == about
        write_objects(self.two[np.arange(number)], path, grid, self.names, '')
        assert read_notes(path) is None
        assert len(gpd.read_file(path)) == number

    def test_no_objects(self, tmp_path: Path) -> None:
        grid = Grid(UTM, SQUARE, 100, 80)
        write_objects(np.zeros(0, OBJECT), tmp_path / 'a.gpkg', grid, self.names, '')
        table = gpd.read_file(tmp_path / 'a.gpkg')
        assert len(table) == 0 and table.crs.to_epsg() == 32633
        assert table.columns.tolist() == ['class', 'label', 'score', 'geometry']
        assert [table[c].dtype.kind for c in ('label', 'score')] == ['i', 'f']
        kinds = gpd.list_layers(tmp_path / 'a.gpkg')['geometry_type']
        assert kinds.tolist() == ['Polygon']
        # GeoJSON has no place for the columns of no objects
        write_objects(np.zeros(0, OBJECT), tmp_path / 'a.geojson', grid, self.names, '')
        assert gpd.read_file(tmp_path / 'a.geojson').crs.to_epsg() == 4326
        assert json.loads((tmp_path / 'a.geojson').read_text())['features'] == []

    def test_a_geopackage_is_one_file(self, tmp_path: Path) -> None:
        path, grid = tmp_path / 'a.gpkg', Grid(UTM, SQUARE, 100, 80)
        write_objects(self.two, path, grid, self.names, 'first')
        write_objects(self.two[np.array([1])], path, grid, self.names, 'second')
        read_notes(path)
        assert [file.name for file in tmp_path.iterdir()] == ['a.gpkg']
        assert gpd.read_file(path)['class'].tolist() == ['ship']
        assert gpd.list_layers(path)['name'].tolist() == ['objects']
        with sqlite3.connect(path) as file:
            (mode,) = file.execute('pragma journal_mode').fetchone()
        file.close()
        assert mode == 'delete'

    def test_other_layers_stay(self, tmp_path: Path) -> None:
        path, grid = tmp_path / 'a.gpkg', Grid(UTM, SQUARE, 100, 80)
        gpd.GeoSeries([shapely.Point(3, 4)], crs=UTM).to_file(path, layer='mine')
        for number in (2, 1):
            write_objects(self.two[np.arange(number)], path, grid, None, 'ours')
        assert sorted(gpd.list_layers(path)['name']) == ['mine', 'objects']
        assert len(gpd.read_file(path, layer='objects')) == 1
        assert gpd.read_file(path, layer='mine').geometry[0] == shapely.Point(3, 4)
        assert read_notes(path) == 'ours'

    @pytest.mark.parametrize('ending', ['gpkg', 'geojson'])
    def test_damaged_and_other_files_tell_nothing(
        self, tmp_path: Path, ending: str
    ) -> None:
        path, grid = tmp_path / f'a.{ending}', Grid(UTM, SQUARE, 100, 80)
        write_objects(self.two, path, grid, self.names, 'ours')
        whole = path.read_bytes()
        for kept in (0, len(whole) * 2 // 3, len(whole) - 10):
            path.write_bytes(whole[:kept])
            assert read_notes(path) is None
        path.unlink()
        other = gpd.GeoDataFrame(geometry=[shapely.Point(3, 4)], crs='EPSG:4326')
        other.to_file(path, layer='mine')
        assert read_notes(path) is None

    @pytest.mark.parametrize('name', ['a.shp', 'a', 'a.json'])
    def test_other_endings_are_refused(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(ValueError, match=f"objects to '{name}', only to .gpkg or"):
            write_objects(self.two, tmp_path / name, Grid(UTM, SQUARE, 9, 9), None, '')
        assert not list(tmp_path.iterdir())

    def test_each_label_needs_a_name(self, tmp_path: Path) -> None:
        grid = Grid(UTM, SQUARE, 100, 80)
        with pytest.raises(ValueError, match='label 2 has no name among 2'):
            write_objects(self.two, tmp_path / 'a.gpkg', grid, ['ship', 'tank'], '')
