# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""A card that tells what a pretrained backbone is, beside the file itself."""

import csv
import math
import re
from pathlib import Path
from typing import Any

import torch

from ..datasets.filenames import printable
from ..ops.bands import names_of

#: With the header that model hubs read.
CARD = """---
library_name: cmid_geo
tags: [remote-sensing, self-supervised-learning, feature-extraction, {model}]
---

# {model}, pretrained by CMID on {bands}

The {source}'s backbone of a run of *Contrastive Mask Image Distillation*
(Muhtar et al., IEEE TGRS 2023, https://doi.org/10.1109/TGRS.2023.3268232).

| | |
| --- | --- |
| file | `{file}`: timm's tensors, and all that is said here of values |
| network | timm's `{model}`, {in_channels} bands, no classifier |
| data | {data} |
| labels | none were used |
| training | {steps} steps of {images} chips, views of {size} px, queue of {queue_size} |
| software | cmid_geo {version}, torch {torch} |

## Values

The network takes `((raw - low) / (high - low) - mean) / std`.

| band | low | high | mean | std |
| --- | --- | --- | --- | --- |
{rows}

## How the run went

{course}

These are losses of pretraining. What the features are worth for a task has **not** been measured: compare them with
ImageNet's and with random weights on labels of your own.

## Use

```python
from torchgeo.tasks import Classification

task = Classification(model='{model}', weights='{file}', in_channels={in_channels}, num_classes=10)
```

```python
import timm
from cmid_geo import load_backbone

model = timm.create_model('{model}', in_chans={in_channels}, num_classes=10)
print(load_backbone(model, '{file}'))
```

## Limits

A run of minutes on few scenes shows that training works; it is no general-purpose backbone. It knows the sensor, the ground
sampling distance, the season and the place it saw. The licence of the imagery holds for what is made of it: it is not known here, so
name it before you pass this file on.
"""


def model_card(backbone: Path, task: Any, data: str, metrics: Path, images: int) -> str:
    """Describe an exported backbone, by what is in the file and what the run logged.

    Args:
        backbone: File of :func:`~cmid_geo.models.export_backbone`, in the format ckpt.
        task: The :class:`~cmid_geo.tasks.CMID` it comes from.
        data: What it was trained on, in words.
        metrics: The ``metrics.csv`` of the run.
        images: Chips a step.

    Returns:
        Markdown, with the header that model hubs read.
    """
    about = torch.load(backbone, weights_only=True)['hyper_parameters']
    hparams, provenance = task.hparams, about['provenance']
    places = about['bands'] or range(1, about['in_channels'] + 1)
    bands = names_of(about['bands']) or [f'band {place}' for place in places]
    rows = '\n'.join(
        f'| {_as_text(band)} | {low:g} | {high:g} | {mean:.4f} | {std:.4f} |'
        for band, low, high, mean, std in zip(
            bands, about['low'], about['high'], about['mean'], about['std']
        )
    )
    return CARD.format(
        model=about['model'],
        bands=_as_text(', '.join(bands)),
        source=about['source'],
        file=backbone.name,
        in_channels=about['in_channels'],
        data=_as_text(data),
        steps=provenance.get('steps', 'an unknown number of'),
        images=images,
        size=hparams['size'],
        queue_size=hparams['queue_size'],
        version=provenance['cmid_geo'],
        torch=torch.__version__,
        rows=rows,
        course=_course(metrics, hparams['queue_size']),
    )


def _as_text(text: str) -> str:
    """Write what Markdown, its tables and HTML would read as their own by its number."""
    # An underscore within a word is one
    special = r'[\\`*\[\]{}<>|~&#$]|(?<!\w)_|_(?!\w)'
    return re.sub(special, lambda found: f'&#{ord(found[0])};', printable(text))


def _course(metrics: Path, queue_size: int) -> str:
    """Losses over the first and the last quarter of the steps with a full queue."""
    with open(metrics, newline='') as file:
        rows = [row for row in csv.DictReader(file) if row.get('train_loss')]
    full = [
        row
        for row in rows
        if float(row['global_chance']) >= math.log1p(queue_size) - 1e-4
    ]
    if len(full) < 8:
        return f'Only {len(full)} steps had a full queue: too few to tell.'
    quarter = len(full) // 4
    lines = [
        '| | first quarter | last quarter | by chance |',
        '| --- | --- | --- | --- |',
    ]
    chances = {
        'train_reconstruction': '',
        'train_global': f'{math.log1p(queue_size):.2f}',
        'train_local': '',
        'key_rank': f'{queue_size / 2 + 1:.0f}',
    }
    for name, chance in chances.items():
        first, last = (
            sum(float(row[name]) for row in part) / quarter
            for part in (full[:quarter], full[-quarter:])
        )
        lines.append(f'| {name} | {first:.3f} | {last:.3f} | {chance} |')
    return 'Means over steps, from the first full queue on:\n\n' + '\n'.join(lines)
