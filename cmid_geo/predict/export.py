# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Tasks as ONNX programs that QGIS's plugin Deepness and GeoDeep open."""

import json
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchgeo.tasks
from jaxtyping import Float
from torch import Tensor, nn

from ..atomic_files import write_atomically
from ..models.modes import evaluating
from ..models.weights.export_onnx import require_onnx
from ..ops.cells import CELL
from ..ops.value_range import scale
from ..tasks import CMID
from ..version import __version__
from .checkpoint import Backbone, open_task, task_in
from .outputs import product_of

#: Newest format of files that the plugin's onnxruntime 1.17 reads; torch's exporter writes 10.
IR_VERSION = 9

#: Operators of that runtime.
OPSET = 18

#: What Deepness divides all values by before anything else.
BYTE = 255.0

#: Largest difference that a program may show in a probability, or relative to the largest feature.
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Head:
    """What becomes of a network's output, and what the tools call it.

    Attributes:
        kind: Deepness's type of the model; 'Classifier' for one that neither tool opens.
        output: Name of the program's output.
        classes: Names of the output's channels; none for features.
        dates: How many images are stacked along the bands.
        activation: 'softmax', 'sigmoid', 'binary' for one map of logits that becomes two of
            probabilities, or 'mean' over all cells.
    """

    kind: str
    output: str
    classes: tuple[str, ...]
    dates: int
    activation: str


class RawTask(nn.Module):
    """A task that takes the values of a raster as they are in the file, and gives probabilities."""

    low: Tensor
    high: Tensor

    def __init__(
        self, task: nn.Module, head: Head, low: Tensor, high: Tensor, divisor: float
    ) -> None:
        """Initialize a new RawTask instance.

        Args:
            task: Takes images in [0, 1].
            head: What becomes of its output.
            low: Raw value of each band that becomes 0.
            high: Raw value of each band that becomes 1.
            divisor: What raw values were divided by.
        """
        super().__init__()
        self.task, self.head, self.divisor = task, head, divisor
        self.register_buffer('low', low)
        self.register_buffer('high', high)

    def forward(self, image: Float[Tensor, 'batch bands height width']) -> Tensor:
        """Scale, predict and activate.

        Args:
            image: Raw values over the divisor; of two dates all bands of the first, then the second's.

        Returns:
            Probabilities (batch, classes, height, width), of whole images (batch, classes), or
            features (batch, dim).
        """
        if self.head.dates > 1:
            image = image.unflatten(1, (self.head.dates, -1))
        logits = self.task(scale(image * self.divisor, self.low, self.high))
        match self.head.activation:
            case 'mean':
                return logits.mean((2, 3))
            case 'softmax':
                return logits.softmax(1)
            case 'sigmoid':
                return logits.sigmoid()
        # GeoDeep takes the largest of several channels, of one it would make one class
        found = logits.sigmoid()
        return torch.cat([1 - found, found], 1)

    def example(self, batch: int, size: int) -> Float[Tensor, 'batch bands size size']:
        """Values such as the program expects."""
        low, high = (v.repeat(self.head.dates)[:, None, None] for v in (self.low, self.high))  # fmt: skip
        generator = torch.Generator().manual_seed(0)
        shape = (batch, len(low), size, size)
        drawn = torch.rand(shape, generator=generator)
        return (low + drawn * (high - low)) / self.divisor


