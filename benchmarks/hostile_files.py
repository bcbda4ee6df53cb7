# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Open damaged files by the thousand, and count how that ends.

Small files of many kinds are damaged, in the same way for the same seed, and opened in child
processes of bounded memory and time:

    python benchmarks/hostile_files.py geotiffs --count 10000 --folder kept
    python benchmarks/hostile_files.py weights --count 1000 --folder kept

A file may be read, or be refused by an error that this package raises itself. All else is a fault: an
error from elsewhere, weights that load with other values, a crash, too much memory, too much time. Such
files are kept in the folder, and the exit status is 1. Tensors of the harmless ones equal the originals.
"""

import argparse
import collections
import logging
import multiprocessing
import os
import resource
import signal
import struct
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import rasterio
import torch
from lightning.pytorch import Trainer
from rasterio.enums import Resampling
from rasterio.transform import from_origin
from timm.models import register_model
from timm.models.vision_transformer import test_vit

import cmid_geo
from cmid_geo.datasets import RandomChips, SceneDataset
from cmid_geo.models import export_backbone
from cmid_geo.predict.checkpoint import open_task
from cmid_geo.predict.inputs import open_source
from cmid_geo.tasks import CMID

#: Bytes that a child may take beyond what it has when it begins.
MEMORY = 2 * 2**30

#: Side of the images in pixels, and of the chip that is read.
SIDE, CHIP = 96, 32

#: How files end that are no fault.
GOOD = ('read', 'refused', 'loaded with equal values')

#: What damaged headers say: nothing, little, the largest of 16, 31, 32 and 64 bits.
NUMBERS = (0, 1, 3, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1)

#: Tags of a TIFF that hold sizes: of images, strips and tiles.
SIZES = (256, 257, 277, 278, 322, 323)

PACKAGE = str(Path(cmid_geo.__file__).parent)

Outcome = tuple[str, str]


# ------------------------------------------------------------------ sound files


def write_rasters(folder: Path) -> list[Path]:
    """Write small rasters of many kinds."""
    kinds: dict[str, dict[str, Any]] = {
        'plain': {'dtype': 'uint8'},
        'striped': {'dtype': 'uint16', 'compress': 'deflate', 'nodata': 0},
        'tiled': {'dtype': 'uint8', 'count': 4, 'compress': 'lzw', 'tiled': True},
        'planar': {
            'dtype': 'uint16',
            'count': 3,
            'compress': 'zstd',
            'tiled': True,
            'interleave': 'band',
        },
        'float': {
            'dtype': 'float32',
            'count': 2,
            'compress': 'deflate',
            'predictor': 3,
            'nodata': -9999,
        },
        'float_tiled': {'dtype': 'float32', 'compress': 'zstd', 'tiled': True},
        'predicted': {
            'dtype': 'uint16',
            'count': 2,
            'compress': 'lzw',
            'predictor': 2,
            'nodata': 65535,
        },
        'big': {'dtype': 'uint8', 'count': 2, 'compress': 'deflate', 'BIGTIFF': 'YES'},
        'motorola': {'dtype': 'uint16', 'ENDIANNESS': 'BIG', 'nodata': 7},
        'jpeg': {'dtype': 'uint8', 'count': 3, 'compress': 'jpeg', 'tiled': True},
        'overviews': {
            'dtype': 'uint16',
            'compress': 'deflate',
            'tiled': True,
            'nodata': 0,
        },
        'mask': {'dtype': 'uint8', 'count': 3, 'compress': 'deflate'},
        'jp2': {'dtype': 'uint16', 'count': 2, 'driver': 'JP2OpenJPEG'},
    }
    paths = [
        write_raster(folder / f'{name}.{"jp2" if "driver" in kind else "tif"}', **kind)
        for name, kind in kinds.items()
    ]
    (folder / 'virtual.vrt').write_text(
        f'<VRTDataset rasterXSize="{SIDE}" rasterYSize="{SIDE}"><SRS>EPSG:32633</SRS>\n'
        '<GeoTransform>500000, 10, 0, 5000000, 0, -10</GeoTransform>\n'
        '<VRTRasterBand dataType="Byte" band="1"><NoDataValue>0</NoDataValue><SimpleSource>\n'
        f'<SourceFilename relativeToVRT="0">{folder / "plain.tif"}</SourceFilename>\n'
        f'<SourceBand>1</SourceBand><SrcRect xOff="0" yOff="0" xSize="{SIDE}" ySize="{SIDE}"/>\n'
        f'<DstRect xOff="0" yOff="0" xSize="{SIDE}" ySize="{SIDE}"/></SimpleSource></VRTRasterBand>\n'
        '</VRTDataset>\n'
    )
    return [*paths, folder / 'virtual.vrt']


def write_raster(path: Path, **profile: Any) -> Path:
    """Write noise on smooth ground, of which a corner is not valid."""
    count, dtype = profile.setdefault('count', 1), profile['dtype']
    rng = np.random.default_rng(0)
    rows, cols = np.mgrid[:SIDE, :SIDE]
    values = rows + cols / 2 + rng.integers(1, 60, (count, SIDE, SIDE))
    values[:, :40, :40] = profile.get('nodata', 0)
    if profile.get('tiled'):
        profile |= {'blockxsize': 32, 'blockysize': 32}
    place = {'crs': 'EPSG:32633', 'transform': from_origin(5e5, 5e6, 10, 10)}
    options = {'driver': 'GTiff', 'width': SIDE, 'height': SIDE, 'photometric': 'minisblack'}  # fmt: skip
    if 'driver' in profile:
        options |= {'QUALITY': 100, 'REVERSIBLE': 'YES'}
        del options['photometric']
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(path, 'w', **place, **(options | profile)) as file,
    ):
        file.write(values.astype(dtype))
        if path.stem == 'mask':
            file.write_mask(values[0] > 0)
    if path.stem == 'overviews':
        with rasterio.open(path, 'r+') as file:
            file.build_overviews([2, 4], Resampling.nearest)
    return path


@register_model
def vit_hostile(pretrained: bool = False, **options: Any) -> Any:
    """Build a ViT of 0.4 million parameters, under a name of its family."""
    return test_vit(pretrained, **options)


def write_weights(folder: Path) -> list[Path]:
    """Write a checkpoint of pretraining, and exports of it."""
    torch.manual_seed(0)
    task = CMID('vit_hostile', in_channels=2, queue_size=64, hidden_dim=16, output_dim=8, num_prototypes=12)  # fmt: skip
    with torch.no_grad():
        task.high.fill_(255)
    trainer = Trainer(
        accelerator='cpu',
        devices=1,
        logger=False,
        default_root_dir=folder,
        enable_checkpointing=False,
    )
    trainer.strategy.connect(task)
    trainer.save_checkpoint(folder / 'task.ckpt')
    exports = ('backbone.ckpt', 'backbone.pth', 'backbone.safetensors')
    return [
        folder / 'task.ckpt',
        *(export_backbone(folder / 'task.ckpt', folder / name) for name in exports),
    ]


# ------------------------------------------------------------------ damage


def damage(data: bytes, rng: np.random.Generator) -> bytes:
    """Damage a file in one to three ways."""
    ways = (flip, truncate, duplicate, zero, number, field, field, size)
    result = bytearray(data)
    for way in rng.permutation(len(ways))[: rng.integers(1, 4)]:
        if result:
            ways[way](result, rng)
    return bytes(result)


def span(data: bytearray, rng: np.random.Generator) -> slice:
    """Draw a range of bytes, small ones more often."""
    start = int(rng.integers(len(data)))
    return slice(start, start + int(len(data) ** rng.random()))


def flip(data: bytearray, rng: np.random.Generator) -> None:
    """Change some bytes anywhere."""
    for place in rng.integers(len(data), size=rng.choice([1, 1, 2, 8, 64])):
        data[place] ^= int(rng.integers(1, 256))


def truncate(data: bytearray, rng: np.random.Generator) -> None:
    """Cut the end off."""
    del data[int(rng.integers(len(data))) :]


def duplicate(data: bytearray, rng: np.random.Generator) -> None:
    """Copy a range to another place, which moves or replaces what is there."""
    part, place = data[span(data, rng)], int(rng.integers(len(data)))
    end = place + (len(part) if rng.random() < 0.5 else 0)
    data[place:end] = part


def zero(data: bytearray, rng: np.random.Generator) -> None:
    """Set a range to 0."""
    where = span(data, rng)
    data[where] = bytes(len(data[where]))


def number(data: bytearray, rng: np.random.Generator) -> None:
    """Write an extreme number of 2, 4 or 8 bytes near the beginning or the end."""
    width, place = int(rng.choice([2, 4, 8])), int(rng.integers(min(len(data), 1024)))
    place = place if rng.random() < 0.5 else len(data) - 1 - place
    value = int(rng.choice(np.array(NUMBERS, np.uint64))) % 2 ** (8 * width)
    data[place : place + width] = value.to_bytes(width, rng.choice(['little', 'big']))


def field(data: bytearray, rng: np.random.Generator) -> None:
    """Change tag, type, count or value of a field of a TIFF's header; of others a number."""
    _change_field(data, rng, list(fields(bytes(data))))


