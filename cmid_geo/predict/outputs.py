# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Products of tasks: what a map holds, and how it follows from a network's output."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from operator import methodcaller
from typing import Any, Literal, get_args

import numpy as np
import torchgeo.tasks
from torch import Tensor, nn

from ..models.backbones import MaskedBackbone
from ..ops.cells import CELL
from ..options import Output, ProbabilityType
from ..tasks import CMID, ChangeDetection, Classification, OrientedDetection
from .checkpoint import Backbone

#: For each kind of task, what can be written; first what is by default.
OUTPUTS: dict[str, tuple[str, ...]] = {
    'pixels': ('classes', 'probabilities', 'both'),
    'cells': ('embedding',),
    'objects': ('objects',),
    'plain': ('values',),
}

#: Steps of probabilities of 8 bits: 250 is 1, so that a step is a decimal number, 0.004, and 0.5 is
#: met. What is read differs from what was predicted by half a step at most, 0.002.
STEPS = 250

#: From one tensor to another; not a lambda, as jobs are sent to other processes.
Step = Callable[[Tensor], Tensor]


def unchanged(values: Tensor) -> Tensor:
    """Return values as they are."""
    return values


@dataclass(frozen=True)
class Layer:
    """A raster that is written.

    Attributes:
        suffix: What its file's stem ends with, beyond the map's own.
        count: Number of bands.
        dtype: numpy's name of their type.
        nodata: Where the scene has no data; None if it always has, or a mask tells.
        decide: From averages (channels, rows, cols) to bands (count, rows, cols).
        names: Of the bands.
        classes: Names of the values, where these are classes.
        colours: Of the classes, as (red, green, blue) from 0 to 255.
        masked: Whether a mask tells where the scene has data, as any value may be meant.
        steps: How many whole numbers, from 0, stand for a probability of 1; None where values stand
            for themselves.
    """

    suffix: str
    count: int
    dtype: str
    nodata: float | int | None
    decide: Step = unchanged
    names: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    colours: tuple[tuple[int, ...], ...] = ()
    masked: bool = False
    steps: int | None = None

    def finish(self, values: Tensor, valid: Tensor) -> np.ndarray:
        """Turn averages into pixels.

        Args:
            values: (channels, rows, cols) on any device.
            valid: (rows, cols).

        Returns:
            (count, rows, cols) of the layer's type; of a masked one with 1 for data and 0 for none
            as one band more.
        """
        bands = self.decide(values).cpu().numpy()
        whole = np.issubdtype(self.dtype, np.integer)
        known = valid.cpu().numpy()[None]
        if whole and bands.dtype.kind == 'f':
            # Large whole numbers are not exact in float32
            bands = np.rint(bands.astype(np.float64) * (self.steps or 1))
            if self.steps:
                # As of floats, what the network does not tell is no data
                known = known & np.isfinite(bands)
                bands = bands.clip(0, self.steps)
        if not np.can_cast(bands.dtype, self.dtype):
            limits: Any = np.iinfo(self.dtype) if whole else np.finfo(self.dtype)
            bands = np.clip(bands, limits.min, limits.max)
        nothing = 0 if self.nodata is None else self.nodata
        bands = np.where(known, bands, nothing).astype(self.dtype)
        if not self.masked:
            return bands
        return np.concatenate([bands, known], dtype=bands.dtype)


@dataclass(frozen=True)
class Product:
    """How a network's output becomes a map.

    Attributes:
        kind: Probabilities a pixel, vectors a cell, objects, or the plain output of a module.
        channels: Of the output; None if only the module knows.
        layers: What is written; none for objects and for what only the module knows.
        dates: How many the task compares.
        activate: From logits to what can be averaged.
        classes: Names of the classes of objects, background first.
        nms_thresh: IoU above which the less confident of two objects of a class goes, in [0, 1].
        threshold: Least confidence of an object, in [0, 1].
        components: How many principal components to write instead of vectors, if so.
        stride: Pixels for which there is one value.
    """

    kind: Literal['pixels', 'cells', 'objects', 'plain']
    channels: int | None
    layers: tuple[Layer, ...] = ()
    dates: int = 1
    activate: Step = unchanged
    classes: tuple[str, ...] | None = None
    nms_thresh: float = 0.5
    threshold: float = 0.5
    components: int | None = None
    stride: int = 1

    @property
    def mirrored(self) -> bool:
        """Whether the scene's mirror image is around it.

        Not for objects: one at the edge and its image would be one larger object.
        """
        return self.kind != 'objects'


