# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

from pathlib import Path

import numpy as np
import pytest
import torch
from rasterfiles import noise, write

from cmid_geo.datasets import Chip, SceneDataset
from cmid_geo.datasets.masks import LabelledScenes, MaskDataset


def blocks(height: int, width: int, side: int = 8) -> np.ndarray:
    """Classes 0 to 3 in blocks."""
    rows, cols = np.mgrid[:height, :width] // side
    return ((rows + cols) % 4).astype(np.uint8)[None]


def test_masks_on_the_same_grid(tmp_path: Path) -> None:
    write(tmp_path / 'images' / 'a.tif', noise(3, 96, 128))
    labels = blocks(96, 128)
    labels[0, :5] = 255
    write(tmp_path / 'masks' / 'a.tif', labels, nodata=255)
    images = SceneDataset(tmp_path / 'images')
    masks = MaskDataset(tmp_path / 'masks', crs=images.crs, res=images.res)
    sample = LabelledScenes(images, masks)[Chip((0,), 10, 2, 40, 30)]
    assert torch.equal(sample['mask'], torch.from_numpy(labels[0, 2:32, 10:50]).long())
    assert torch.equal(sample['image'], images[Chip((0,), 10, 2, 40, 30)]['image'])
    # TorchGeo's way of saying it
    both = images & masks
    whole = both[both.bounds]
    assert torch.equal(whole['mask'], torch.from_numpy(labels[0]).long())
    assert whole['image'].shape == (3, 96, 128)


def test_masks_of_another_grid_are_never_mixed(tmp_path: Path) -> None:
    write(tmp_path / 'images' / 'a.tif', noise(1, 80, 80))
    # Twice as coarse, and shifted by 16 m
    write(
        tmp_path / 'masks' / 'a.tif',
        2 * blocks(50, 50, 5),
        origin=(499984, 5000016),
        res=20.0,
    )
    images = SceneDataset(tmp_path / 'images')
    masks = MaskDataset(tmp_path / 'masks', 9, crs=images.crs, res=images.res)
    labelled = LabelledScenes(images, masks)
    scene = masks.scenes[0]
    col = round((500000 - scene.bounds[0]) / 10)
    row = round((scene.bounds[3] - 5000000) / 10)
    sample = labelled[Chip((0,), col, row, 80, 80)]
    assert set(sample['mask'].unique().tolist()) == {0, 2, 4, 6}
    # Pixel centres at 500005 + 10 c lie in column (21 + 10 c) // 20 of the mask
    at = (21 + 10 * np.arange(80)) // 20
    expected = 2 * blocks(50, 50, 5)[0][np.ix_(at, at)]
    assert (sample['mask'].numpy() == expected).mean() > 0.99
    beyond = labelled[Chip((0,), col - 2, row - 2, 10, 10)]
    assert (beyond['mask'][:2] == 9).all() and not beyond['valid'][:2].any()


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    write(tmp_path / 'images' / 'a.tif', noise(1, 40, 40))
    write(tmp_path / 'far' / 'a.tif', blocks(40, 40), origin=(600000, 5000000))
    images = SceneDataset(tmp_path / 'images')
    with pytest.raises(ValueError, match='no image lies where the mask .*a.tif'):
        LabelledScenes(
            images, MaskDataset(tmp_path / 'far', crs=images.crs, res=images.res)
        )
    with pytest.raises(ValueError, match='crs=images.crs, res=images.res'):
        LabelledScenes(images, MaskDataset(tmp_path / 'far', res=20.0))
