# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Judge what quality.py trained, on data that no choice was made by.

    python benchmarks/quality.py run cmid aid/train --seconds 1920 --save --out runs/quality
    python benchmarks/quality_judges.py runs/quality/*.pth --aid aid --tiles segmentation --change change --out runs/judged

AID's test images by torchgeo-bench's own functions: kNN-5, and a logistic regression on 1 %, 10 % and
all labels of the training images, with 200 bootstraps. Dense, with the backbone frozen: a linear
classifier of each pixel's features of all stages, tile by tile of Dubai and city by city of OSCD,
each judged by what was learned on the others (mIoU; F1 of change, whose threshold the others
choose). Random weights and the pixels themselves are judged alike: `random:resnet18`, `pixels`.
"""

import argparse
import json
import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import timm
import torch
import torch.nn.functional as F
from quality import read
from torch import Tensor, nn
from torchgeo_bench.main import evaluate_knn, evaluate_logistic

from cmid_geo.metrics.probes import logistic_regression, split_classes, standardize

#: Decays of the logistic regression, torchgeo-bench's own.
C_VALUES = tuple(np.logspace(-6, 4, 40))
BOOTSTRAPS = 200
#: Pixels a tile or city from which linear classifiers of pixels learn, and every how many pixels are judged.
LEARNED, EVERY = 4000, 8
#: Side in pixels of the windows that go through a network, and of the part around them that is cut off.
WINDOW, MARGIN = 512, 64
CLASSES = 5


class Network(nn.Module):
    """A frozen network: images in [0, 1] to a vector of each image, or of each pixel."""

    def __init__(self, name: str) -> None:
        super().__init__()
        # Of the stages, once they have been seen
        self.widths: list[int] = []
        if name == 'pixels':
            self.network, self.mean, self.std = None, 0.0, 1.0
            return
        if name.startswith('random:'):
            torch.manual_seed(0)
            held = {'model': name.partition(':')[2], 'mean': 0.0, 'std': 1.0}
        else:
            held = torch.load(name, weights_only=True)
        self.network = timm.create_model(
            held['model'], num_classes=0, **held.get('options', {})
        )
        if 'state_dict' in held:
            self.network.load_state_dict(held['state_dict'])
        self.mean, self.std = held['mean'], held['std']
        self.to(memory_format=torch.channels_last)
        self.eval()

    def scaled(self, image: Tensor) -> Tensor:
        scaled = (image - self.mean) / self.std
        return scaled.contiguous(memory_format=torch.channels_last)

    @torch.no_grad()
    def vectors(self, images: Tensor) -> np.ndarray:
        """Vectors of images of bytes; of pixels their mean and standard deviation."""
        out = []
        for part in images.split(64):
            pixels = part.float() / 255
            if self.network is None:
                flat = pixels.flatten(2)
                out.append(torch.cat([flat.mean(2), flat.std(2)], 1))
                continue
            with torch.autocast('cpu', torch.bfloat16):
                out.append(self.network(self.scaled(pixels)).float())
        return torch.cat(out).numpy()

    @torch.no_grad()
    def pixels(self, image: Tensor, places: Tensor) -> Tensor:
        """Vectors of all stages at places, in pixels (x, y), of one image in [0, 1]."""
        if self.network is None:
            return image[0][:, places[:, 1], places[:, 0]].T
        with torch.autocast('cpu', torch.bfloat16):
            stages = self.network.forward_intermediates(
                self.scaled(image), indices=4, intermediates_only=True
            )
        self.widths = [stage.shape[1] for stage in stages]
        size = image.new_tensor([image.shape[3], image.shape[2]])
        grid = ((places + 0.5) / size * 2 - 1)[None, None]
        found = [
            F.grid_sample(stage.float(), grid, padding_mode='border', align_corners=False)
            for stage in stages
        ]  # fmt: skip
        return torch.cat(found, 1)[0, :, 0].T


def every_pixel(network: Network, image: Tensor, every: int) -> Tensor:
    """Vectors (rows x cols, width) of every so many pixels of a scene (bands, height, width) in [0, 1]."""
    height, width = image.shape[1:]
    ys, xs = (torch.arange(every // 2, side, every) for side in (height, width))
    found: Any = None
    for top in range(0, height, WINDOW):
        for left in range(0, width, WINDOW):
            # Around it too, so that seams do not count
            a, b = max(top - MARGIN, 0), max(left - MARGIN, 0)
            part = image[:, a : top + WINDOW + MARGIN, b : left + WINDOW + MARGIN]
            rows = ((ys >= top) & (ys < top + WINDOW)).nonzero()[:, 0]
            cols = ((xs >= left) & (xs < left + WINDOW)).nonzero()[:, 0]
            if not (len(rows) and len(cols)):
                continue
            y, x = torch.meshgrid(ys[rows] - a, xs[cols] - b, indexing='ij')
            places = torch.stack([x, y], -1).view(-1, 2)
            padded = F.pad(part[None], (0, -part.shape[2] % 32, 0, -part.shape[1] % 32))
            vectors = network.pixels(padded, places).half()
            if found is None:
                found = vectors.new_empty(len(ys), len(xs), vectors.shape[1])
            found[rows[:, None], cols] = vectors.view(len(rows), len(cols), -1)
    return found.flatten(0, 1)


class Pixels:
    """Linear classifier of pixels: a logistic regression on standardised features."""

    def __init__(self, known: Tensor, labels: Tensor) -> None:
        self.known = known
        self.linear = logistic_regression(standardize(known)[0], labels, 1e-2)

    @torch.no_grad()
    def __call__(self, asked: Tensor) -> Tensor:
        return torch.cat(
            [
                self.linear(standardize(self.known, part.float())[1])
                for part in asked.split(65536)
            ]
        )


def chosen(labels: Tensor, seed: int) -> Tensor:
    """Indices of pixels to learn from, as many of each class as there are, by a fixed seed."""
    generator = torch.Generator().manual_seed(seed)
    present = labels.unique()
    parts = []
    for label in present:
        mine = (labels == label).nonzero()[:, 0]
        order = torch.randperm(len(mine), generator=generator)
        parts.append(mine[order[: LEARNED // len(present)]])
    return torch.cat(parts)


def tiles(network: Network, folder: Path, stages: bool) -> dict[str, Any]:
    """mIoU of each of Dubai's tiles, by a linear classifier of the others' pixels; of each stage's vectors, too."""
    held = []
    for path in sorted(folder.glob('tile_*')):
        with rasterio.open(path / 'image.tif') as image:
            pixels = torch.from_numpy(image.read()).float() / 255
        with rasterio.open(path / 'mask.tif') as mask:
            truth = torch.from_numpy(mask.read(1)).long()
        vectors = every_pixel(network, pixels, EVERY)
        truth = truth[EVERY // 2 :: EVERY, EVERY // 2 :: EVERY].flatten()
        known = truth < CLASSES
        held.append((vectors[known], truth[known]))
    result = mean_ious(held)
    widths = network.widths if stages else []
    for place, width in enumerate(widths):
        start = sum(widths[:place])
        part = [(vectors[:, start : start + width], truth) for vectors, truth in held]
        result[f'stage {place + 1}'] = mean_ious(part)['mean']
    return result


def mean_ious(held: list[tuple[Tensor, Tensor]]) -> dict[str, Any]:
    """mIoU of each tile's pixels by those of the others."""
    scores = []
    for place, (vectors, truth) in enumerate(held):
        others = [each for other, each in enumerate(held) if other != place]
        picked = [(v[i], t[i]) for v, t in others for i in (chosen(t, 0),)]
        known, labels = (torch.cat(parts) for parts in zip(*picked))
        found = Pixels(known.float(), labels)(vectors).argmax(1)
        ious = []
        for label in truth.unique():
            both = ((found == label) & (truth == label)).sum()
            either = ((found == label) | (truth == label)).sum()
            ious.append(float(both / either))
        scores.append(float(np.mean(ious)))
    return {'mean': float(np.mean(scores)), 'each': scores}


def f1(found: Tensor, truth: Tensor) -> float:
    hit = float((found & truth).sum())
    return 2 * hit / max(float(found.sum() + truth.sum()), 1)


def cities(network: Network, folder: Path) -> dict[str, Any]:
    """F1 of change of each city, by a linear classifier of the others' differences."""
    held = []
    for path in sorted(each for each in folder.iterdir() if each.is_dir()):
        dates = []
        for file in sorted(path.glob('2*.tif')):
            with rasterio.open(file) as scene:
                raw = torch.from_numpy(scene.read([3, 2, 1]).astype(np.float32))
            low, high = (
                torch.from_numpy(np.percentile(raw, q, axis=(1, 2)))[:, None, None]
                for q in (1, 99)
            )
            dates.append(((raw - low) / (high - low)).clamp(0, 1).float())
        with rasterio.open(path / 'change.tif') as mask:
            truth = torch.from_numpy(mask.read(1)) == 1
        first, second = (every_pixel(network, date, 4) for date in dates)
        held.append(((first - second).abs(), truth[2::4, 2::4].flatten()))
    scores = []
    for place, (vectors, truth) in enumerate(held):
        others = [each for other, each in enumerate(held) if other != place]
        picked = [(v[i], t[i]) for v, t in others for i in (chosen(t.long(), 0),)]
        known, labels = (torch.cat(parts) for parts in zip(*picked))
        probe = Pixels(known.float(), labels.long())
        # Chosen by the cities that were learned from
        margins = torch.cat([probe(v)[:, 1] - probe(v)[:, 0] for v, _ in others])
        truths = torch.cat([t for _, t in others])
        tried = torch.quantile(margins[:: max(len(margins) // 100_000, 1)], torch.linspace(0.5, 0.999, 100))  # fmt: skip
        best = max(tried, key=lambda level: f1(margins > level, truths))
        scores.append(f1(probe(vectors)[:, 1] - probe(vectors)[:, 0] > best, truth))
    return {'mean': float(np.mean(scores)), 'each': scores}


def images(network: Network, data: dict[str, Any]) -> dict[str, Any]:
    """Accuracy on AID's test images, each with its 95 % interval."""
    known, asked = network.vectors(data['images']), network.vectors(data['asked'])
    labels, truth = data['labels'].numpy(), data['truth'].numpy()
    knn = evaluate_knn(known, labels, asked, truth, 0, BOOTSTRAPS)
    result: dict[str, Any] = {'knn': knn[:3]}
    known, asked = (
        each.numpy()
        for each in standardize(torch.from_numpy(known), torch.from_numpy(asked))
    )
    for name, part in (('1 %', 0.01), ('10 %', 0.1), ('all', 1.0)):
        few = (
            torch.arange(len(labels))
            if part == 1
            else split_classes(data['labels'], part)[0]
        )
        held, rest = (
            few[each].numpy() for each in split_classes(data['labels'][few], 0.2)
        )
        found = evaluate_logistic(
            known[rest], labels[rest], known[held], labels[held], asked, truth,
            C_VALUES, 0, BOOTSTRAPS, True, 'cpu', temp_scale=False,
        )  # fmt: skip
        result[f'linear, {name}'] = found[:3]
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('backbones', nargs='+')
    parser.add_argument('--aid', type=Path)
    parser.add_argument('--tiles', type=Path)
    parser.add_argument('--change', type=Path)
    parser.add_argument('--stages', action='store_true', help='judge each on tiles, too')  # fmt: skip
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--out', type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    logging.disable(logging.INFO)
    args.out.mkdir(parents=True, exist_ok=True)
    aid: dict[str, Any] = {}
    if args.aid:
        for folder, names in (('train', 'images labels'), ('test', 'asked truth')):
            for name, array in zip(names.split(), read(args.aid / folder, None)):
                aid[name] = torch.from_numpy(array)
    for name in args.backbones:
        out = args.out / f'{Path(name.replace(":", "_")).stem}.json'
        if out.exists():
            continue
        network, start = Network(name), time.time()
        result: dict[str, Any] = {}
        if args.tiles:
            result['tiles'] = tiles(network, args.tiles, args.stages)
        if args.change:
            result['change'] = cities(network, args.change)
        if aid:
            result |= images(network, aid)
        out.write_text(json.dumps(result, indent=1))
        print(name, f'{time.time() - start:.0f} s', result, flush=True)


if __name__ == '__main__':
    main()
