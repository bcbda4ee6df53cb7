# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from cocofiles import write_coco
from rasterfiles import write
from rasterio.enums import ColorInterp

from cmid_geo.datasets.coco import CocoDetection, estimate_images


def open_with(root: Path, **changes: Any) -> CocoDetection:
    """Write a data set, change the first annotation or the lists, and open it."""
    listed = write_coco(root, 'train')
    for key, value in changes.items():
        target = listed if key in listed else listed['annotations'][0]
        target[key] = value
    (root / 'train.json').write_text(json.dumps(listed))
    return CocoDetection(root / 'train', root / 'train.json')


def lit(image: torch.Tensor, value: float) -> list[int]:
    """Edges of what is at least half as bright as an object."""
    rows, cols = (image[0] > value / 2 + 10).nonzero().unbind(1)
    return [
        int(each) for each in (cols.min(), rows.min(), cols.max() + 1, rows.max() + 1)
    ]


@pytest.mark.parametrize('driver', ('PNG', 'JPEG', 'GTiff'))
def test_boxes_are_where_the_objects_are(tmp_path: Path, driver: str) -> None:
    write_coco(tmp_path, 'train', driver=driver)
    with warnings.catch_warnings():
        # Not a word of georeferencing
        warnings.simplefilter('error')
        data = CocoDetection(tmp_path / 'train', tmp_path / 'train.json')
        assert data.classes == ('background', 'car', 'ship')
        for index in range(5):
            sample = data[index]
            # By the order of the ids, not of the list
            assert sample['label'].tolist() == [2 - index % 2]
            assert sample['image'].shape == (3, 40, 60)
            value = (250, 150)[index % 2]
            off = torch.tensor(lit(sample['image'], value)) - sample['bbox_xyxy'][0]
            assert off.abs().max() <= (1 if driver == 'JPEG' else 0)
    empty = data[5]
    assert empty['bbox_xyxy'].shape == (0, 4) and empty['label'].shape == (0,)
    assert empty['bbox_xyxy'].dtype == torch.float32
    assert empty['label'].dtype == torch.int64


