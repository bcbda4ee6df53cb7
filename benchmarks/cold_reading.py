# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Measure how fast chips are read from scenes that no cache holds.

First scenes of 8192 px are made, half of the bytes uint8 RGB and half uint16 of four bands, DEFLATE in blocks
of 256 px; then readers are measured, in turns, each in a process of its own, with one thread a process:

    python benchmarks/cold_reading.py make <folder> --gigabytes 12
    python benchmarks/cold_reading.py measure <folder>/rgb raw:0 torchgeo:2 ours:0 ours:2 --turns 3

Before each measurement the kernel is asked to forget the files (posix_fadvise, which needs no rights of its own).
What is named ``ours:2:16`` reads with two workers and 16 chips a region.

How the memory of one worker grows, of chips of 64 px, in MB, every 1,000 chips:

    python benchmarks/cold_reading.py grow <folder>/uint16 --chips 100000 --seconds 480
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from rasterio.transform import from_origin
from rasterio.windows import Window
from torch.utils.data import DataLoader
from torchgeo.datasets import RasterDataset
from torchgeo.samplers import RandomPatchSampler

from cmid_geo.datamodules import SceneDataModule

SIDE, CHIP, BATCH = 8192, 224, 64
#: Scenes whose pixels differ; the others are copies in files of their own, which no cache can tell.
DISTINCT = 4
KINDS = {'rgb': ('uint8', 3, 110.0, 28.0), 'uint16': ('uint16', 4, 1800.0, 500.0)}


class Dated(RasterDataset):
    """TorchGeo's dataset, told where the date is."""

    filename_regex = r'site\d_(?P<date>\d{8})'


def texture(bands: int, seed: int) -> np.ndarray:
    """Fractal noise (bands, 4096, 4096), periodic, mean 0 and spread 1; bands resemble each other."""
    rng = np.random.default_rng(seed)
    side = SIDE // 2
    rows, cols = np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)
    amplitude = 1 / np.maximum(np.hypot(rows, cols), 1 / side) ** 1.5
    layers = []
    for _ in range(bands + 1):
        noise = rng.standard_normal((side, side), dtype=np.float32)
        layer = np.fft.irfft2(np.fft.rfft2(noise) * amplitude, s=(side, side))
        layers.append((layer / layer.std()).astype(np.float32))
    return np.stack([0.95 * layers[0] + 0.3 * own for own in layers[1:]])


def make(folder: Path, gigabytes: float) -> None:
    """Write scenes of both types until they have that size."""
    for name, (dtype, bands, mean, spread) in KINDS.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        written, number, size = [], 0, 0
        profile = {
            'driver': 'GTiff', 'width': SIDE, 'height': SIDE, 'count': bands, 'dtype': dtype,
            'crs': 'EPSG:32633', 'compress': 'deflate', 'tiled': True, 'blockxsize': 256, 'blockysize': 256,
            'num_threads': 2,
        }  # fmt: skip
        while size < gigabytes * 1e9 / 2:
            site, day = number % DISTINCT, number // DISTINCT
            path = (
                folder
                / name
                / f'site{site}_2020{day // 28 + 1:02}{day % 28 + 1:02}.tif'
            )
            if number < DISTINCT:
                image = np.tile(texture(bands, number), (1, 2, 2)) * spread + mean
                # A sensor's noise is what does not compress
                image += np.random.default_rng(number).normal(
                    0, spread / 20, image.shape
                )
                place = from_origin(500000 + site * SIDE, 5000000, 1, 1)
                with rasterio.open(path, 'w', transform=place, **profile) as file:
                    file.write(image.clip(1, np.iinfo(dtype).max).astype(dtype))
                written.append(path)
            else:
                shutil.copy(written[site], path)
            size, number = size + path.stat().st_size, number + 1
        raw = SIDE * SIDE * bands * np.dtype(dtype).itemsize * number
        print(
            f'{name}: {number} scenes, {size / 1e9:.1f} GB, compressed {raw / size:.2f} times'
        )


