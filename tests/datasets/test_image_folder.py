# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

from pathlib import Path

import pytest
import torch
from PIL import Image
from rasterfiles import noise, write
from torchgeo.datasets import DatasetNotFoundError

from cmid_geo.datasets.image_folder import ImageFolders
from cmid_geo.datasets.images import read_image


def test_folders_of_images(tmp_path: Path) -> None:
    write(tmp_path / 'b' / 'many.tif', noise(5, 20, 30))
    (tmp_path / 'a').mkdir()
    Image.new('L', (30, 20), 7).save(tmp_path / 'a' / 'grey.png')
    found = ImageFolders(tmp_path)
    assert found.classes == ['a', 'b'] and found.labels.tolist() == [0, 1]
    assert torch.equal(found[0]['image'], torch.full((3, 20, 30), 7.0))
    assert torch.equal(found[1]['image'], torch.from_numpy(noise(5, 20, 30)).float())
    (tmp_path / 'empty').mkdir()
    assert ImageFolders(tmp_path).classes == ['a', 'b']
    doubled = ImageFolders(tmp_path, lambda sample: sample | {'label': 7})
    assert doubled[0]['label'] == 7
    with pytest.raises(DatasetNotFoundError):
        ImageFolders(tmp_path / 'nowhere')
    (tmp_path / 'a' / 'broken.jpg').write_bytes(b'no image')
    with pytest.raises(ValueError, match='broken.jpg.*replace it'):
        read_image(tmp_path / 'a' / 'broken.jpg')