def export_task(
    task: nn.Module | str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    size: int = 512,
    resolution: float | None = None,
    tiles_overlap: int = 15,
    divisor: float = 1.0,
    low: Sequence[float] | float | None = None,
    high: Sequence[float] | float | None = None,
    labels: Sequence[str] | None = None,
) -> Path:
    """Write a task as an ONNX program that QGIS's plugin Deepness and GeoDeep open.

    The program takes **raw** values (batch, bands, *size*, *size*), scales them as the task's maps
    do, and gives probabilities; it is compared with PyTorch before it is written.

    ==========================  =====================================================================
    task                        program
    ==========================  =====================================================================
    ``SemanticSegmentation``    (batch, classes, size, size), of a binary one two classes: a 'Segmentor'
    ``ChangeDetection``         the same; takes all bands of the first date, then those of the second
    ``CMID`` or a backbone      (batch, dim), the mean over all cells: a 'Recognition'
    ``Classification``          (batch, classes); neither tool opens it
    ==========================  =====================================================================

    The metadata are the plugin's (https://qgis-plugin-deepness.readthedocs.io, "Adding metadata to
    ONNX model"), each value JSON, and what our other exports tell. ``seg_thresh`` and
    ``seg_small_segment`` are 0: the class is the likeliest, and small areas stay.

    Deepness divides all values by 255, and its metadata undo that. GeoDeep divides those of bytes by
    255, and of uint16 by 65535, whatever the metadata say, and takes three bands: there give that
    *divisor*. A file with ``divisor=255`` works in both.

    Args:
        task: A task, a backbone, or a checkpoint of one.
        path: File to write, ``.onnx``; its folder is made.
        size: Side of the images in pixels, a multiple of 32.
        resolution: Size on the ground of a pixel of the training scenes, in cm: the tools resample
            finer scenes to it. By default that of the scenes of the fit, where the checkpoint tells.
        tiles_overlap: What neighbouring images share in a tool, in percent of their side, below 50.
        divisor: What the tool divides raw values by before the program sees them.
        low: Raw value of each band, or of all, that becomes 0; the task's own by default.
        high: Raw value of each band, or of all, that becomes 1; the task's own by default.
        labels: Names of the classes; the task's own by default.

    Returns:
        The path.

    Raises:
        FileNotFoundError: If there is no such checkpoint.
        ImportError: If onnx, onnxscript or onnxruntime is missing.
        RuntimeError: If the program does not give what PyTorch gives.
        ValueError: If the task is a detector or has several labels a pixel, its values or the
            resolution are not known, or a number is off.
    """
    require_onnx()
    path, origin = Path(path), type(task).__name__
    _check_numbers(path, size, tiles_overlap, divisor)
    if not isinstance(task, nn.Module):
        origin = Path(task).name
        task = open_task(task)
    head = _head_of(task, labels)
    limits = _limits_of(task, low, high)
    raw = RawTask(task, head, *limits, divisor)
    metadata = {
        'model_type': head.kind, 'class_names': dict(enumerate(head.classes)),
        'resolution': _resolution_of(task, resolution), 'tile_size': size, 'tiles_size': size,
        'tiles_overlap': tiles_overlap, 'seg_thresh': 0.0, 'seg_small_segment': 0,
        'standardization_mean': [0.0] * head.dates * len(limits[0]),
        'standardization_std': [divisor / BYTE] * head.dates * len(limits[0]),
        'provenance': {'from': origin, 'cmid_geo': __version__, **_training_of(task)},
        **_what_is_known(task, *limits),
    }  # fmt: skip
    with evaluating(raw):
        write_atomically(path, lambda file: _write(raw, size, metadata, file))
    return path


def _check_numbers(path: Path, size: int, overlap: int, divisor: float) -> None:
    if path.suffix != '.onnx':
        raise ValueError(
            f'{path.name}: a task is exported as a program of ONNX, end the name in .onnx'
        )
    if size < CELL or size % CELL:
        raise ValueError(
            f'size={size}: networks have strides of up to {CELL} pixels, give a positive multiple of {CELL}'
        )
    if not 0 <= overlap < 50:
        raise ValueError(
            f'tiles_overlap={overlap} percent of a side: give at least 0 and less than 50'
        )
    if divisor <= 0:
        raise ValueError(
            f'divisor={divisor}: give 1 for raw values, or what the tool divides them by, such as 255'
        )


