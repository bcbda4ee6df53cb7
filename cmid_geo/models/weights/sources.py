# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Sources of weights: names, enums, files and dictionaries."""

import importlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from torch import Tensor
from torchvision.models import WeightsEnum

from ...ops.value_range import FIELDS, ValueRange
from .checkpoint import open_checkpoint, refuse_url, tensors_in, under
from .convert_official import convert_released_training_state, is_full
from .enums import CMIDResNet50_Weights, CMIDSwinB_Weights, CMIDWeights
from .hub import fetch_from_hub, is_on_hub

#: What may be named as weights.
Weights = WeightsEnum | str | os.PathLike[str] | Mapping[str, Any]

#: Where a checkpoint names its task.
KIND = 'cmid_geo_task'

#: Where a checkpoint names the version of this package, since it tells bands without names by positions.
VERSION = 'cmid_geo_version'

#: Where a checkpoint tells the extent of the scenes that it was trained on.
TRAINING = 'cmid_geo_training_data'

ENUMS: tuple[type[CMIDWeights], ...] = (CMIDResNet50_Weights, CMIDSwinB_Weights)


@dataclass(frozen=True)
class Source:
    """Weights that were read.

    Attributes:
        name: What to call them in messages.
        tensors: By the names they were found under.
        model: timm's name of the network, where known.
        metadata: What else is known: ``bands``, ``low``, ``high``, ``mean``, ``std``, ...
        training: All of CMID's ``state_dict``, where the source holds it.
    """

    name: str
    tensors: dict[str, Tensor]
    model: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Tensor] | None = None

    @property
    def global_pool(self) -> str | None:
        """How a ViT's tokens were pooled in training, as timm calls it; None if not known.

        CMID trains the patch tokens, and never the class token. So do our tasks that read maps.
        """
        task = self.metadata.get(KIND)
        maps = task is not None and task != 'Classification'
        ours = self.training is not None or self.metadata.get('ssl_method') == 'CMID'
        return self.metadata.get('global_pool') or ('avg' if maps or ours else None)

    @property
    def value_range(self) -> ValueRange | None:
        """What the values of images mean; None where it is not known."""
        return ValueRange.from_metadata(self.metadata)

    @property
    def title(self) -> str:
        """Name of the source and of its network."""
        known = self.model and self.model not in self.name
        return f'{self.name} ({self.model})' if known else self.name


def read_source(
    weights: Weights,
    side: Literal['student', 'teacher'] | None = None,
    training: bool = False,
) -> Source:
    """Read weights of any kind.

    Args:
        weights: Member of a weights enum of ours, TorchGeo's or torchvision's, its name,
            path of a file, address on the Hugging Face hub (``hf://USER/REPO``), or tensors by name.
        side: Whose backbone to take of a checkpoint that has two. By default that which
            our task says to export, and of a released file the student's as its authors do.
        training: Whether to read of released weights the full file, which pretraining goes on from.

    Returns:
        The weights.

    Raises:
        ConnectionError: If they must be downloaded and cannot.
        FileNotFoundError: If there is no such file.
        ValueError: If there is no such name, or the file is damaged, refused or empty.
    """
    named = isinstance(weights, str) and re.fullmatch(r'\w+_Weights\.\w+', weights)
    if named and not os.path.isfile(weights):
        weights = get_weight(weights)
    if isinstance(weights, CMIDWeights) and training:
        state = weights.get_training_state()
        return _of_training(str(weights), state, side or 'student', dict(weights.meta))
    if isinstance(weights, WeightsEnum):
        options = {'progress': True, 'check_hash': True, 'weights_only': True}
        state = weights.get_state_dict(**options)
        model = weights.meta.get('model')
        return Source(str(weights), dict(state), model, dict(weights.meta))
    if isinstance(weights, Mapping):
        return _read_content('a state dict', dict(weights), side)
    if not isinstance(weights, str | os.PathLike):
        raise ValueError(  # noqa: TRY004
            f'weights of type {type(weights).__name__}: give a weights enum or its name, the path of a '
            'file, or a state dict'
        )
    refuse_url(weights)
    if is_on_hub(weights):
        weights = fetch_from_hub(str(weights))
    path = Path(weights).expanduser()
    return _read_content(path.name, open_checkpoint(path), side)