def forget(files: list[Path]) -> None:
    """Ask the kernel to drop what it keeps of files."""
    for path in files:
        with path.open('rb') as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_raw(files: list[Path], windows: int) -> dict[str, Any]:
    """Read random windows of 256 px with rasterio, one thread, hardly any cache."""
    rng = np.random.default_rng(0)
    with rasterio.Env(GDAL_CACHEMAX=2**24):
        handles = [rasterio.open(path) for path in files]
        begin, spent = time.perf_counter(), time.process_time()
        for _ in range(windows):
            col, row = rng.integers(0, SIDE - 256, 2)
            handles[rng.integers(len(handles))].read(window=Window(col, row, 256, 256))
        rate = windows / (time.perf_counter() - begin)
        return {'rate': rate, 'CPU ms': 1e3 * (time.process_time() - spent) / windows}


def memory(pids: list[int]) -> int:
    """Resident memory in MB of the largest of some processes."""
    lines = [Path(f'/proc/{pid}/status').read_text().splitlines() for pid in pids]
    return max(
        int(line.split()[1]) // 1024
        for each in lines
        for line in each
        if 'VmRSS' in line
    )


def cpu_seconds(pids: list[int]) -> float:
    """CPU time of some processes so far, which other programs change less than the time on the clock."""
    lines = [Path(f'/proc/{pid}/stat').read_text().rsplit(')', 1)[1] for pid in pids]
    ticks = sum(int(time) for line in lines for time in line.split()[11:13])
    return ticks / os.sysconf('SC_CLK_TCK')


