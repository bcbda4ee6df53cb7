# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Evaluation of frozen features on labelled images, beside random weights and image statistics."""

import copy
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset
from torchgeo.datasets import DatasetNotFoundError

from .atomic_files import write_atomically
from .callbacks.export_backbone import check_writable
from .datamodules import ImageFolderDataModule
from .metrics.bootstrap import bootstrap_interval
from .metrics.clusters import cluster_agreement
from .metrics.effective_rank import rank_me
from .metrics.probes import linear_probe, nearest_neighbours
from .models.backbones import create_backbone
from .ops.value_range import ValueRange
from .predict.checkpoint import Backbone, open_task
from .predict.outputs import backbone_of
from .tasks import CMID
from .tasks.checks import check_batch

#: Accuracies, as they are called in tables.
ACCURACIES = {'knn': 'kNN-5', 'knn_standardized': 'kNN-5, standardized', 'linear': 'linear probe'}  # fmt: skip

#: What a datamodule reads of a Trainer to choose its transforms: those of a test.
TESTING: Any = SimpleNamespace(
    training=False, validating=False, sanity_checking=False, testing=True, predicting=False
)  # fmt: skip


@dataclass(frozen=True)
class Judgement:
    """What some features are worth.

    Attributes:
        name: Of the features.
        accuracies: Fraction of the test images that is classified rightly, and the ends of its 95 %
            interval, by nearest neighbours, the same on standardized features, and a linear probe.
        nmi: Normalized mutual information of classes with as many clusters of k-means.
        rankme: Effective rank of the test images' features.
    """

    name: str
    accuracies: dict[str, tuple[float, float, float]]
    nmi: float
    rankme: float


@dataclass(frozen=True)
class Evaluation:
    """What weights are worth on labelled images.

    Attributes:
        weights: Their name.
        data: Name of the data.
        train: Number of images that classes are learned from.
        test: Number of images that are classified.
        classes: Names of the classes.
        judgements: Of the weights' features, of random weights and of the image statistics.
        confusion: Counts of the linear probe on the weights' features: true classes down, predicted ones across.
    """

    weights: str
    data: str
    train: int
    test: int
    classes: list[str]
    judgements: list[Judgement]
    confusion: list[list[int]]

    def per_class(self) -> list[tuple[str, int, float, float]]:
        """Name, test images, recall and precision of each class, by the linear probe."""
        counts = torch.tensor(self.confusion).double()
        right, true, found = counts.diagonal(), counts.sum(1), counts.sum(0)
        columns = true.long(), right / true.clamp_min(1), right / found.clamp_min(1)
        return list(zip(self.classes, *(each.tolist() for each in columns)))

    def to_json(self) -> str:
        """All numbers as JSON."""
        names = ('class', 'images', 'recall', 'precision')
        rows = [dict(zip(names, row)) for row in self.per_class()]
        return json.dumps(asdict(self) | {'per_class': rows}, indent=2)

    def __str__(self) -> str:
        """Return tables in plain text."""
        title = (
            f'{self.weights} on {self.data}: {self.train} images to learn from, {self.test} to classify, '
            f'{len(self.classes)} classes; % right, and 95 % intervals of 200 bootstraps'
        )
        lines = [title, '']
        width = max(len(each.name) for each in self.judgements)
        titles = ''.join(f'{title:>22}' for title in ACCURACIES.values())
        lines.append(f'{"":<{width}}{titles}{"NMI":>8}{"RankMe":>9}')
        for each in self.judgements:
            cells = ''
            for name in ACCURACIES:
                value, low, high = (100 * part for part in each.accuracies[name])
                cells += f'{f"{value:.1f} ({low:.1f} to {high:.1f})":>22}'
            lines.append(
                f'{each.name:<{width}}{cells}{each.nmi:>8.3f}{each.rankme:>9.1f}'
            )
        width = max(5, *map(len, self.classes))
        lines += ['', f'{"class":<{width}} images recall precision  (linear probe)']
        for name, images, recall, precision in self.per_class():
            lines.append(
                f'{name:<{width}} {images:>6} {recall:>6.3f} {precision:>9.3f}'
            )
        return '\n'.join(lines)