def saved_bands(content: Mapping[str, Any]) -> Any:
    """Find the bands of a checkpoint, or of an exported file.

    Args:
        content: As it was saved.

    Returns:
        Names, or positions from 1 in files without names. Before files told the two apart, 'B1',
        'B2', ... stood for positions, and they are taken for such.
    """
    metadata = content.get('hyper_parameters') or {}
    bands = metadata.get('bands')
    newer = VERSION in content or 'global_pool' in metadata
    if newer or not isinstance(bands, list | tuple):
        return bands
    positions = list(range(1, len(bands) + 1))
    return positions if list(bands) == [f'B{place}' for place in positions] else bands


def get_weight(name: str | WeightsEnum) -> WeightsEnum:
    """Get a member of a weights enum by its name: one of ours, TorchGeo's or torchvision's.

    Args:
        name: Such as ``CMIDResNet50_Weights.MILLIONAID_RGB``; a member stays as it is.

    Returns:
        The member.

    Raises:
        ValueError: If there is none of that name.
    """
    if isinstance(name, WeightsEnum):
        return name
    ours = {str(member): member for enum in ENUMS for member in enum}
    if name in ours:
        return ours[name]
    for library in ('torchgeo.models', 'torchvision.models'):
        try:
            return importlib.import_module(library).get_weight(name)
        except (ValueError, KeyError, AttributeError):
            continue
    near = get_close_matches(name, ours, n=1) or list(ours)
    raise ValueError(
        f'{name!r} is the name of no weights: ours are listed by cmid_geo.models.list_weights(), '
        f'such as {near[0]}'
    )


def _read_content(name: str, content: dict[str, Any], side: Any) -> Source:
    """Tell what kind of checkpoint this is by the names in it."""
    found, wrapped = tensors_in(content), r'^((module|_orig_mod)\.)+'
    tensors = {re.sub(wrapped, '', key): tensor for key, tensor in found.items()}
    metadata = content.get('hyper_parameters')
    metadata = dict(metadata) if isinstance(metadata, Mapping) else {}
    if metadata.get('bands'):
        metadata['bands'] = saved_bands(content)
    if KIND in content:
        metadata[KIND] = content[KIND]
    if content.get(TRAINING) is not None:
        metadata['training_data'] = content[TRAINING]
    if content.get('global_step') is not None:
        metadata['steps'] = content['global_step']
    if not tensors:
        raise ValueError(
            f'{name} holds no tensors: save model.state_dict(), or the checkpoint of a task'
        )
    if is_full(tensors):
        training = convert_released_training_state(tensors)
        return _of_training(name, training, side or 'student', metadata)
    if any(key.startswith('student.backbone.network.') for key in tensors):
        values = {key: tensors[key].tolist() for key in FIELDS if key in tensors}
        side = side or metadata.get('export_source', 'student')
        return _of_training(name, tensors, side, metadata | values)
    # Where TorchGeo's tasks have an encoder inside, 'model' is what is around it
    around = any('encoder.' in key or 'body.' in key for key in tensors)
    first, second = ('backbone', 'model') if around else ('model', 'backbone')
    model = metadata.get(first) or metadata.get(second)
    return Source(name, tensors, model if isinstance(model, str) else None, metadata)


def _of_training(
    name: str, training: dict[str, Tensor], side: str, metadata: dict[str, Any]
) -> Source:
    tensors = under(training, f'{side}.backbone.network.')
    return Source(
        f'{name}, {side}', tensors, metadata.get('model'), metadata | {'source': side}, training
    )  # fmt: skip