def _training_of(task: nn.Module) -> dict[str, Any]:
    """Where and when the scenes lie that a task was trained on, if its checkpoint tells."""
    known = getattr(task, 'training_data', None)
    return {} if known is None else {'training_data': known}


def _resolution_of(task: nn.Module, given: float | None) -> float:
    """Size of a pixel in cm: what is given, or that of the scenes of the fit, to three digits."""
    known = (getattr(task, 'training_data', None) or {}).get('resolution')
    if given is None and known:
        return float(f'{100 * known:.3g}')
    if given is None or given <= 0:
        raise ValueError(
            f'resolution={given}: give the size of a pixel of the training scenes in cm, such as '
            'resolution=10 (--resolution 10) for 0.1 m'
        )
    return given


def _head_of(task: Any, labels: Sequence[str] | None) -> Head:
    """Find out what becomes of a task's output."""
    name, given = type(task).__name__, getattr(task, 'hparams', {})
    if isinstance(task, torchgeo.tasks.Classification):
        kind = given['task']
        count = given.get('num_classes') or given.get('num_labels') or 2
        found = labels or given.get('labels') or [str(label) for label in range(count)]
        if len(found) != count:
            raise ValueError(
                f'labels has {len(found)} entries for {count} classes: give one a class'
            )
        activation = {'multiclass': 'softmax', 'multilabel': 'sigmoid'}
        return Head('Classifier', 'probabilities', tuple(found), 1, activation.get(kind, 'binary'))  # fmt: skip
    product = product_of(task, labels=labels)
    if product.kind == 'cells':
        return Head('Recognition', 'features', (), 1, 'mean')
    if product.kind != 'pixels':
        raise ValueError(
            f'{name} gives {product.kind}, which are read from no program of ours: map scenes with '
            'cmid-geo map, or export a task of segmentation, change or classification'
        )
    if given['task'] == 'multilabel':
        raise ValueError(
            f"{name} with task='multilabel' gives several labels a pixel, of which the tools would keep "
            'one: map scenes with cmid-geo map'
        )
    activation = 'softmax' if given['task'] == 'multiclass' else 'binary'
    classes = product.layers[0].classes
    return Head('Segmentor', 'probabilities', classes, product.dates, activation)


def _limits_of(
    task: Any, low: Sequence[float] | float | None, high: Sequence[float] | float | None
) -> tuple[Tensor, Tensor]:
    """Raw values of each band that become 0 and 1."""
    if (low is None) != (high is None):
        raise ValueError(f'low={low} and high={high}: give both, or none')
    if not hasattr(task, 'hparams'):
        raise ValueError(
            f'{type(task).__name__} does not tell its bands and values: write it by export_backbone, and export that '
            'file; or export the task that trained it'
        )
    bands = task.hparams['in_channels']
    own: list[Any] = [getattr(task, name, None) for name in ('low', 'high')]
    # As a task begins, until data tell
    unset = own[0] is None or (not own[0].any() and bool((own[1] == 1).all()))
    if low is None and unset:
        raise ValueError(
            f'{type(task).__name__} does not tell which raw values stand for 0 and 1: give low= and high= '
            '(--low and --high), such as 0 and 255 of bytes'
        )
    given = own if low is None else (low, high)
    values = [torch.as_tensor(each).detach().cpu().float().view(-1) for each in given]
    if not {len(each) for each in values} <= {1, bands} or not (values[0] < values[1]).all():  # fmt: skip
        raise ValueError(
            f'low={values[0].tolist()} and high={values[1].tolist()} of {bands} bands: give one value a band, '
            'or one for all, and high above low'
        )
    first, second = (each.expand(bands).clone() for each in values)
    return first, second