def size(data: bytearray, rng: np.random.Generator) -> None:
    """Make an image, strips or tiles of a TIFF huge, or none; of others a number."""
    found = [each for each in fields(bytes(data)) if each[0] in SIZES]
    _change_field(data, rng, [each[:2] + each[-1:] * 3 for each in found])


def _change_field(
    data: bytearray, rng: np.random.Generator, found: list[tuple[Any, ...]]
) -> None:
    if not found:
        return number(data, rng)
    _, order, *parts = found[rng.integers(len(found))]
    place, form = parts[rng.integers(len(parts))]
    most = 2 ** (8 * struct.calcsize(form))
    value = int(rng.choice(np.array(NUMBERS, np.uint64)))
    if rng.random() < 0.5:
        value = int(rng.integers(most, dtype=np.uint64))
    struct.pack_into(order + form, data, place, value % most)
    return None


def fields(data: bytes) -> Iterator[tuple[Any, ...]]:
    """Fields of a TIFF: tag, byte order, and (place, format) of tag and type, count, value."""
    order = {b'II': '<', b'MM': '>'}.get(data[:2])
    if order is None or len(data) < 16:
        return
    big = struct.unpack_from(f'{order}H', data, 2)[0] == 43
    count, offset, entry = ('Q', 'Q', 20) if big else ('H', 'I', 12)
    number_form = 'Q' if big else 'I'
    (place,) = struct.unpack_from(order + offset, data, 8 if big else 4)
    for _ in range(8):
        try:
            (entries,) = struct.unpack_from(order + count, data, place)
            first = place + struct.calcsize(count)
            for at in range(first, first + min(entries, 64) * entry, entry):
                (tag,) = struct.unpack_from(f'{order}H', data, at)
                value = (at + 4 + struct.calcsize(number_form), number_form)
                if value[0] + 8 > len(data):
                    return
                yield tag, order, (at, 'H'), (at + 2, 'H'), (at + 4, number_form), value
            place = struct.unpack_from(order + offset, data, first + entries * entry)[0]
        except (struct.error, OverflowError):
            return
        if not place:
            return


