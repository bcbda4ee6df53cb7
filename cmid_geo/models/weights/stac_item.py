# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""STAC items of exported files, by the Machine Learning Model extension."""

import json
import math
import os
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import torch

from ...atomic_files import write_atomically
from ...options import Format
from ...version import __version__
from ..backbones import create_backbone
from .checkpoint import open_checkpoint
from .export import format_of
from .hub import ITEM

#: Version of the extension that the items follow.
SCHEMA = 'https://stac-extensions.github.io/mlm/v1.5.0/schema.json'

#: By the format of a file: framework, kind of artifact, and role beside 'mlm:model'.
KINDS: dict[str, tuple[str, str, str]] = {
    'ckpt': ('pytorch', 'torch.save', 'mlm:weights'),
    'safetensors': ('pytorch', 'safetensors.torch.save_file', 'mlm:weights'),
    'onnx': ('onnx', 'onnx', 'mlm:compiled'),
    'torchscript': ('pytorch', 'torch.jit.save', 'mlm:compiled'),
}

#: Names of frameworks, as the extension lists them.
FRAMEWORKS = {'pytorch': 'PyTorch', 'onnx': 'ONNX'}

#: Tasks of the extension, by what our exports name; features serve the search of similar places.
TASKS = {
    'SemanticSegmentation': 'semantic-segmentation',
    'ChangeDetection': 'semantic-segmentation',
    'Classification': 'scene-classification',
}
FEATURES = 'similarity-search'

IMAGE = ['batch', 'bands', 'height', 'width']


def write_stac_item(path: str | os.PathLike[str], format: Format | None = None) -> Path:
    """Write a STAC item beside an exported file, by what the file says of itself.

    The item is of STAC 1.1 with the Machine Learning Model extension 1.5. Geometry, ``bbox``, ``start_datetime`` and
    ``end_datetime`` are those of the training scenes. Where the file does not tell their place, the geometry is null, as
    STAC allows; where it does not tell their dates, ``datetime`` is the time at which the item is written. ``value_scaling``
    is what has to be done to raw values, clipped as the input's description says, before the file takes them: nothing for programs, which do it themselves, unless they
    were exported with a divisor.

    Args:
        path: What :func:`~cmid_geo.models.export_backbone` or :func:`~cmid_geo.predict.export_task` wrote.
        format: Told by the ending of *path* by default.

    Returns:
        Path of the item, ``FILE.stac.json``.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file does not tell its network and its values.
    """
    path = Path(path)
    kind = format_of(path, format)
    about = _read(path, kind)
    known = (
        ('low', 'in_channels')
        if kind in ('onnx', 'torchscript')
        else ('low', 'mean', 'std', 'in_channels')
    )
    if not all(map(about.get, known)):
        raise ValueError(
            f'{path.name} does not tell its bands and values: write the item of a file by cmid-geo export'
        )
    item = json.dumps(_item(path, kind, about), indent=2, allow_nan=False)
    target = path.with_name(f'{path.name}{ITEM}')
    write_atomically(target, lambda file: file.write_text(item, encoding='utf-8'))
    return target


def _read(path: Path, kind: str) -> dict[str, Any]:
    """What a file says of itself; of ONNX also the shapes of its output."""
    if kind == 'onnx':
        import onnx

        model = onnx.load(path)
        about = {p.key: _plain(p.value) for p in model.metadata_props}
        output = model.graph.output[0]
        sides = output.type.tensor_type.shape.dim
        return about | {'output': (output.name, [d.dim_value or -1 for d in sides])}
    if kind == 'torchscript':
        extra = {'cmid_geo.json': ''}
        torch.jit.load(path, map_location='cpu', _extra_files=extra)
        return json.loads(extra['cmid_geo.json'])
    about = open_checkpoint(path).get('hyper_parameters')
    return dict(about) if isinstance(about, Mapping) else {}