def evaluate(
    weights: Any,
    data: Any,
    size: int = 224,
    batch_size: int = 64,
    limit: int | None = None,
) -> Evaluation:
    """Judge the frozen features of weights by kNN, linear probe, clusters and rank.

    Images are read in the weights' own range of values, whole and not augmented; features are the mean over
    a network's cells. Beside them stand those of the same network with random weights, and the mean and standard
    deviation of each band of an image.

    Args:
        weights: Checkpoint of CMID or another task, exported file, or name of released weights.
        data: Folder of ``train`` and ``test``, each with a folder of images for each class; or a datamodule of
            labelled images, whose test set is classified, or where there is none its validation set.
        size: Side that images of a folder are brought to, in pixels, a multiple of 32 for most networks.
        batch_size: Images in a batch.
        limit: Images of each of both sets at most, drawn once; None for all.

    Returns:
        The evaluation.

    Raises:
        ValueError: If the weights cannot be used, or the images have other bands or too few classes.
    """
    if limit is not None and limit < 2:
        raise ValueError(f'limit={limit}: give a number of 2 or more, or None for all')
    task = _open(weights)
    kinds: dict[str, Callable[[Tensor], Tensor]] = {
        'weights': _pooled(task),
        'random weights': _pooled(_untrained(task)),
        'image statistics': _statistics,
    }
    if isinstance(data, str | Path):
        datamodule: Any = ImageFolderDataModule(str(data), size, batch_size)
        name = str(data)
    else:
        datamodule, name = copy.copy(data), type(data).__name__
    loaders = _sets(datamodule, _range_of(task), limit, isinstance(data, str | Path))
    learned, tested = (_embed(each, datamodule, kinds, task) for each in loaders)
    labels, truth = learned.pop('label').long(), tested.pop('label').long()
    judged, found = [], truth
    for kind in kinds:
        judgement, classes = judge(kind, learned[kind], labels, tested[kind], truth)
        judged.append(judgement)
        found = classes if kind == 'weights' else found
    number = int(torch.cat([labels, truth]).max()) + 1
    names = getattr(datamodule, 'classes', None)
    counts = torch.bincount(number * truth + found, minlength=number**2)
    return Evaluation(
        weights=str(weights),
        data=name,
        train=len(labels),
        test=len(truth),
        classes=list((names or [*map(str, range(number))])[:number]),
        judgements=judged,
        confusion=counts.view(number, number).tolist(),
    )


def judge(
    name: str,
    known: Float[Tensor, 'known dim'],
    labels: Int[Tensor, ' known'],
    asked: Float[Tensor, 'asked dim'],
    truth: Int[Tensor, ' asked'],
) -> tuple[Judgement, Int[Tensor, ' asked']]:
    """Judge features of labelled samples.

    Args:
        name: Of the features.
        known: Features of the samples to learn from.
        labels: Their classes, from 0.
        asked: Features of the samples to classify.
        truth: Their classes.

    Returns:
        The judgement, and the classes that the linear probe found.
    """
    given = known, labels, asked
    found = {
        'knn': nearest_neighbours(*given),
        'knn_standardized': nearest_neighbours(*given, standardized=True),
        'linear': linear_probe(*given),
    }
    accuracies = {}
    for kind, classes in found.items():
        right = classes == truth
        ends = bootstrap_interval(right)
        accuracies[kind] = (float(right.double().mean()), *ends)
    agreement = cluster_agreement(asked, truth)
    judgement = Judgement(name, accuracies, agreement, float(rank_me(asked)))
    return judgement, found['linear']


def write_evaluation(evaluation: Evaluation, folder: Path) -> None:
    """Write ``evaluation.txt``, ``evaluation.json`` and ``evaluation.png``.

    Args:
        evaluation: To be written.
        folder: To write to; it is made.

    Raises:
        ValueError: If it cannot be written.
    """
    from .plots.evaluation import evaluation_figure

    check_writable(folder, '--out DIR')
    texts = {'txt': f'{evaluation}\n', 'json': evaluation.to_json()}
    for ending, text in texts.items():
        write_atomically(
            folder / f'evaluation.{ending}',
            lambda path, text=text: path.write_text(text, encoding='utf-8'),
        )
    accuracies = {each.name: each.accuracies for each in evaluation.judgements}
    confusion = torch.tensor(evaluation.confusion)
    figure = evaluation_figure(accuracies, ACCURACIES, confusion, evaluation.classes)
    write_atomically(
        folder / 'evaluation.png',
        lambda path: figure.savefig(path, dpi=120, format='png'),
    )


def _open(weights: Any) -> Any:
    """Open CMID or a backbone, on a GPU where there is one."""
    task: Any = open_task(weights)
    if not isinstance(task, CMID | Backbone):
        # Of a downstream task the backbone alone
        task = Backbone(weights).eval()
    return task.to('cuda' if torch.cuda.is_available() else 'cpu')