def product_of(
    task: nn.Module,
    output: Output | None = None,
    threshold: float = 0.5,
    labels: Sequence[str] | None = None,
    colors: Sequence[str] | None = None,
    components: int | None = None,
    stride: int = CELL,
    dtype: str | None = None,
) -> Product:
    """Find out what becomes of a task.

    Args:
        task: A task, a backbone, or any module of one value or more a pixel.
        output: What to write; by default what the task is for.
        threshold: Least probability of change or of a label, and least confidence of an object, in
            [0, 1].
        labels: Names of the classes; the task's own by default.
        colors: Of the classes, as matplotlib knows them.
        components: How many principal components to write instead of an embedding.
        stride: Of a backbone, pixels from one vector to the next.
        dtype: Of probabilities, 'float32' or 'uint8'; of a plain module's map any that a GeoTIFF holds.

    Returns:
        The product.

    Raises:
        ValueError: If the task cannot be mapped with, or arguments do not fit it.
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f'threshold={threshold}: give a probability from 0 to 1')
    name, kind = type(task).__name__, _kind(task)
    chosen = output or OUTPUTS[kind][0]
    _check_wanted(name, kind, chosen, components, stride, dtype)
    given: Any = getattr(task, 'hparams', {})
    names = labels if labels is not None else given.get('labels')
    if kind == 'pixels':
        product = _of_pixels(task, given, chosen, threshold, names, colors)
        return in_steps(product) if dtype == 'uint8' else product
    if kind == 'objects':
        count = given.get('num_classes')
        if names is not None and count is not None and len(names) != count:
            raise ValueError(
                f'labels has {len(names)} entries for {count} classes: name the background first, then each'
            )
        known, nms_thresh = tuple(names) if names else None, _nms_thresh(task)
        return Product(
            kind, None, classes=known, nms_thresh=nms_thresh, threshold=threshold
        )
    if kind == 'plain':
        return Product(kind, None)
    width = backbone_of(task).num_features
    if components is not None and components > width:
        raise ValueError(
            f'components={components} of vectors of {width}: give at most as many'
        )
    layers = (Layer('', width, 'float16', float('nan')),)
    return Product(kind, width, layers, components=components, stride=stride)


def _check_wanted(
    name: str,
    kind: str,
    chosen: str,
    components: int | None,
    stride: int,
    dtype: str | None,
) -> None:
    """Refuse what a kind of task does not give."""
    if chosen not in OUTPUTS[kind]:
        raise ValueError(
            f'output={chosen!r} with {name}: it gives {" or ".join(OUTPUTS[kind])}'
        )
    if components is not None and (kind != 'cells' or components < 1):
        raise ValueError(
            f'components={components} with {name}: give 1 or more, for a backbone'
        )
    if stride != CELL and (kind != 'cells' or stride < 1 or CELL % stride):
        raise ValueError(
            f'stride={stride} with {name}: give a divisor of {CELL}, for a backbone'
        )
    kinds = get_args(ProbabilityType)
    probable = kind == 'pixels' and chosen != 'classes'
    if dtype is not None and kind != 'plain' and not (probable and dtype in kinds):
        raise ValueError(
            f'dtype={dtype!r} with {name} and output={chosen!r}: it is of probabilities, {" or ".join(kinds)}, by '
            "output='probabilities' or 'both'; leave it out for other maps"
        )


def in_steps(product: Product) -> Product:
    """Write probabilities in 8 bits, see :data:`STEPS`.

    Args:
        product: Of a task of segmentation or change.

    Returns:
        The same, whose probabilities are whole numbers; 255 where there is no data.
    """
    layers = tuple(
        each if each.classes else replace(each, dtype='uint8', nodata=255, steps=STEPS)
        for each in product.layers
    )
    return replace(product, layers=layers)


def _kind(task: nn.Module) -> Literal['pixels', 'cells', 'objects', 'plain']:
    if isinstance(task, torchgeo.tasks.SemanticSegmentation | ChangeDetection):
        return 'pixels'
    if isinstance(task, CMID | Backbone | MaskedBackbone):
        return 'cells'
    if isinstance(task, torchgeo.tasks.ObjectDetection | OrientedDetection):
        return 'objects'
    if isinstance(task, Classification | torchgeo.tasks.BaseTask):
        raise ValueError(  # noqa: TRY004
            f'{type(task).__name__} says nothing of single pixels: map with a task of segmentation, '
            'change or detection, or with its backbone (cmid-geo export)'
        )
    return 'plain'


def backbone_of(task: Any) -> MaskedBackbone:
    """The backbone whose vectors are mapped.

    Args:
        task: CMID, an opened backbone, or a backbone itself.

    Returns:
        The network.
    """
    if isinstance(task, CMID):
        return task.student.backbone
    return task.network if isinstance(task, Backbone) else task


def _nms_thresh(task: Any) -> float:
    """What a detector itself allows two of its boxes to share."""
    # torchvision keeps it in the second stage, where there is one
    stage = getattr(task.model, 'roi_heads', task.model)
    # No two share more than all: above 1 nothing goes
    return min(float(getattr(stage, 'nms_thresh', Product.nms_thresh)), 1.0)


def _of_pixels(
    task: nn.Module,
    given: Any,
    chosen: str,
    threshold: float,
    names: Sequence[str] | None,
    colors: Sequence[str] | None,
) -> Product:
    """Classes and probabilities: of one class, of several of which one is true, or of several labels."""
    several = given['task'] == 'multiclass'
    channels = given.get('num_classes') if several else given.get('num_labels') or 1
    change = isinstance(task, ChangeDetection)
    above = methodcaller('ge', threshold)
    if several:
        most_likely = methodcaller('argmax', 0, True)
        classes = _class_layer(channels, most_likely, 1, names, colors)
        shown = classes.classes
    elif channels > 1:
        # Names are the labels', one a band
        shown = tuple(names or ())
        classes = _class_layer(2, above, channels, ('no', 'yes'), colors)
        classes = replace(classes, names=shown)
    else:
        if len(names or ()) < 2:
            # Of one name it is what is true that is called so
            names = ('no change', 'change') if change else ('no', *(names or ('yes',)))
        classes = _class_layer(2, above, 1, names, colors)
        shown = classes.classes[1:]
    probabilities = Layer(
        '_probabilities', channels, 'float32', float('nan'), names=shown
    )
    layers = {
        'classes': (classes,),
        'probabilities': (replace(probabilities, suffix=''),),
        'both': (classes, probabilities),
    }
    activate = methodcaller('softmax', 1) if several else methodcaller('sigmoid')
    return Product('pixels', channels, layers[chosen], 2 if change else 1, activate)


def _class_layer(
    count: int,
    decide: Step,
    bands: int,
    classes: Sequence[str] | None,
    colours: Sequence[str] | None,
) -> Layer:
    """A layer of classes, in one band or one a label."""
    # Only here: figures are what it is for
    import matplotlib

    # The largest value is no class: it says that there is no data
    dtype = 'uint8' if count <= 255 else 'uint16'
    names = tuple(classes or (str(label) for label in range(count)))
    for what, given in (('labels', classes), ('colors', colours)):
        if given is not None and len(given) != count:
            raise ValueError(
                f'{what} has {len(given)} entries for {count} classes: give one a class'
            )
    # Colours that differ, as figures show classes; more than twenty repeat
    table = matplotlib.colormaps['tab10' if count <= 10 else 'tab20']
    shown: Any = colours or [table(label % table.N) for label in range(count)]
    try:
        rgba = matplotlib.colors.to_rgba_array(shown)
    except ValueError as error:
        raise ValueError(
            f"colors={list(shown)}: give names such as 'tab:blue', or '#1f77b4' ({error})"
        ) from error
    bytes_of = (255 * rgba[:, :3]).round().astype(int).tolist()
    nodata = int(np.iinfo(dtype).max)
    return Layer('', bands, dtype, nodata, decide, (), names, tuple(map(tuple, bytes_of)))  # fmt: skip
