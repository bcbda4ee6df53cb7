# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Tasks and backbones restored from checkpoints."""

import inspect
import os
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .. import tasks
from ..models.backbones import create_backbone
from ..models.weights.checkpoint import open_checkpoint
from ..models.weights.loading import load_backbone
from ..models.weights.sources import KIND, TRAINING, read_source, saved_bands
from ..ops.value_range import normalize

#: Tasks that can be in a checkpoint.
TASKS: tuple[Any, ...] = (
    tasks.CMID,
    tasks.ChangeDetection,
    tasks.Classification,
    tasks.ObjectDetection,
    tasks.OrientedDetection,
    tasks.SemanticSegmentation,
)

#: Arguments that came after tasks named themselves in their checkpoints.
LATER = {
    'cell', 'compiled', 'global_pool', 'local_views', 'num_filters', 'num_labels',
}  # fmt: skip
#: Arguments of training alone that tasks no longer have.
GONE = {'batch_negatives'}


class Backbone(nn.Module):
    """A backbone with the values it was trained on: images in [0, 1] to one vector a cell.

    Attributes:
        low: Raw value of each band that becomes 0; absent where the weights do not tell.
        high: Raw value of each band that becomes 1; absent where the weights do not tell.
    """

    def __init__(self, weights: Any) -> None:
        """Initialize a new Backbone instance.

        Args:
            weights: What :func:`~cmid_geo.models.load_backbone` reads, if it names its network.

        Raises:
            ValueError: If it does not, or cannot be read.
        """
        super().__init__()
        source = read_source(weights)
        if source.model is None:
            raise ValueError(
                f'{source.name} does not tell which network it is of: build it with '
                'cmid_geo.create_backbone, load it with cmid_geo.load_backbone, and map with that'
            )
        about = source.metadata
        bands = int(about.get('in_channels') or about.get('in_chans') or 3)
        self.hparams = {'in_channels': bands, 'bands': about.get('bands')}
        origin = about.get('provenance')
        told = origin if isinstance(origin, Mapping) else {}
        self.training_data = about.get('training_data') or told.get('training_data')
        self.network = create_backbone(source.model, bands)
        load_backbone(self.network, source)
        for name in ('low', 'high', 'mean', 'std'):
            if about.get(name) is not None:
                value = torch.as_tensor(about[name], dtype=torch.float32)
                self.register_buffer(name, value.expand(bands).clone())

    def forward(
        self, image: Float[Tensor, 'batch bands height width']
    ) -> Float[Tensor, 'batch dim rows cols']:
        """Compute features.

        Args:
            image: In [0, 1], with sides that are multiples of 32 pixels.

        Returns:
            One vector for each cell of 32x32 pixels.
        """
        mean, std = getattr(self, 'mean', None), getattr(self, 'std', None)
        if mean is not None and std is not None:
            image = normalize(image, mean, std)
        return self.network(image)


def open_task(checkpoint: str | os.PathLike[str]) -> nn.Module:
    """Open what is in a checkpoint, on the CPU and in evaluation mode.

    Args:
        checkpoint: Checkpoint of a task; else a file or name of weights of a backbone.

    Returns:
        The task, or a :class:`Backbone`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, or holds neither.
    """
    if os.path.isfile(checkpoint):
        content = open_checkpoint(checkpoint)
        kind = _kind(content)
        if kind is not None:
            return _rebuild(kind, content, os.fspath(checkpoint)).eval()
    try:
        return Backbone(checkpoint).eval()
    except (TypeError, AttributeError, RuntimeError) as error:
        raise ValueError(
            f'{checkpoint} names a backbone but does not fit it ({_first_line(error)}): export it anew '
            'with cmid-geo export'
        ) from error


def task_in(checkpoint: str | os.PathLike[str]) -> type | None:
    """Tell which of our tasks is in a checkpoint.

    Args:
        checkpoint: A file, or the name of weights.

    Returns:
        The task's class; None for a backbone, and for what is no file.

    Raises:
        ValueError: If the file is damaged or refused.
    """
    return _kind(open_checkpoint(checkpoint)) if os.path.isfile(checkpoint) else None


def _arguments(content: Mapping[str, Any]) -> dict[str, Any]:
    """The task's arguments, without its weights and what Lightning adds for its command line."""
    given = content['hyper_parameters'].items()
    plain = {k: v for k, v in given if isinstance(k, str) and not k.startswith('_')}
    return {k: v for k, v in plain.items() if k not in GONE | {'weights'}}


def _first_line(error: Exception) -> str:
    """What an error says first; of one that says nothing its kind."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def _kind(content: Mapping[str, Any]) -> Any:
    """Tell which of our tasks saved a checkpoint; None for none of them."""
    about = content.get('hyper_parameters')
    if 'pytorch-lightning_version' not in content or not isinstance(about, Mapping):
        return None
    # A name alone: whatever else stands there is not imported
    name = content.get(KIND) or str(about.get('_class_path', '')).rpartition('.')[2]
    for kind in TASKS:
        # Before tasks named themselves, arguments did: no two have the same
        own = set(inspect.signature(kind).parameters) - {'weights', 'augmentations'}
        fits = own - LATER <= set(_arguments(content)) <= own
        if kind.__name__ == name or (not name and fits):
            return kind
    return None


def _rebuild(kind: Any, content: Mapping[str, Any], path: str) -> nn.Module:
    """Build a task anew and fill it: what it started from does not matter any more."""
    try:
        task = kind(**_arguments(content) | {'bands': saved_bands(content)})
        task.load_state_dict(content['state_dict'])
        task.training_data = content.get(TRAINING)
    # What is off in a damaged or foreign file may raise anything
    except Exception as error:
        raise ValueError(
            f'{path} is a checkpoint of {kind.__name__} but does not fit it '
            f'({_first_line(error)}): open it with the version of cmid_geo that wrote it'
        ) from error
    return task
