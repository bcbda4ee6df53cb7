# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Costs of mapping a scene: memory against the scene's size, and time against the bare network.

Memory: a convolution of three bands to three maps scenes of 400 million pixels; what counts is the
process's peak above what it held with the model loaded. Speed: a segmentation network maps a scene of
4000 x 4000 pixels, and sees the same windows already in memory; both in turn, several times.
"""

import argparse
import multiprocessing
import resource
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from rasterio.transform import from_origin
from rasterio.windows import Window
from torch import nn

from cmid_geo import SemanticSegmentation
from cmid_geo.predict import SceneMapper, predict_scene
from cmid_geo.predict.job import plan_map


def write_scene(path: Path, height: int, width: int) -> Path:
    """Smooth noise, three bands uint8, tiled and compressed."""
    if path.exists():
        return path
    rng = np.random.default_rng(0)
    profile: dict[str, Any] = {
        'driver': 'GTiff', 'width': width, 'height': height, 'count': 3, 'dtype': 'uint8', 'tiled': True,
        'blockxsize': 512, 'blockysize': 512, 'compress': 'deflate', 'crs': 'EPSG:32633',
        'transform': from_origin(500_000, 5_000_000, 1, 1), 'photometric': 'rgb',
    }  # fmt: skip
    with rasterio.Env(GDAL_CACHEMAX=64), rasterio.open(path, 'w', **profile) as file:
        for row in range(0, height, 512):
            rows = min(512, height - row)
            coarse = rng.integers(1, 255, (3, 64, width // 8 + 1), np.uint8)
            fine = coarse.repeat(8, 1).repeat(8, 2)[:, :rows, :width]
            file.write(fine, window=Window(0, row, width, rows))
    return path


def peak(scene: Path, out: Path, dtype: str) -> None:
    """In a process of its own: map, and print the peak above the loaded model."""
    torch.manual_seed(0)
    model = nn.Conv2d(3, 3, 3, padding=1)
    model(torch.zeros(1, 3, 512, 512))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    start = time.perf_counter()
    predict_scene(model, scene, out, size=512, overlap=64, dtype=dtype)
    seconds = time.perf_counter() - start
    above = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before
    with rasterio.open(scene) as file:
        shape, pixels = file.shape, file.width * file.height / 1e6
    print(f'{shape[1]} x {shape[0]}, map {dtype}: peak {above:.0f} MiB above {before:.0f} MiB, '
          f'{seconds:.0f} s, {pixels / seconds:.1f} Mpx/s')  # fmt: skip


def memory(folder: Path) -> None:
    """Each scene in a fresh process."""
    spawn = multiprocessing.get_context('spawn')
    for height, width in ((20_000, 20_000), (10_000, 40_000), (5_000, 5_000)):
        scene = write_scene(folder / f'{width}x{height}.tif', height, width)
        for dtype in ('uint8', 'float32'):
            arguments = scene, folder / 'map.tif', dtype
            process = spawn.Process(target=peak, args=arguments)
            process.start()
            process.join()


def speed(folder: Path, backbone: str, size: int, batch: int, rounds: int) -> None:
    """The map and the bare network by turns."""
    scene = write_scene(folder / '4000x4000.tif', 4000, 4000)
    options = {'decoder_channels': 128}
    task = SemanticSegmentation(
        'upernet', backbone, num_classes=6, decoder_options=options
    )
    task.high.fill_(255)
    mapper = SceneMapper(task)
    job = plan_map(mapper, scene, folder / 'map.tif', size=size)
    windows = [torch.from_numpy(job.read(n)[0]) for n in range(len(job.tiling))]
    batches = [
        torch.stack(windows[i : i + batch]) / 255 for i in range(0, len(windows), batch)
    ]
    print(
        f'{backbone}, {len(windows)} windows of {size}, {torch.get_num_threads()} threads'
    )
    task.eval()
    with torch.inference_mode():
        for each in batches[:4]:
            task(each)
    ratios = []
    for number in range(rounds):
        with mapper.running('cpu'):
            start = time.perf_counter()
            for each in batches:
                task(each)
            bare = time.perf_counter() - start
        start = time.perf_counter()
        predict_scene(
            task, scene, folder / 'map.tif', size=size, batch_size=batch, device='cpu'
        )
        whole = time.perf_counter() - start
        ratios.append(bare / whole)
        print(
            f'round {number}: bare {bare:.1f} s, map {whole:.1f} s, ratio {ratios[-1]:.3f}'
        )
    print(f'median ratio {statistics.median(ratios):.3f}')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('run', choices=('memory', 'speed'))
    parser.add_argument('--out', type=Path, default=Path('runs/maps'))
    parser.add_argument('--backbone', default='resnet18')
    parser.add_argument('--size', type=int, default=512)
    parser.add_argument('--batch', type=int, default=4)
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--threads', type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    if args.run == 'memory':
        memory(args.out)
    else:
        speed(args.out, args.backbone, args.size, args.batch, args.rounds)


if __name__ == '__main__':
    main()