def _what_is_known(task: Any, low: Tensor, high: Tensor) -> dict[str, Any]:
    """What our other exports tell of a network, and which task it is of."""
    given = task.hparams
    known: dict[str, Any] = {
        'task': type(task).__name__, 'in_channels': given['in_channels'],
        'bands': list(given.get('bands') or ()), 'low': low.tolist(), 'high': high.tolist(),
    }  # fmt: skip
    for name in ('model', 'backbone'):
        if isinstance(given.get(name), str):
            known[name] = given[name]
    if isinstance(task, Backbone):
        known['backbone'] = task.network.name
    for name in ('mean', 'std'):
        if getattr(task, name, None) is not None:
            known[name] = getattr(task, name).tolist()
    return known


def _write(raw: RawTask, size: int, metadata: dict[str, Any], file: Path) -> None:
    """Translate, note what is known, and compare."""
    onnx, _ = require_onnx()
    head = raw.head
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter('ignore')
        program = torch.onnx.export(
            raw, (raw.example(2, size),), dynamo=True, verbose=False, opset_version=OPSET,
            dynamic_shapes=({0: torch.export.Dim.DYNAMIC},), input_names=['image'],
            output_names=[head.output],
        )  # fmt: skip
    if program is None:
        raise RuntimeError(f'torch.onnx made no program of {metadata["task"]}')
    program.save(file)
    model = onnx.load(file)
    model.ir_version = IR_VERSION
    # What the exporter notes of each node that format cannot hold
    for part in (model.graph, *model.graph.node, *model.graph.value_info,
                 *model.graph.input, *model.graph.output, *model.graph.initializer):  # fmt: skip
        del part.metadata_props[:]
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_param = 'batch'
    # All as JSON, names of classes by their numbers: so the tools read them
    texts = {name: json.dumps(value) for name, value in metadata.items()}
    onnx.helper.set_model_props(model, texts)
    onnx.checker.check_model(model)
    onnx.save(model, file)
    _compare(raw, size, file, metadata['task'])


def _compare(raw: RawTask, size: int, file: Path, name: str) -> None:
    """Compare a program with PyTorch, also for batches that it was not translated with."""
    _, onnxruntime = require_onnx()
    session = onnxruntime.InferenceSession(file, providers=['CPUExecutionProvider'])
    for batch in (1, 3):
        image = raw.example(batch, size)
        with torch.no_grad():
            expected = raw(image).numpy()
        (found,) = session.run(None, {'image': image.numpy()})
        difference = np.abs(found - expected).max()
        if raw.head.activation == 'mean':
            difference /= np.abs(expected).max()
        # NaN must not pass
        if not difference < TOLERANCE:
            raise RuntimeError(
                f'the translated {name} differs from PyTorch by {difference:.1e} for {batch} images of '
                f'{size}x{size} pixels: nothing was written. Other versions of torch, onnx and '
                'onnxruntime may do better'
            )


def export(
    checkpoint: str,
    out: str,
    size: int | None = None,
    source: str | None = None,
    **options: Any,
) -> Path | None:
    """Write a checkpoint as a program for QGIS, if that is what is asked for.

    Args:
        checkpoint: Checkpoint, exported file, or name of released weights.
        out: File to write.
        size: Side of the images in pixels.
        source: Whose backbone to take, which such a program cannot choose.
        options: Of :func:`export_task`, those that were given.

    Returns:
        The file; None where a backbone, as it is, is asked for.

    Raises:
        ValueError: If options of a program for QGIS are given for something else.
    """
    kind = task_in(checkpoint)
    is_task = kind is not None and kind is not CMID and out.endswith('.onnx')
    if is_task or size is not None:
        if source is not None:
            raise ValueError(
                f'source={source!r}: a program for QGIS is of what the checkpoint maps with, leave it out; or '
                'export that backbone to a .safetensors first, and then that file'
            )
        return export_task(checkpoint, out, size=size or 512, **options)
    if options:
        raise ValueError(
            f'{", ".join(sorted(options))} of {checkpoint}: that is for programs that QGIS opens, of tasks '
            'or with size=; leave it out, or give --size and a name that ends in .onnx'
        )
    return None
