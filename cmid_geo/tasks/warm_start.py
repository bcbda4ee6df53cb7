# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Start of a pretraining run from weights or another run."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from ..models.teacher import KeyQueue
from ..models.weights.checkpoint import under
from ..models.weights.loading import load_backbone
from ..models.weights.matching import LoadReport
from ..models.weights.sources import Weights, read_source

if TYPE_CHECKING:
    from .pretraining import Pretraining

#: What is restored as a whole or not at all; the student's before the teacher's.
HEADS = ('backbone.mask_token', 'projector', 'prototypes')
PARTS = (
    *(f'{side}.{head}' for side in ('student', 'teacher') for head in HEADS),
    'decoder', 'assign',
)  # fmt: skip


def start_from(task: 'Pretraining', weights: Weights) -> LoadReport:
    """Start a task from weights: from all that they hold, and say what that was.

    A backbone alone goes into student and teacher. A checkpoint of CMID, or a full file that
    the authors released, restores heads, decoder, queue and centre as well; a part that was
    built to another size starts anew, with a warning.

    Args:
        task: A :class:`~cmid_geo.tasks.CMID`, built.
        weights: Weights enum or its name, path of a file, or state dict.

    Returns:
        What was loaded into the student's backbone.

    Raises:
        ConnectionError: If the weights must be downloaded and cannot.
        FileNotFoundError: If there is no such file.
        ValueError: If they do not fill the backbone.
    """
    source = read_source(weights, 'student', training=True)
    report = load_backbone(task.student.backbone, source)
    training = source.training or {}
    anew = _restore(task, training, 'student')
    # A teacher is a copy of the student, where none is given
    task.teacher.load_state_dict(task.student.state_dict())
    tensors = under(training, 'teacher.backbone.network.')
    if tensors:
        load_backbone(task.teacher.backbone, replace(source, tensors=tensors))
    anew |= _restore(task, training, 'teacher', 'decoder', 'assign')
    anew |= _requeue(task.queue, training)

    rank_zero_info(str(report))
    if source.training is not None:
        restored = [part for part in (*PARTS, 'queue') if part not in anew]
        rank_zero_info(f'  restored as well: {", ".join(restored)}')
    if source.training is not None and anew:
        reasons = '; '.join(f'{part} ({reason})' for part, reason in anew.items())
        rank_zero_warn(f'these parts start anew: {reasons}')
    return report


def _restore(
    task: 'Pretraining', training: Mapping[str, Tensor], *kinds: str
) -> dict[str, str]:
    """Restore parts; tell which could not be, and why."""
    own, anew = task.state_dict(), {}
    for part in PARTS:
        if not part.startswith(kinds):
            continue
        names = [name for name in own if name == part or name.startswith(f'{part}.')]
        theirs = {name: training[name].shape for name in names if name in training}
        other = [name for name in theirs if theirs[name] != own[name].shape]
        if missing := [name for name in names if name not in theirs]:
            anew[part] = f'{missing[0]} is not in the file'
        elif other:
            there, here = tuple(theirs[other[0]]), tuple(own[other[0]].shape)
            anew[part] = f'{other[0]} is of {there} there, of {here} here'
        else:
            with torch.no_grad():
                for name in names:
                    own[name].copy_(training[name])
    return anew


def _requeue(queue: KeyQueue, training: Mapping[str, Tensor]) -> dict[str, str]:
    """Fill the queue with the newest keys of another, of any size."""
    keys, seen = training.get('queue.keys'), training.get('queue.seen')
    if keys is None or seen is None:
        return {'queue': 'the file has none'}
    there, here = keys.shape[1], queue.keys.shape[1]
    if there != here:
        return {'queue': f'its keys have length {there} there, {here} here'}
    size, count = len(keys), int(seen)
    oldest_first = keys.roll(-(count % size), 0) if count >= size else keys[:count]
    queue.enqueue(oldest_first)
    return {}