def _range_of(task: Any) -> ValueRange | None:
    """Raw values that weights know as 0 and 1; None where they do not tell."""
    if getattr(task, 'low', None) is None or getattr(task, 'high', None) is None:
        return None
    low, high = tuple(task.low.tolist()), tuple(task.high.tolist())
    # What a task begins with, before data tell
    return ValueRange((), low, high) if any(low) or set(high) != {1.0} else None


def _untrained(task: Any) -> nn.Module:
    """The same network with random weights, which are the same each time."""
    other, own = copy.deepcopy(task), backbone_of(task)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        fresh = create_backbone(own.name, task.hparams['in_channels'], False, own.cell)
    if isinstance(other, CMID):
        other.student.backbone = other.teacher.backbone = fresh
    else:
        other.network = fresh
    return other.eval().to(next(task.parameters()).device)


def _pooled(network: nn.Module) -> Callable[[Tensor], Tensor]:
    """Features of images in [0, 1], averaged over their cells."""
    return lambda image: network(image).mean((2, 3))


def _statistics(image: Tensor) -> Tensor:
    """Mean and standard deviation of each band of images."""
    return torch.cat([image.mean((2, 3)), image.std((2, 3), unbiased=False)], 1)


def _sets(
    datamodule: Any, known: ValueRange | None, limit: int | None, whole: bool
) -> tuple[DataLoader, DataLoader]:
    """Loaders of the images to learn from and of those to classify, each in one order."""
    datamodule.prepare_data()
    datamodule.setup('fit')
    loaders = [datamodule.train_dataloader()]
    held_out = False
    try:
        datamodule.setup('test')
        loaders.append(datamodule.test_dataloader())
    except DatasetNotFoundError:
        if not getattr(datamodule, 'val_dataset', None):
            raise
        loaders.append(datamodule.val_dataloader())
        held_out = True
    if known is not None and getattr(datamodule, 'value_range', None) is not None:
        datamodule.value_range = known
    datamodule.trainer = TESTING
    known_set, asked_set = (_dataset_of(loader) for loader in loaders)
    if whole and not held_out:
        # What was held out to validate is learned from too, unless it is what is asked
        known_set = known_set.dataset
    first, second = zip(loaders, (known_set, asked_set))
    return _in_order(*first, limit), _in_order(*second, limit)


def _dataset_of(loader: Any) -> Any:
    """Data of a loader, or of the first of several."""
    return (loader[0] if isinstance(loader, list | tuple) else loader).dataset


def _in_order(loader: Any, dataset: Any, limit: int | None) -> DataLoader:
    """Load all of a dataset as a loader does, or the same draw of it each time, in one order."""
    loader = loader[0] if isinstance(loader, list | tuple) else loader
    if limit is not None and limit < len(dataset):
        drawn = torch.Generator().manual_seed(0)
        places = torch.randperm(len(dataset), generator=drawn)[:limit].sort().values
        dataset = Subset(dataset, places.tolist())
    return DataLoader(
        dataset,
        batch_size=loader.batch_size or 64,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
    )


@torch.no_grad()
def _embed(
    loader: DataLoader,
    datamodule: Any,
    kinds: dict[str, Callable[[Tensor], Tensor]],
    task: Any,
) -> dict[str, Tensor]:
    """Features of each kind and labels of a loader's images, on the CPU."""
    found: dict[str, list[Tensor]] = {name: [] for name in (*kinds, 'label')}
    device, bands = next(task.parameters()).device, task.hparams['in_channels']
    for batch in loader:
        batch = datamodule.transfer_batch_to_device(batch, device, 0)
        # Before it is scaled by a range for each of the weights' bands
        if (found_bands := batch['image'].shape[-3]) != bands:
            raise ValueError(
                f'the images have {found_bands} bands but the weights take {bands}: evaluate on images of '
                "the weights' bands"
            )
        batch = datamodule.on_after_batch_transfer(batch, 0)
        label = batch.get('label')
        if not isinstance(label, Tensor) or label.ndim != 1:
            raise ValueError(
                f"{type(datamodule).__name__} gives no 'label' with one class for each image: evaluate on "
                'data for classification'
            )
        found['label'].append(label.cpu())
        check_batch(batch, bands, 'the network')
        for name, look in kinds.items():
            found[name].append(look(batch['image']).float().cpu())
    return {name: torch.cat(parts) for name, parts in found.items()}