def _plain(text: str) -> Any:
    """Of ONNX' metadata some are JSON and some plain text."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _item(path: Path, kind: str, about: dict[str, Any]) -> dict[str, Any]:
    """The item, as JSON has it."""
    framework, artifact, role = KINDS[kind]
    training = (about.get('provenance') or {}).get('training_data') or {}
    box, now = training.get('bbox'), datetime.now(UTC).strftime('%Y-%m-%dT%H:%M:%SZ')
    task = TASKS.get(about.get('task', ''), FEATURES)
    names = [
        band if isinstance(band, str) else f'band {band}'
        for band in about.get('bands') or range(1, about['in_channels'] + 1)
    ]
    # STAC wants them in the asset, the extension in the item
    bands = {'bands': [{'name': name} for name in names]}
    return {
        'type': 'Feature', 'stac_version': '1.1.0', 'stac_extensions': [SCHEMA], 'id': path.name,
        'geometry': None if box is None else _polygon(*box),
        **({} if box is None else {'bbox': box}),
        'properties': {
            **_dates(training, now), 'created': now,
            'description': f'{_network(about)} by cmid_geo {__version__}. ' + (
                'Geometry, start and end, where they are given, are of the training scenes.'
                if training else 'The training scenes are not known.'
            ), **bands,
            'mlm:name': _name(path.stem), 'mlm:architecture': _network(about), 'mlm:tasks': [task],
            'mlm:framework': FRAMEWORKS[framework],
            'mlm:input': [_input(about, names, role == 'mlm:compiled')],
            'mlm:output': [_output(about, task)],
        },
        'links': [],
        'assets': {'model': {
            'href': f'./{quote(path.name)}', 'type': f'application/octet-stream; framework={framework}',
            'title': path.name, 'roles': ['mlm:model', role], 'mlm:artifact_type': artifact,
            **bands,
        }},
    }  # fmt: skip


def _polygon(west: float, south: float, east: float, north: float) -> dict[str, Any]:
    """A box as GeoJSON."""
    ring = [
        [west, south], [east, south], [east, north], [west, north], [west, south],
    ]  # fmt: skip
    return {'type': 'Polygon', 'coordinates': [ring]}


def _dates(training: Mapping[str, Any], now: str) -> dict[str, Any]:
    """Whole days from the first scene's to the last's; without them the time of writing."""
    start, end = training.get('start'), training.get('end')
    if start is None or end is None:
        return {'datetime': now}
    first, last = f'{start}T00:00:00Z', f'{end}T23:59:59Z'
    return {'datetime': None, 'start_datetime': first, 'end_datetime': last}


def _network(about: Mapping[str, Any]) -> str:
    """Names of the decoder and the backbone, or of the one that there is."""
    found = [about[name] for name in ('model', 'backbone') if about.get(name)]
    return ' on '.join(dict.fromkeys(map(str, found))) or 'unknown'


def _name(stem: str) -> str:
    """A name that begins with a letter, ends with a letter or digit, and has three signs or more."""
    plain = re.sub(r'[^a-zA-Z0-9_.-]', '-', stem).strip('_.-')
    return plain if re.match(r'[a-zA-Z].+[a-zA-Z0-9]$', plain) else f'cmid-{plain or 0}'


def _input(about: Mapping[str, Any], names: list[str], raw: bool) -> dict[str, Any]:
    """What the file takes; of two dates all bands of the first, then the second's."""
    size = about.get('tile_size', -1)
    stds = about.get('standardization_std') or [1 / 255] * len(names)
    if raw:
        # What Deepness divides by before all else is told in its own terms
        divisor = 255 * stds[0]
        scaled = not math.isclose(divisor, 1)
        scaling = [{'type': 'min-max', 'minimum': 0, 'maximum': divisor}] if scaled else None  # fmt: skip
    else:
        values = zip(*(about[name] for name in ('low', 'high', 'mean', 'std')))
        scaling = [
            {'type': 'z-score', 'mean': low + mean * (high - low), 'stddev': std * (high - low)}
            for low, high, mean, std in values
        ]  # fmt: skip
    low, high = (', '.join(f'{each:g}' for each in about[n]) for n in ('low', 'high'))
    return {
        'name': 'image',
        'description': f'Raw values, of which {low} stand for 0 and {high} for 1; values beyond are clipped to these',
        'bands': names * (len(stds) // len(names)),
        'input': {'shape': [-1, len(stds), size, size], 'dim_order': IMAGE, 'data_type': 'float32'},
        'value_scaling': scaling,
    }  # fmt: skip


def _output(about: Mapping[str, Any], task: str) -> dict[str, Any]:
    """What the file gives: features of each cell or of an image, or probabilities of classes."""
    if 'output' in about and 'task' in about:
        name, shape = about['output']
        shape = [-1, *shape[1:]]
    else:
        # Only the shapes are asked for
        with torch.device('meta'):
            dim = create_backbone(about['model'], about['in_channels']).num_features
        name, shape = 'features', [-1, dim, -1, -1]
    classes = about.get('class_names') or {}
    kind = 'class' if classes else 'embedding'
    order = ['batch', kind, 'height', 'width'] if len(shape) == 4 else ['batch', kind]
    output: dict[str, Any] = {
        'name': name, 'tasks': [task],
        'result': {'shape': shape, 'dim_order': order, 'data_type': 'float32'},
    }  # fmt: skip
    if classes:
        output['classification:classes'] = [
            {'value': int(value), 'name': re.sub(r'[^0-9A-Za-z_-]', '_', label) or '_', 'description': label}
            for value, label in classes.items()
        ]  # fmt: skip
    return output
