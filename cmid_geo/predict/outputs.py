# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""What becomes of each kind of task when a scene is mapped with it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torchgeo.tasks
from torch import Tensor, nn

from ..models.backbones import MaskedBackbone
from ..ops.cells import CELL
from ..options import Output
from ..tasks import CMID, ChangeDetection, Classification, OrientedDetection
from .checkpoint import Backbone
from .layers import Layer, above, class_layer, most_likely

#: For each kind of task, what can be written; first what is by default.
OUTPUTS: dict[str, tuple[str, ...]] = {
    'pixels': ('classes', 'probabilities', 'both'),
    'cells': ('embedding',),
    'objects': ('objects',),
    'plain': ('values',),
}


@dataclass(frozen=True)
class Outcome:
    """How a network's output becomes a map.

    Attributes:
        kind: Shares a pixel, vectors a cell, objects, or the plain output of a module.
        channels: Of the output; None if only the module knows.
        layers: What is written; none for objects and for what only the module knows.
        dates: How many the task compares.
        share: From scores to what can be averaged.
        classes: Names of the classes of objects, background first.
        nms_thresh: IoU above which the lower score of two objects of a class goes, in [0, 1].
    """

    kind: Literal['pixels', 'cells', 'objects', 'plain']
    channels: int | None
    layers: tuple[Layer, ...] = ()
    dates: int = 1
    share: Callable[[Tensor], Tensor] = lambda scores: scores
    classes: tuple[str, ...] | None = None
    nms_thresh: float = 0.5

    @property
    def stride(self) -> int:
        """Pixels for which there is one value."""
        return CELL if self.kind == 'cells' else 1


def outcome_of(
    task: nn.Module,
    output: Output | None = None,
    threshold: float = 0.5,
    labels: Sequence[str] | None = None,
    colors: Sequence[str] | None = None,
    components: int | None = None,
) -> Outcome:
    """Find out what becomes of a task.

    Args:
        task: A task, a backbone, or any module of one value or more a pixel.
        output: What to write; by default what the task is for.
        threshold: Least share of what is true, and least score of an object, in [0, 1].
        labels: Names of the classes; the task's own by default.
        colors: Of the classes, as matplotlib knows them.
        components: How many principal components to write instead of an embedding.

    Returns:
        The outcome.

    Raises:
        ValueError: If the task cannot be mapped with, or arguments do not fit it.
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f'threshold={threshold}: give a share from 0 to 1')
    kind = _kind(task)
    chosen = output or OUTPUTS[kind][0]
    if chosen not in OUTPUTS[kind]:
        raise ValueError(
            f'output={output!r} with {type(task).__name__}: it gives {" or ".join(OUTPUTS[kind])}'
        )
    if components is not None and (kind != 'cells' or components < 1):
        raise ValueError(
            f'components={components} with {type(task).__name__}: give 1 or more, for a backbone'
        )
    given: Any = getattr(task, 'hparams', {})
    names = labels if labels is not None else given.get('labels')
    if kind == 'pixels':
        return _of_pixels(task, given, chosen, threshold, names, colors)
    if kind == 'objects':
        count = given.get('num_classes')
        if names is not None and count is not None and len(names) != count:
            raise ValueError(
                f'labels has {len(names)} entries for {count} classes: name the background first, then each'
            )
        known = tuple(names) if names else None
        return Outcome('objects', None, classes=known, nms_thresh=_nms_thresh(task))
    width = backbone_of(task).num_features if kind == 'cells' else None
    return Outcome(kind, width)


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
    return min(float(getattr(stage, 'nms_thresh', Outcome.nms_thresh)), 1.0)


def _of_pixels(
    task: nn.Module,
    given: Any,
    chosen: str,
    threshold: float,
    names: Sequence[str] | None,
    colors: Sequence[str] | None,
) -> Outcome:
    """Classes and shares: of one class, of several of which one is true, or of several labels."""
    several = given['task'] == 'multiclass'
    channels = given.get('num_classes') if several else given.get('num_labels') or 1
    # Of one channel there are two classes: not, and is
    values = channels if several else 2
    change = isinstance(task, ChangeDetection)
    if not several and channels == 1 and len(names or ()) < 2:
        # Of one name it is what is true that is called so
        names = ('no change', 'change') if change else ('no', *(names or ('yes',)))
    if channels > 1 and not several:
        # Names are the labels', one a band
        shown = tuple(names or ())
        classes = class_layer(2, above(threshold), channels, ('no', 'yes'), colors)
        classes = replace(classes, names=shown)
    else:
        decide = most_likely if several else above(threshold)
        classes = class_layer(values, decide, 1, names, colors)
        shown = classes.classes if several else classes.classes[1:]
    shares = Layer(
        '_probabilities', channels, 'float32', float('nan'), names=shown
    )  # fmt: skip
    layers = {'classes': (classes,), 'probabilities': (shares,)}
    layers['both'] = (classes, shares)
    if chosen == 'probabilities':
        layers[chosen] = (replace(shares, suffix=''),)
    return Outcome(
        'pixels', channels, layers[chosen], 2 if change else 1,
        (lambda scores: scores.softmax(1)) if several else (lambda scores: scores.sigmoid()),
    )  # fmt: skip
