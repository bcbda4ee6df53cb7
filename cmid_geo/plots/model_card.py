# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Model card of a pretrained backbone."""

import math
import re
from pathlib import Path
from typing import Any

import torch

from ..datasets.filenames import printable
from ..models.weights.checkpoint import hash_tensors, open_checkpoint, tensors_in
from ..ops.bands import names_of
from .pretraining import read_metrics

#: Text of the card, with the header that model hubs read.
CARD = Path(__file__).with_suffix('.md')

#: What it says of the features' worth.
NOTHING_MEASURED = (
    'The losses above are of pretraining. What the features are worth for a task has **not** been measured: compare '
    "them with\nImageNet's and with random weights on labels of your own."
)
MEASURED = (
    'In each scene a linear classifier learned the commonest class of the cells (32 px) of its left half from frozen '
    'vectors of\nthem, and found those of the right half:\n\n'
)
ELSEWHERE = (
    'This is the place that the backbone was trained on. What it is worth elsewhere has **not** been measured: compare '
    "it with\nImageNet's and with random weights on labels of your own."
)


def model_card(
    backbone: Path, task: Any, data: str, metrics: Path, images: int, known: str = ''
) -> str:
    """Describe an exported backbone, by what is in the file and what the run logged.

    Args:
        backbone: File of :func:`~cmid_geo.models.export_backbone`, in the format ckpt.
        task: The :class:`~cmid_geo.tasks.CMID` it comes from.
        data: What it was trained on, in words.
        metrics: The ``metrics.csv`` of the run.
        images: Chips a step.
        known: What was measured of the features' worth, in Markdown.

    Returns:
        Markdown, with the header that model hubs read.
    """
    content = open_checkpoint(backbone)
    metadata = content['hyper_parameters']
    hparams, provenance = task.hparams, metadata['provenance']
    places = metadata['bands'] or range(1, metadata['in_channels'] + 1)
    bands = names_of(metadata['bands']) or [f'band {place}' for place in places]
    columns = (metadata[name] for name in ('low', 'high', 'mean', 'std'))
    rows = '\n'.join(
        f'| {_as_text(band)} | {low:g} | {high:g} | {mean:.4f} | {std:.4f} |'
        for band, low, high, mean, std in zip(bands, *columns)
    )
    about = metadata | {
        'hparams': hparams,
        'provenance': {'steps': 'an unknown number of'} | provenance,
        'bands': _as_text(', '.join(bands)),
        'file': backbone.name,
        # By which a push to the hub knows the card of a file
        'tensors': hash_tensors(tensors_in(content)),
        'data': _as_text(data),
        'images': images,
        'torch': torch.__version__,
        'rows': rows,
        'course': _course(metrics, hparams['queue_size']),
        'known': f'{MEASURED}{known}\n\n{ELSEWHERE}' if known else NOTHING_MEASURED,
    }
    return CARD.read_text(encoding='utf-8').format_map(about)


def _as_text(text: str) -> str:
    """Write what Markdown, its tables and HTML would read as their own by its number."""
    # An underscore within a word is one
    special = r'[\\`*\[\]{}<>|~&#$]|(?<!\w)_|_(?!\w)'
    return re.sub(special, lambda found: f'&#{ord(found[0])};', printable(text))


def _course(metrics: Path, queue_size: int) -> str:
    """Losses over the first and the last quarter of the steps with a full queue."""
    values, full = read_metrics(metrics, queue_size)
    steps = int(full.sum())
    if steps < 8:
        return f'Only {steps} steps had a full queue: too few to tell.'
    quarter = steps // 4
    lines = [
        '| | first quarter | last quarter | by chance |',
        '| --- | --- | --- | --- |',
    ]
    chances = {
        'train_global': f'{math.log1p(queue_size):.2f}',
        'key_rank': f'{queue_size / 2 + 1:.0f}',
    }
    for name in ('train_reconstruction', 'train_global', 'train_local', 'key_rank'):
        course = values[name][full]
        first, last = course[:quarter].mean(), course[-quarter:].mean()
        lines.append(f'| {name} | {first:.3f} | {last:.3f} | {chances.get(name, "")} |')
    return 'Means over steps, from the first full queue on:\n\n' + '\n'.join(lines)
