# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Seams of windows in a map: how often the class changes across their edges, and elsewhere.

A map without seams changes as often across the edge of a window as between any two pixels.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import rasterio

from cmid_geo.predict import predict_scene
from cmid_geo.predict.tiling import cut_scene


def changes(labels: np.ndarray, starts: tuple[int, ...], size: int, axis: int) -> str:
    """Fraction of neighbours with other classes across windows' edges, elsewhere, and their ratio."""
    differs = (np.diff(labels.astype(int), axis=axis) != 0).mean(axis=1 - axis)
    edges = {*starts, *(start + size for start in starts)}
    seams = [edge - 1 for edge in edges if 2 < edge < labels.shape[axis] - 2]
    near = [seam + beside for seam in seams for beside in (-1, 0, 1)]
    others = np.setdiff1d(np.arange(len(differs)), near)
    across, elsewhere = differs[seams].mean(), differs[others].mean()
    return f'{across:.4f} / {elsewhere:.4f} = {across / elsewhere:.2f}'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('checkpoint')
    parser.add_argument('scene')
    parser.add_argument('--mask', help='true classes, 255 where not known')
    parser.add_argument('--size', type=int, default=256)
    parser.add_argument('--overlaps', type=int, nargs='+', default=[0, 32, 64, 96])
    parser.add_argument('--out', type=Path, default=Path('runs/seams'))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for overlap in args.overlaps:
        start = time.perf_counter()
        out = predict_scene(
            args.checkpoint, args.scene, args.out / f'{overlap}.tif', size=args.size,
            overlap=overlap, device='cpu',
        )  # fmt: skip
        seconds = time.perf_counter() - start
        with rasterio.open(out) as file:
            labels = file.read(1)
        tiling = cut_scene(*labels.shape, args.size, overlap)
        found = [
            changes(labels, axis.starts, args.size, number)
            for number, axis in enumerate((tiling.down, tiling.across))
        ]
        right = ''
        if args.mask:
            with rasterio.open(args.mask) as file:
                truth = file.read(1)
            right = f', accuracy {(labels == truth)[truth != 255].mean():.4f}'
        print(f'overlap {overlap}: {len(tiling)} windows, {seconds:.1f} s, rows {found[0]}, '
              f'columns {found[1]}{right}')  # fmt: skip


if __name__ == '__main__':
    main()
