# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Measure how long SceneDataset takes to open many small scenes.

Scenes of 256 px, uint8, one band and one value, each at a place and with a date of its own:

    python benchmarks/index_scenes.py make FOLDER --scenes 10000
    CMID_GEO_CACHE=CACHE python benchmarks/index_scenes.py open FOLDER

The second line once for the first opening and once more for the others. CPU seconds tell more than
seconds where others work on the same cores.
"""

import argparse
import os
import resource
import struct
import time
from pathlib import Path

import numpy as np
import rasterio
from rasterio.transform import from_origin

from cmid_geo.datasets import SceneDataset

WEST, NORTH, SIDE = 500000.0, 4500000.0, 2560.0


def make(folder: Path, scenes: int) -> None:
    """Write one scene and copies of it, with another corner in the bytes of each.

    Args:
        folder: Where to write them.
        scenes: How many.
    """
    folder.mkdir(parents=True, exist_ok=True)
    first = folder / 'first'
    with rasterio.open(
        first, 'w', driver='GTiff', width=256, height=256, count=1, dtype='uint8', compress='deflate',
        crs='EPSG:32633', transform=from_origin(WEST, NORTH, 10, 10),
    ) as file:  # fmt: skip
        file.write(np.full((1, 256, 256), 7, np.uint8))
    before, after = first.read_bytes().split(struct.pack('<2d', WEST, NORTH))
    first.unlink()
    for i in range(scenes):
        corner = WEST + SIDE * (i % 300), NORTH - SIDE * (i // 300)
        path = folder / f'scene_{i:06d}_2018{i % 12 + 1:02d}{i % 28 + 1:02d}.tif'
        path.write_bytes(before + struct.pack('<2d', *corner) + after)


def measure(folder: Path) -> None:
    """Open the scenes once and print what it took.

    Args:
        folder: The scenes.
    """
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    clock, cpu = time.perf_counter(), os.times()
    dataset = SceneDataset(folder)
    wall, then = time.perf_counter() - clock, os.times()
    own = then.user + then.system - cpu.user - cpu.system
    children = then.children_user + then.children_system
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak
    print(
        f'{len(dataset.scenes)} scenes: {wall:.2f} s, CPU {own:.2f} s and {children:.2f} s in other processes, '
        f'{grown / 1024:.0f} MB more at most; load {os.getloadavg()[0]:.1f}'
    )


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('what', choices=['make', 'open'])
    parser.add_argument('folder', type=Path)
    parser.add_argument('--scenes', type=int, default=10000)
    given = parser.parse_args()
    if given.what == 'make':
        make(given.folder, given.scenes)
    else:
        measure(given.folder)
