# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Folders of images with boxes, as COCO describes them."""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import rasterio

#: Category: its id, whose order is not that of the names, and its brightness.
KINDS = {'ship': (7, 250), 'car': (3, 150)}


def write_coco(
    root: Path,
    split: str,
    images: int = 6,
    height: int = 40,
    width: int = 60,
    **profile: Any,
) -> dict[str, Any]:
    """Write images with a bright rectangle each, but for the last, and say where they are."""
    folder = root / split
    folder.mkdir(parents=True)
    rng = np.random.default_rng(len(split))
    entries, boxes = [], []
    profile = {'driver': 'PNG', 'dtype': 'uint8', 'count': 3} | profile
    ending = {'PNG': 'png', 'JPEG': 'jpg', 'GTiff': 'tif'}[profile['driver']]
    for number in range(images):
        array = np.full((profile['count'], height, width), 20, profile['dtype'])
        entry = {'id': 100 + number, 'file_name': f'{number}.{ending}'}
        entries.append(entry | {'height': height, 'width': width})
        if number < images - 1:
            category, value = list(KINDS.values())[number % 2]
            x, y = (int(rng.integers(0, side - 20)) for side in (width, height))
            array[:, y : y + 12, x : x + 18] = value
            boxes.append({
                'id': number, 'image_id': 100 + number, 'category_id': category,
                'bbox': [x, y, 18, 12], 'area': 216, 'iscrowd': 0,
            })  # fmt: skip
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            with rasterio.open(
                folder / entry['file_name'], 'w', height=height, width=width, **profile
            ) as file:
                file.write(array)
    kinds = [{'id': number, 'name': name} for name, (number, _) in KINDS.items()]
    listed = {'images': entries, 'annotations': boxes, 'categories': kinds}
    (root / f'{split}.json').write_text(json.dumps(listed))
    return listed
