# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

import math
from collections.abc import Callable

import numpy as np
import pytest
import shapely
import torch
from torch import Tensor

from cmid_geo.metrics.rotated_mean_average_precision import THRESHOLDS, RotatedMAP
from cmid_geo.ops.rotated_boxes import corners

Image = dict[str, Tensor]


def row_of(*shifts: float, scores: list[float] | None = None, label: int = 1) -> Image:
    """Boxes of 10 x 4 pixels, each shifted along its length from its own place."""
    boxes = torch.tensor([[100.0 * i + s, 50, 10, 4, 0] for i, s in enumerate(shifts)])
    found = {'boxes': boxes.reshape(-1, 5), 'labels': torch.full((len(shifts),), label)}
    return found if scores is None else found | {'scores': torch.tensor(scores)}


def measure(
    predictions: list[Image], targets: list[Image], classes: int = 3
) -> dict[str, Tensor]:
    metric = RotatedMAP(classes)
    metric.update(predictions, targets)
    return metric.compute()


def curve(verdicts: list[tuple[float, bool]], count: int) -> list[tuple[float, float]]:
    """Recall and precision after each detection, the best first."""
    points, hits = [], 0
    ordered = sorted(verdicts, key=lambda pair: -pair[0])
    for number, (_, hit) in enumerate(ordered, 1):
        hits += hit
        points.append((hits / count, hits / number))
    return points


def of_all(label: int, verdicts: list[tuple[float, bool]], count: int) -> float:
    """The area, by the loop: each recall's best precision at that recall or more."""
    points = curve(verdicts, count)
    area, last = 0.0, 0.0
    for recall in sorted({recall for recall, _ in points}):
        area += (recall - last) * max(p for r, p in points if r >= recall)
        last = recall
    return area


def of_eleven(label: int, verdicts: list[tuple[float, bool]], count: int) -> float:
    """VOC's measure of 2007, by the loop: the best precision at each recall or more."""
    points = curve(verdicts, count)
    best = [
        max((p for r, p in points if r >= recall), default=0.0)
        for recall in np.arange(0.0, 1.1, 0.1)
    ]
    return sum(best) / 11


def slow_map(
    predictions: list[Image], targets: list[Image], threshold: float, classes: int,
    measure: Callable[[int, list[tuple[float, bool]], int], float] = of_all,
) -> list[float]:  # fmt: skip
    """VOC's counting, with shapely's polygons."""
    areas = []
    for label in range(1, classes):
        verdicts, count = [], 0
        for found, wanted in zip(predictions, targets, strict=True):
            objects = [
                (shapely.Polygon(points), bool(hard))
                for points, one, hard in zip(corners(wanted['boxes'].double()).numpy(), wanted['labels'], wanted['difficult'])
                if one == label
            ]  # fmt: skip
            count += sum(not hard for _, hard in objects)
            taken = set()
            for i in found['scores'].argsort(descending=True).tolist():
                if found['labels'][i] != label:
                    continue
                box = shapely.Polygon(corners(found['boxes'][i].double()).numpy())
                shares = [
                    box.intersection(o).area / box.union(o).area for o, _ in objects
                ]
                best = int(np.argmax(shares)) if shares else -1
                if best < 0 or shares[best] <= threshold:
                    verdicts.append((found['scores'][i].item(), False))
                elif not objects[best][1]:
                    verdicts.append((found['scores'][i].item(), best not in taken))
                    taken.add(best)
        areas.append(measure(label, verdicts, count) if count else math.nan)
    return areas


