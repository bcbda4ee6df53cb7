# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Folders of small images, one folder a class, whose colours tell the classes."""

from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = {'blue': (40, 60, 190), 'green': (50, 170, 60), 'red': (200, 50, 40)}


def write_classes(root: Path, number: int, size: int = 64, seed: int = 0) -> None:
    """Write some images of each class, of its colour and noise."""
    rng = np.random.default_rng(seed)
    for name, colour in COLOURS.items():
        (root / name).mkdir(parents=True)
        for place in range(number):
            noise = rng.normal(0, 25, (size, size, 3))
            pixels = (np.array(colour) + noise).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f'{place}.png')
