# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Compare how fast chips are read by SceneDataset and by TorchGeo's RasterDataset.

One process, warm files, the same windows of single dates in the same order, the two taking turns:

    python benchmarks/read_chips.py <folder of scenes of one CRS and resolution>
"""

import argparse
import statistics
import time

import torch
from torchgeo.datasets import GeoDataset, RasterDataset
from torchgeo.datasets.utils import GeoSlice

from cmid_geo.datasets import RandomChips, SceneDataset


class DatedRasters(RasterDataset):
    """TorchGeo's dataset, told where the date is."""

    filename_regex = r'.*?(?P<date>(?<!\d)(?:19|20)\d{6}(?!\d)|(?:19|20)\d{2}(?=\.))'

    def _filepath_to_timestamp(self, filepath):  # noqa: ANN001, ANN202
        """Read a day or a year."""
        stem = str(filepath).rsplit('/', 1)[-1].rsplit('.', 1)[0]
        self.date_format = '%Y' if len(stem) == 4 else '%Y%m%d'
        return super()._filepath_to_timestamp(filepath)


def slices(dataset: SceneDataset, size: int, count: int) -> list[GeoSlice]:
    """Draw windows of single dates as TorchGeo writes them.

    Args:
        dataset: Where to draw.
        size: Side in pixels.
        count: How many.

    Returns:
        Slices in x, y and t.
    """
    drawn: list[GeoSlice] = []
    for chip in RandomChips(dataset, size, count, seed=0):
        scene = dataset.scenes[chip.scenes[0]]
        t = scene.transform
        left, top = t.c + chip.col * t.a, t.f + chip.row * t.e
        x = slice(left, left + size * t.a, t.a)
        y = slice(top + size * t.e, top, -t.e)
        drawn.append((x, y, slice(scene.start, scene.stop)))
    return drawn


def rate(dataset: GeoDataset, queries: list[GeoSlice]) -> float:
    """Measure chips per second.

    Args:
        dataset: What to read.
        queries: The windows.

    Returns:
        The rate in 1/s.
    """
    begin = time.perf_counter()
    for query in queries:
        dataset[query]
    return len(queries) / (time.perf_counter() - begin)


def main() -> None:
    """Measure, compare pixels, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('folder')
    parser.add_argument('--size', type=int, default=224)
    parser.add_argument('--chips', type=int, default=100)
    parser.add_argument('--repeats', type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(1)

    ours, theirs = SceneDataset(args.folder), DatedRasters(args.folder)
    queries = slices(ours, args.size, args.chips)
    # Reading all once to compare also warms both
    differing = [
        (ours[q]['image'] != theirs[q]['image']).float().mean() for q in queries
    ]
    equal = sum(not share for share in differing)
    print(f'equal pixels in {equal} of {len(queries)} chips', end='')
    # RasterDataset interpolates where origin + n * resolution is not whole in float64
    print(f' (share of differing pixels at most {max(differing):.2g})')

    pairs = [(rate(ours, queries), rate(theirs, queries)) for _ in range(args.repeats)]
    mine, other = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratios = sorted(a / b for a, b in pairs)
    print(f'SceneDataset {mine:.0f} chips/s, RasterDataset {other:.0f} chips/s')
    print(
        f'{statistics.median(ratios):.1f} times as fast '
        f'(from {ratios[0]:.1f} to {ratios[-1]:.1f} in {args.repeats} repeats)'
    )


if __name__ == '__main__':
    main()