class TestClosedForms:
    def test_the_truth_itself(self) -> None:
        found = measure([row_of(0, 0, scores=[0.9, 0.8])], [row_of(0, 0)])
        assert found['map'] == found['map_50'] == found['map_75'] == 1
        assert (
            found['map_50_per_class'][0] == 1 and found['map_50_per_class'][1].isnan()
        )

    def test_shifted_boxes_are_hits_up_to_their_overlap(self) -> None:
        # (10 - s) / (10 + s) > t: 0.6 is above 0.5 and 0.55 only (strictly above)
        found = measure([row_of(2.49, scores=[0.9])], [row_of(0)])
        assert found['map_50'] == 1 and found['map_75'] == 0
        assert found['map'] == pytest.approx(0.3)

    def test_a_turned_box_is_none(self) -> None:
        target, found = row_of(0), row_of(0, scores=[0.9])
        found['boxes'][0, 4] = math.pi / 2
        assert measure([found], [target])['map_50'] == 0
        # Boxes that are the same in another form
        found['boxes'] = torch.tensor([[0.0, 50, 4, 10, -math.pi / 2]])
        assert measure([found], [target])['map'] == 1

    def test_half_found(self) -> None:
        assert measure([row_of(0, scores=[0.9])], [row_of(0, 0)])['map_50'] == 0.5

    @pytest.mark.parametrize(('found', 'points'), [(1, 2), (3, 3), (5, 6), (10, 11)])
    def test_dota_counts_eleven_points(self, found: int, points: int) -> None:
        # Of ten objects, of which so many are found; 3 * 0.1 is more than 0.3 to DOTA too
        some = row_of(*[0] * found, scores=[0.9] * found)
        result = measure([some], [row_of(*[0] * 10)])
        assert result['map_50_11_points'].item() == pytest.approx(points / 11)
        assert result['map_50'].item() == pytest.approx(found / 10)

    @pytest.mark.parametrize(('score', 'expected'), [(0.95, 0.5), (0.1, 1.0)])
    def test_a_false_one_counts_only_before_the_true(
        self, score: float, expected: float
    ) -> None:
        found = row_of(0, 50, scores=[0.9, score])
        assert measure([found], [row_of(0)])['map_50'] == expected

    def test_the_second_of_one_object_is_false(self) -> None:
        found = row_of(0, scores=[0.9])
        double = {k: torch.cat([v, v]) for k, v in found.items()}
        double['scores'] = torch.tensor([0.9, 0.8])
        first = measure([double, row_of(0, scores=[0.7])], [row_of(0), row_of(0)])
        # Hits at ranks 1 and 3 of 3
        assert first['map_50'].item() == pytest.approx((1 + 2 / 3) / 2)

    def test_precision_is_made_to_fall(self) -> None:
        # miss, hit, hit: precisions 0, 1/2, 2/3 become 2/3 for both hits
        found = row_of(50, 0, 0, scores=[0.9, 0.8, 0.7])
        target = {k: v[1:] for k, v in row_of(0, 0, 0).items()}
        assert measure([found], [target])['map_50'].item() == pytest.approx(2 / 3)

    def test_difficult_objects_count_neither_way(self) -> None:
        target = row_of(0, 0) | {'difficult': torch.tensor([False, True])}
        with_it = measure([row_of(0, 0, scores=[0.8, 0.9])], [target])
        without = measure([row_of(0, scores=[0.8])], [target])
        assert with_it['map'] == without['map'] == 1

    def test_classes_do_not_mix(self) -> None:
        found = measure([row_of(0, scores=[0.9], label=2)], [row_of(0)])
        assert found['map_50'] == 0 and found['map_50_per_class'][1].isnan()

    def test_nothing_at_all(self) -> None:
        assert measure([row_of(scores=[])], [row_of()])['map'].isnan()
        assert measure([row_of(scores=[])], [row_of(0)])['map'] == 0
        assert measure([row_of(scores=[])], [row_of(0)])['map_50_11_points'] == 0
        assert measure([row_of(scores=[])], [row_of()])['map_50_11_points'].isnan()
        assert measure([row_of(0, scores=[0.5])], [row_of()])['map'].isnan()
        # A false detection in an image without objects counts
        found = measure(
            [row_of(0, scores=[0.9]), row_of(0, scores=[0.5])], [row_of(), row_of(0)]
        )
        assert found['map_50'] == 0.5

    def test_lengths_must_agree(self) -> None:
        with pytest.raises(ValueError, match='1 predictions but 0 targets'):
            RotatedMAP(3).update([row_of(scores=[])], [])


class TestSlowLoop:
    def images(self) -> tuple[list[Image], list[Image]]:
        predictions, targets = [], []
        for image in range(6):
            number = 8 * (image != 2)
            boxes = torch.rand(number, 5) * torch.tensor(
                [60, 60, 25, 10, 3]
            ) + torch.tensor([0, 0, 6, 3, 0])
            labels = torch.randint(1, 4, (number,))
            difficult = torch.rand(number) < 0.2
            targets.append({'boxes': boxes, 'labels': labels, 'difficult': difficult})
            near = boxes.repeat(3, 1) + torch.randn(number * 3, 5) * torch.tensor(
                [1, 1, 1, 0.5, 0.08]
            )
            wild = torch.rand(5, 5) * torch.tensor([60, 60, 25, 10, 3]) + torch.tensor(
                [0, 0, 6, 3, 0]
            )
            labels = torch.cat([labels.repeat(3), torch.randint(1, 4, (5,))])
            predictions.append({
                'boxes': torch.cat([near, wild]).clamp(min=0.5), 'labels': labels, 'scores': torch.rand(len(labels)),
            })  # fmt: skip
        return predictions, targets

    def test_equals_the_slow_loop(self) -> None:
        predictions, targets = self.images()
        found = measure(predictions, targets, 5)
        slow = [slow_map(predictions, targets, t, 5) for t in THRESHOLDS]
        assert 0.1 < np.nanmean(slow[0]) < 0.9
        assert found['map_50'].item() == pytest.approx(np.nanmean(slow[0]), abs=1e-6)
        assert found['map_75'].item() == pytest.approx(np.nanmean(slow[5]), abs=1e-6)
        dota = np.nanmean(slow_map(predictions, targets, 0.5, 5, of_eleven))
        assert found['map_50_11_points'].item() == pytest.approx(dota, abs=1e-6)
        assert abs(dota - np.nanmean(slow[0])) > 1e-3
        assert found['map'].item() == pytest.approx(np.nanmean(slow), abs=1e-6)
        assert found['map_50_per_class'].tolist() == pytest.approx(
            slow[0], abs=1e-6, nan_ok=True
        )

    def test_batches_change_nothing(self) -> None:
        predictions, targets = self.images()
        metric = RotatedMAP(5)
        for found, wanted in zip(predictions, targets, strict=True):
            metric.update([found], [wanted])
        together = measure(predictions, targets, 5)
        assert metric.compute()['map'] == together['map']
        metric.reset()
        assert metric.compute()['map'].isnan()