# ------------------------------------------------------------------ trials


def read_raster(path: Path, original: Path) -> str:
    """Read a chip of a scene as training does, and a window as maps do."""
    dataset = SceneDataset(path)
    for chip in RandomChips(dataset, CHIP, 1, min_valid=0.0, seed=0):
        dataset[chip]
    open_source(path).read(0, 0, CHIP)
    return 'read'


def load_weights(path: Path, original: Path) -> str:
    """Load weights as maps do, and a task as Lightning does."""
    ways: list[Callable[[Path], Any]] = [open_task]
    if original.name == 'task.ckpt':
        ways.append(CMID.load_from_checkpoint)
    for way in ways:
        found, wanted = way(path), way(original)
        own, other = found.state_dict(), wanted.state_dict()
        same = own.keys() == other.keys() and all(
            torch.equal(own[name], other[name]) for name in own
        )
        if not same or dict(found.hparams) != dict(wanted.hparams):
            return 'loaded with other values'
    return 'loaded with equal values'


def attempt(trial: Callable[[Path, Path], str], path: Path, original: Path) -> Outcome:
    """Try a file: how it ended, and of faults the error and its place."""
    try:
        return trial(path, original), ''
    except MemoryError:
        return 'out of memory', place_of(sys.exc_info()[2])[1]
    # To find out which there are
    except Exception as error:  # noqa: BLE001
        last, place = place_of(error.__traceback__)
        # Not what an expression of ours ran into, but what a line of ours raises
        if last.filename.startswith(PACKAGE) and (last.line or '').startswith('raise'):
            return 'refused', type(error).__name__
        return 'fault', f'{type(error).__name__} at {place}: {str(error)[:100]}'


def place_of(trace: Any) -> tuple[traceback.FrameSummary, str]:
    """Place that raised an error, and the last place of this package on the way there."""
    frames = traceback.extract_tb(trace)
    own = [each for each in frames if each.filename.startswith(PACKAGE)] or frames
    where = f'{Path(own[-1].filename).name}:{own[-1].name}'
    return frames[-1], where


