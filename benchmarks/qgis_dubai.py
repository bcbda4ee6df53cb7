# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Whether the tools of QGIS's users map a real scene as predict_scene does.

    python benchmarks/segmentation_dubai.py segmentation --epochs 4 --out runs/dubai
    python benchmarks/qgis_dubai.py runs/dubai/upernet.ckpt segmentation/tile_6/image.tif --python117 PYTHON --out runs/dubai

The task is exported twice: with raw values for Deepness, whose onnxruntime is 1.17 (*PYTHON* has it and NumPy below 2),
and with bytes over 255 for GeoDeep. All three cut the same windows without an overlap; pixels near seams, where GeoDeep's
median of 5x5 pixels mixes two windows or windows lie on each other, are left out.
"""

import argparse
import subprocess
import tempfile
from pathlib import Path

import geodeep
import numpy as np
import rasterio
from scipy.ndimage import median_filter

from cmid_geo.predict import export_task, predict_scene

#: Pixels on either side of a seam: the radius of GeoDeep's median, and two more.
MARGIN = 4

RUN = """
import sys, numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=['CPUExecutionProvider'])
scene = numpy.load(sys.argv[2], mmap_mode='r')
size, (rows, columns) = int(sys.argv[4]), scene.shape[1:]
starts = [sorted({*range(0, side - size, size), side - size}) for side in (rows, columns)]
out = numpy.zeros((rows, columns), 'uint8')
for row in starts[0]:
    for column in starts[1]:
        image = scene[None, :, row : row + size, column : column + size].astype('float32')
        found = session.run(None, {'image': image})[0]
        out[row : row + size, column : column + size] = found[0].argmax(0)
numpy.save(sys.argv[3], out)
print('onnxruntime', onnxruntime.__version__)
"""


def away_from_seams(shape: tuple[int, int], size: int) -> np.ndarray:
    """Pixels that lie in one window, and not near its edge."""
    inner = np.ones(shape, bool)
    for axis, side in enumerate(shape):
        along = np.ones(side, bool)
        for start in range(0, side, size):
            along[max(start - MARGIN, 0) : start + MARGIN] = False
        # The last window is moved inwards, over the one before it
        last = side - size
        along[max(last - MARGIN, 0) : last // size * size + size + MARGIN] = False
        along[-MARGIN:] = False
        inner &= along[:, None] if axis == 0 else along[None]
    return inner


def by_runtime(
    python: str, program: Path, image: np.ndarray, size: int, folder: Path
) -> np.ndarray:
    """Classes of the windows by another Python's onnxruntime."""
    np.save(folder / 'scene.npy', image)
    names = [str(folder / name) for name in ('scene.npy', 'classes.npy')]
    subprocess.run([python, '-c', RUN, str(program), *names, str(size)], check=True)
    return np.load(folder / 'classes.npy')


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('task', type=Path)
    parser.add_argument('scene', type=Path)
    parser.add_argument('--python117')
    parser.add_argument('--size', type=int, default=512)
    parser.add_argument('--out', type=Path, default=Path('runs/dubai'))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    mapped = predict_scene(
        args.task, args.scene, args.out / 'map.tif', size=args.size, overlap=0
    )
    with rasterio.open(mapped) as file:
        classes, nodata = file.read(1), file.nodata
    with rasterio.open(args.scene) as file:
        image, resolution = file.read(), 100 * file.res[0]
    inner = away_from_seams(classes.shape, args.size) & (classes != nodata)
    print(f'{inner.sum()} of {inner.size} pixels compared; classes {np.bincount(classes[inner])}')  # fmt: skip
    given = {'size': args.size, 'resolution': resolution, 'tiles_overlap': 0}
    if args.python117:
        program = export_task(args.task, args.out / 'deepness.onnx', **given)
        with tempfile.TemporaryDirectory() as folder:
            found = by_runtime(
                args.python117, program, image, args.size, Path(folder)
            )  # fmt: skip
        print(f'onnxruntime 1.17: {100 * (found == classes)[inner].mean():.4f} % of pixels the same')  # fmt: skip
    program = export_task(args.task, args.out / 'geodeep.onnx', divisor=255, **given)
    found = geodeep.segment(str(args.scene), str(program))
    smooth = median_filter(classes, 5)
    print(f'GeoDeep: {100 * (found == smooth)[inner].mean():.4f} % of pixels the same')


if __name__ == '__main__':
    main()