def drain(loader: DataLoader[Any], skip: int) -> dict[str, Any]:
    """Count the chips of a loader a second, but for its first batches."""
    iterator = iter(loader)
    workers = [each.pid for each in getattr(iterator, '_workers', [])] or [os.getpid()]
    for _ in range(skip):
        next(iterator)
    begin, chips, counted, sizes, scenes = time.perf_counter(), 0, 1, [], []
    everyone = [os.getpid(), *(pid for pid in workers if pid != os.getpid())]
    spent = cpu_seconds(everyone)
    for number, batch in enumerate(iterator):
        chips += len(batch['image'])
        if number % max(1, (len(loader) - skip) // 8) == 0:
            sizes.append(memory(workers))
        if 'scene' in batch:
            scenes.append(batch['scene'].tolist())
        if number == len(loader) - skip - 2:
            # Workers end with the last batch
            spent, counted = cpu_seconds(everyone) - spent, chips
    rate = chips / (time.perf_counter() - begin)
    dtype = str(batch['image'].dtype)
    return {
        'rate': rate, 'chips': chips, 'CPU ms': 1e3 * spent / counted, 'MB': sizes,
        'scenes': scenes, 'dtype': dtype,
    }  # fmt: skip


def read_torchgeo(files: list[Path], chips: int, workers: int) -> dict[str, Any]:
    """Read with TorchGeo's dataset, sampler and a loader."""
    dataset = Dated([str(path) for path in files])
    sampler = RandomPatchSampler(dataset, size=CHIP, length=chips + BATCH, generator=0)
    loader = DataLoader(
        dataset, BATCH, sampler=sampler, num_workers=workers,
        collate_fn=lambda samples: {'image': torch.stack([each['image'] for each in samples])},
    )  # fmt: skip
    return drain(loader, 1)


def read_ours(
    files: list[Path], chips: int, workers: int, per_region: int
) -> dict[str, Any]:
    """Read with the loader of SceneDataModule."""
    # A whole turn of the workers first, then whole regions
    skip = 2 * max(1, workers)
    options: dict[str, Any] = {} if per_region < 0 else {'chips_per_region': per_region}
    data = SceneDataModule(
        [str(path) for path in files], CHIP, chips + skip * BATCH, BATCH, workers,
        seed=0, low=0, high=255, **options,
    )  # fmt: skip
    data.setup('fit')
    forget(files)
    result = drain(data.train_dataloader(), skip)
    assert isinstance(data.dataset.scenes, tuple)
    starts = [scene.start for scene in data.dataset.scenes]
    scenes = result.pop('scenes')
    result['scenes a batch'] = statistics.median(len(set(each)) for each in scenes)
    result['dates a batch'] = statistics.median(
        len({starts[i] for i in each}) for each in scenes
    )
    return result


def one(folder: Path, what: str, chips: int) -> dict[str, Any]:
    """Measure one reader."""
    torch.set_num_threads(1)
    files = sorted(folder.glob('*.tif'))
    name, workers, per_region = (*what.split(':'), '-1')[:3]
    forget(files)
    if name == 'raw':
        return read_raw(files, max(500, chips // 4))
    if name == 'torchgeo':
        found = read_torchgeo(files, max(BATCH * 4, chips // 8), int(workers))
        return {key: found[key] for key in ('rate', 'dtype')}
    return read_ours(files, chips, int(workers), int(per_region))


def grow(folder: Path, chips: int, seconds: float, size: int) -> None:
    """Print the memory of a worker, in MB: its own, that of files, and what it shares with the reader."""
    files = [str(path) for path in sorted(folder.glob('*.tif'))]
    data = SceneDataModule(files, size, chips, BATCH, 1, seed=0, low=0, high=255)
    data.setup('fit')
    iterator: Any = iter(data.train_dataloader())
    status, begin, told = Path(f'/proc/{iterator._workers[0].pid}/status'), time.perf_counter(), 0  # fmt: skip
    for number, _ in enumerate(iterator, 1):
        if number * BATCH // 1000 > told or number == 1:
            told, past = number * BATCH // 1000, time.perf_counter() - begin
            lines = (line.split() for line in status.read_text().splitlines())
            parts = {line[0]: int(line[1]) // 1024 for line in lines if line[0].startswith('Rss')}  # fmt: skip
            print(number * BATCH, f'{past:.0f} s', *parts.values(), flush=True)
            if past > seconds:
                break


def measure(folder: Path, readers: list[str], turns: int, chips: int) -> None:
    """Measure readers in turns and print medians, and the ratio to the first."""
    found: dict[str, list[dict[str, Any]]] = {reader: [] for reader in readers}
    for _ in range(turns):
        for reader in readers:
            command = [
                sys.executable,
                __file__,
                'one',
                str(folder),
                reader,
                '--chips',
                str(chips),
            ]
            text = subprocess.run(
                command, check=True, stdout=subprocess.PIPE, text=True
            ).stdout
            found[reader].append(json.loads(text.splitlines()[-1]))
    base = statistics.median(each['rate'] for each in found[readers[0]])
    for reader, results in found.items():
        rates = sorted(each['rate'] for each in results)
        rest = {key: value for key, value in results[-1].items() if key != 'rate'}
        middle = statistics.median(rates)
        print(
            f'{reader}: {middle:.0f}/s ({rates[0]:.0f} to {rates[-1]:.0f}), {middle / base:.2f} times {readers[0]}, {rest}',
            flush=True,
        )


def main() -> None:
    """Make scenes, or measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('command', choices=('make', 'measure', 'one', 'grow'))
    parser.add_argument('folder', type=Path)
    parser.add_argument(
        'readers',
        nargs='*',
        help='raw:0, torchgeo:WORKERS, ours:WORKERS[:CHIPS A REGION]',
    )
    parser.add_argument('--gigabytes', type=float, default=12)
    parser.add_argument('--turns', type=int, default=3)
    parser.add_argument('--chips', type=int, default=2048)
    parser.add_argument('--seconds', type=float, default=480, help='grow: at most')
    parser.add_argument('--size', type=int, default=64, help='grow: of the chips')
    args = parser.parse_args()
    if args.command == 'make':
        make(args.folder, args.gigabytes)
    elif args.command == 'measure':
        measure(args.folder, args.readers, args.turns, args.chips)
    elif args.command == 'grow':
        grow(args.folder, args.chips, args.seconds, args.size)
    else:
        print(json.dumps(one(args.folder, args.readers[0], args.chips)))


if __name__ == '__main__':
    main()