def child(pipe: Any, trial: Any, files: list[Path], folder: Path, log: Path, seed: int) -> None:  # fmt: skip
    """Damage and try the files whose numbers come through the pipe."""
    with open(log, 'w') as file:
        os.dup2(file.fileno(), 2)
    torch.set_num_threads(1)
    warnings.simplefilter('ignore')
    pages = int(Path('/proc/self/statm').read_text().split()[0])
    most = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    while True:
        number = pipe.recv()
        path, original = damaged_file(files, folder, seed, number)
        pipe.send(attempt(trial, path, original))
        for each in folder.glob(f'{path.name}*'):
            each.unlink()


def damaged_file(
    files: list[Path], folder: Path, seed: int, number: int
) -> tuple[Path, Path]:
    """Write a damaged file, or a sound one for a number below 0; its path and the original's."""
    original = files[number % len(files)]
    path, data = folder / f'{number:06d}_{original.name}', original.read_bytes()
    if number >= 0:
        data = damage(data, np.random.default_rng([seed, number]))
    path.write_bytes(data)
    return path, original


class Child:
    """A process that tries files one after another."""

    def __init__(self, *args: Any) -> None:
        self.pipe, other = multiprocessing.Pipe()
        # Forked: it need not import anything again
        context = multiprocessing.get_context('fork')
        self.process = context.Process(target=child, args=(other, *args), daemon=True)
        self.process.start()
        other.close()
        self.log: Path = args[-2]

    def try_file(self, number: int, seconds: float) -> Outcome:
        """Try one; after a crash or too long a time the child is dead."""
        self.pipe.send(number)
        if not self.pipe.poll(seconds):
            self.stop()
            return 'timeout', f'{seconds:g} s'
        try:
            return self.pipe.recv()
        except EOFError:
            self.process.join()
        code = self.process.exitcode or 0
        said = self.log.read_text(errors='replace')
        if 'bad_alloc' in said:
            return 'out of memory', 'bad_alloc'
        if code > 0:
            # Not the file's fault but this script's
            raise RuntimeError(said)
        return 'crash', signal.Signals(-code).name

    def stop(self) -> None:
        """End it."""
        self.process.kill()
        self.process.join()


def run(trial: Any, write: Any, args: argparse.Namespace) -> collections.Counter[Outcome]:  # fmt: skip
    """Try all files: how often each came out."""
    counts: collections.Counter[Outcome] = collections.Counter()
    kept = args.folder
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / 'sound').mkdir()
        (folder / 'damaged').mkdir()
        files = write(folder / 'sound')
        rest = (trial, files, folder / 'damaged', folder / 'log', args.seed)
        current: Child | None = None
        for number in (*range(-len(files), 0), *range(args.first, args.first + args.count)):  # fmt: skip
            if current is None or not current.process.is_alive():
                current = Child(*rest)
            told = current.try_file(number, args.seconds)
            if number < 0:
                if told[0] not in GOOD or told[0] == 'refused':
                    raise RuntimeError(f'{files[number].name} is sound but: {told}')
                continue
            counts[told] += 1
            if told[0] not in GOOD:
                print(f'{number:06d} {files[number % len(files)].name}: {told}', flush=True)  # fmt: skip
                if kept is not None:
                    kept.mkdir(parents=True, exist_ok=True)
                    damaged_file(files, kept, args.seed, number)
        if current is not None:
            current.stop()
    return counts


def main() -> int:
    """Try damaged files; 1 if there was a fault."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('kind', choices=['geotiffs', 'weights'])
    parser.add_argument('--count', type=int, default=1000, help='files to damage')
    parser.add_argument('--first', type=int, default=0, help='number of the first')
    parser.add_argument('--seed', type=int, default=0, help='of the damage')
    parser.add_argument('--seconds', type=float, default=20, help='a file may take')
    parser.add_argument('--folder', type=Path, help='to keep files that made a fault')
    args = parser.parse_args()
    parts = {
        'geotiffs': (read_raster, write_rasters),
        'weights': (load_weights, write_weights),
    }
    warnings.simplefilter('ignore')
    logging.getLogger('lightning.pytorch').setLevel(logging.ERROR)
    torch.set_num_threads(1)
    counts = run(*parts[args.kind], args)
    totals: collections.Counter[str] = collections.Counter()
    for (kind, detail), times in sorted(counts.items()):
        totals[kind] += times
        print(f'{times:6d} {kind} {detail}')
    print(', '.join(f'{kind}: {times}' for kind, times in sorted(totals.items())))
    return int(any(kind not in GOOD for kind in totals))


if __name__ == '__main__':
    sys.exit(main())