@pytest.mark.parametrize('size', (30, 120))
def test_scaled_images_keep_their_boxes_and_shape(tmp_path: Path, size: int) -> None:
    write_coco(tmp_path, 'train')
    whole = CocoDetection(tmp_path / 'train', tmp_path / 'train.json')
    data = CocoDetection(tmp_path / 'train', tmp_path / 'train.json', size)
    data.fill = 77
    for index in range(5):
        sample = data[index]
        assert sample['image'].shape == (3, size, size)
        box, before = sample['bbox_xyxy'][0], whole[index]['bbox_xyxy'][0]
        assert torch.allclose(box, before * size / 60)
        content = sample['image'][:, : size * 2 // 3]
        assert (
            torch.tensor(lit(content, (250, 150)[index % 2])) - box
        ).abs().max() <= 1
        assert (sample['image'][:, size * 2 // 3 :] == 77).all()


def test_many_bands_and_no_data(tmp_path: Path) -> None:
    write_coco(tmp_path, 'train', driver='GTiff', count=7, dtype='int16', nodata=20)
    data = CocoDetection(tmp_path / 'train', tmp_path / 'train.json', bands=[7, 2])
    data.fill = (1.0, 2.0)
    image = data[0]['image']
    assert image.shape == (2, 40, 60)
    # 20 is what surrounds the objects
    assert [set(band.unique().tolist()) for band in image] == [{1, 250}, {2, 250}]
    statistics = estimate_images(data, range(5))
    assert statistics.bands == (7, 2)
    assert data.fill == (1.0, 2.0)


def test_alpha_is_no_band_but_near_infrared_is(tmp_path: Path) -> None:
    for driver, bands in (('PNG', 3), ('GTiff', 4)):
        write_coco(tmp_path / driver, 'train', count=4, driver=driver)
        data = CocoDetection(
            tmp_path / driver / 'train', tmp_path / driver / 'train.json'
        )
        with rasterio.open(data.files[0]) as file:
            # GDAL takes it for one
            assert file.colorinterp[3] == ColorInterp.alpha
        assert data[0]['image'].shape[0] == bands
        assert data[0]['image'].unique().tolist() == [20, 250]


def test_bytes_are_scaled_as_such_and_others_by_percentiles(tmp_path: Path) -> None:
    write_coco(tmp_path / 'a', 'train')
    data = CocoDetection(tmp_path / 'a' / 'train', tmp_path / 'a' / 'train.json')
    statistics = estimate_images(data, range(6))
    assert (statistics.low, statistics.high) == ((0,) * 3, (255,) * 3)
    write_coco(tmp_path / 'b', 'train', driver='GTiff', dtype='float32')
    data = CocoDetection(tmp_path / 'b' / 'train', tmp_path / 'b' / 'train.json')
    statistics = estimate_images(data, range(5))
    assert (statistics.low, statistics.high) == ((20,) * 3, (250,) * 3)
    assert 0 < statistics.mean[0] < 0.2 and 0 < statistics.std[0] < 1
    assert estimate_images(data, [0], [0, 0, 0], 500).high == (500,) * 3
    with pytest.warns(UserWarning, match=r'bands \[1, 2, 3\] hardly vary'):
        assert estimate_images(data, [5]).mean == (0,) * 3
    with pytest.raises(ValueError, match='must be less than high=5'):
        estimate_images(data, [0], 20, 5)


def test_boxes_outside_are_clipped_and_those_without_area_go(tmp_path: Path) -> None:
    data = open_with(tmp_path, bbox=[-10, 30, 30, 50])
    assert data[0]['bbox_xyxy'].tolist() == [[0, 30, 20, 40]]
    for number, bbox in enumerate(([70, 5, 10, 10], [5, 5, 0, 10], [-20, 3, 20, 4])):
        data = open_with(tmp_path / str(number), bbox=bbox)
        assert data[0]['bbox_xyxy'].shape == (0, 4) and data[0]['label'].shape == (0,)


def test_crowds_are_left_out(tmp_path: Path) -> None:
    data = open_with(tmp_path, iscrowd=1)
    assert len(data[0]['label']) == 0 and len(data[1]['label']) == 1


@pytest.mark.parametrize(
    'changes, message',
    (
        ({'category_id': 9}, 'annotation 0 of .*category_id=9, which is not listed'),
        ({'image_id': 9}, 'image_id=9, which is not listed: correct or remove'),
        ({'bbox': [0, 0, float('nan'), 5]}, 'finite and not negative; correct'),
        ({'bbox': [5, 5, -3, 5]}, 'finite and not negative'),
        ({'images': []}, 'a file of COCO has'),
        ({'categories': []}, 'a file of COCO has'),
        ({'images': [{'id': 1, 'file_name': 'none.png'}]}, "names 1 files that do not exist.*none.png"),
    ),
)  # fmt: skip
def test_bad_annotations_are_refused(
    tmp_path: Path, changes: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        open_with(tmp_path, **changes)


def test_bad_files_are_refused(tmp_path: Path) -> None:
    listed = write_coco(tmp_path, 'train')
    with pytest.raises(ValueError, match='give the path of a JSON file of COCO'):
        CocoDetection(tmp_path / 'train', tmp_path / 'test.json')
    with pytest.raises(ValueError, match='need the same categories'):
        CocoDetection(
            tmp_path / 'train', tmp_path / 'train.json', classes=('background', 'ship')
        )
    data = CocoDetection(tmp_path / 'train', tmp_path / 'train.json', bands=[1, 5])
    with pytest.raises(
        ValueError, match=r'has bands 1 to 3, not \[5\]: correct bands='
    ):
        data[0]
    (tmp_path / 'train' / '1.png').write_bytes(b'no image')
    data = CocoDetection(tmp_path / 'train', tmp_path / 'train.json')
    with pytest.raises(ValueError, match='cannot read .*1.png.*replace it'):
        data[1]
    listed['images'][0]['width'] = 61
    (tmp_path / 'train.json').write_text(json.dumps(listed))
    data = CocoDetection(tmp_path / 'train', tmp_path / 'train.json')
    with pytest.raises(
        ValueError, match='has 40x60 pixels but the annotations say 40x61'
    ):
        data[0]


def test_plot_shows_truth_and_prediction(tmp_path: Path) -> None:
    write_coco(tmp_path, 'train')
    data = CocoDetection(tmp_path / 'train', tmp_path / 'train.json')
    sample = data[0]
    sample['image'] = sample['image'] / 255
    sample['prediction_bbox_xyxy'] = torch.tensor([[1.0, 2, 30, 20], [0.0, 0, 5, 5]])
    sample['prediction_label'] = torch.tensor([1, 2])
    sample['prediction_score'] = torch.tensor([0.9, 0.1])
    figure = data.plot(sample, suptitle='first')
    truth, found = figure.axes
    assert [text.get_text() for text in truth.texts] == ['ship']
    # Scores below 0.3 are not drawn
    assert [text.get_text() for text in found.texts] == ['car 0.90']
    assert found.patches[0].get_bbox().bounds == (1, 2, 29, 18)
    assert (
        truth.patches[0].get_bbox().extents.tolist() == sample['bbox_xyxy'][0].tolist()
    )


def test_small_images_weigh_as_much_as_large_ones(tmp_path: Path) -> None:
    listed: dict[str, Any] = {
        'images': [], 'categories': [{'id': 1, 'name': 'a'}], 'annotations': [],
    }  # fmt: skip
    for number, (side, value) in enumerate(((200, 200), (16, 50))):
        data = np.full((1, side, side), value, 'uint8')
        write(tmp_path / f'train/{number}.tif', data)
        entry = {'id': number, 'file_name': f'{number}.tif'}
        listed['images'].append(entry | {'height': side, 'width': side})
    (tmp_path / 'train.json').write_text(json.dumps(listed))
    data = CocoDetection(tmp_path / 'train', tmp_path / 'train.json')
    (mean,) = estimate_images(data, [0, 1], 0, 255).mean
    assert mean == pytest.approx(125 / 255, abs=1e-6)


def test_images_without_data_are_refused(tmp_path: Path) -> None:
    # All that a corner without an object has is declared to be no data
    write_coco(tmp_path, 'train', driver='GTiff', nodata=20)
    data = CocoDetection(tmp_path / 'train', tmp_path / 'train.json')
    with pytest.raises(ValueError, match='none of 1 images such as .* with data'):
        estimate_images(data, [5], 0, 255)
