# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Small images with rotated boxes, in DOTA's format."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image

from cmid_geo.ops.rotated_boxes import corners

NAMES = ('plane', 'ship')
#: In images of 100 x 70 pixels: one at the left, one across the middle, one at the right bottom
BOXES = (
    ('ship', (20.0, 20, 24, 8, 0.5), 0),
    ('plane', (50.0, 30, 20, 20, 0.2), 1),
    ('ship', (85.0, 55, 20, 6, -0.4), 0),
)


def write_image(
    path: Path, width: int = 100, height: int = 70, mode: str = 'RGB'
) -> None:
    """Red is the column, green the row, blue 7."""
    path.parent.mkdir(parents=True, exist_ok=True)
    row, col = np.mgrid[:height, :width]
    values = np.stack([col, row, np.full_like(row, 7)], -1).astype(np.uint8)
    Image.fromarray(values if mode == 'RGB' else values[..., 0]).save(path)


def write_labels(path: Path, boxes: Any = BOXES, header: bool = True) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ['imagesource:GoogleEarth', 'gsd:0.146'] if header else []
    for name, box, hard in boxes:
        points = corners(torch.tensor([box], dtype=torch.float64)).flatten().tolist()
        lines.append(' '.join(f'{p:.3f}' for p in points) + f' {name} {hard}')
    path.write_text('\n'.join(lines) + '\n')


def write_dota(folder: Path) -> Path:
    """TorchGeo's layout: three images to train on and three to validate on."""
    rows = []
    for split in ('train', 'val'):
        for index in range(3):
            image = Path(split, 'images', f'P{split}{index}.png')
            labels = Path(split, 'annotations', 'version1.0', f'P{split}{index}.txt')
            write_image(folder / image)
            write_labels(folder / labels)
            rows.append({'image_path': str(image), 'annotation_path': str(labels), 'split': split, 'version': 1.0})  # fmt: skip
    pd.DataFrame(rows).to_csv(folder / 'samples.csv', index=False)
    return folder
