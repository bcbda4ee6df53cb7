# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Backbones out of tasks and checkpoints."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchvision.models import WeightsEnum

from .backbones import MaskedBackbone

#: What a backbone file says of the data it was trained on, and how to bring others to it.
VALUES = ('low', 'high', 'mean', 'std')


def export_backbone(
    task_or_checkpoint: nn.Module | str | os.PathLike[str],
    path: str | os.PathLike[str],
    source: Literal['teacher', 'student'] = 'teacher',
) -> Path:
    """Write a backbone file that TorchGeo's tasks load by ``weights=<path>``.

    The file holds timm's tensors under ``state_dict`` with the prefix ``model.``, and under
    ``hyper_parameters`` timm's name as ``model``, ``in_channels``, the names of the
    ``bands``, and for each band the raw values ``low`` and ``high`` that stand for 0 and 1,
    and ``mean`` and ``std`` of the scaled values. A network is fed
    ``((raw - low) / (high - low) - mean) / std``.

    Args:
        task_or_checkpoint: A :class:`~cmid_geo.tasks.CMID`, or the path of a checkpoint of
            one.
        path: File to write; its folder is made.
        source: Whose backbone to take. The teacher is the student's moving average, and its
            batch norms know whole images; the student's know images of which more than
            half was hidden.

    Returns:
        The path.

    Raises:
        ValueError: If *source* is neither, or the checkpoint is not one of CMID.
    """
    if source not in ('teacher', 'student'):
        raise ValueError(
            f"source={source!r}: a backbone is the 'teacher''s or the 'student''s"
        )
    if isinstance(task_or_checkpoint, nn.Module):
        parameters: Mapping[str, Any] = getattr(task_or_checkpoint, 'hparams', {})
        state = task_or_checkpoint.state_dict()
    else:
        checkpoint = torch.load(
            task_or_checkpoint, map_location='cpu', weights_only=True
        )
        parameters = checkpoint.get('hyper_parameters', {})
        state = checkpoint.get('state_dict', {})

    prefix = f'{source}.backbone.network.'
    tensors = {
        f'model.{name.removeprefix(prefix)}': tensor.detach().cpu().clone()
        for name, tensor in state.items()
        if name.startswith(prefix)
    }
    if not tensors or 'model' not in parameters:
        raise ValueError(
            f'{task_or_checkpoint!s:.200} holds no tensor named {prefix}*: only a CMID task or its '
            'checkpoint has a backbone to export, pass one of those'
        )
    description = {
        'model': parameters['model'],
        'in_channels': parameters['in_channels'],
        'size': parameters['size'],
        'bands': list(parameters.get('bands') or ()),
        'source': source,
        'ssl_method': 'CMID',
    } | {name: state[name].tolist() for name in VALUES}
    write_atomically(
        {'hyper_parameters': description, 'state_dict': tensors}, Path(path)
    )
    return Path(path)


def write_atomically(content: dict[str, Any], path: Path) -> None:
    """Save beside the path, then rename: a reader never meets half a file.

    Args:
        content: What :func:`torch.save` takes.
        path: File to write.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f'.{path.name}.{os.getpid()}')
    try:
        torch.save(content, beside)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def load_weights(backbone: MaskedBackbone, weights: WeightsEnum | str) -> None:
    """Load a backbone's tensors, all of them or none.

    Args:
        backbone: To load into.
        weights: A weights enum, or the path of a backbone file.

    Raises:
        ValueError: If the file is none, or its tensors are not the backbone's.
    """
    if isinstance(weights, WeightsEnum):
        name, state = (
            str(weights),
            weights.get_state_dict(progress=True, check_hash=True),
        )
    else:
        name, state = read_backbone_file(weights)
    own = backbone.network.state_dict()
    fitting = {
        key: tensor
        for key, tensor in state.items()
        if key in own and own[key].shape == tensor.shape
    }
    # What is left over may only be a classifier's, of which the backbone has none
    heads = ('fc.', 'head.', 'head_dist.')
    foreign = [key for key in state if key not in fitting and not key.startswith(heads)]
    if len(fitting) < len(own) or foreign:
        raise ValueError(
            f'{len(fitting)} of {len(own)} tensors match between {name} and {backbone.name}'
            f'{", left over " + ", ".join(foreign[:3]) if foreign else ""}: choose weights of the same '
            'model and number of bands'
        )
    backbone.network.load_state_dict(fitting, strict=True)


def read_backbone_file(path: str) -> tuple[str, dict[str, Tensor]]:
    """Read a file that :func:`export_backbone` wrote.

    Args:
        path: The file.

    Returns:
        timm's name of the network, and its tensors by timm's names.

    Raises:
        ValueError: If the file is missing or holds no backbone.
    """
    if not os.path.exists(path):
        raise ValueError(
            f'weights={path!r}: no such file and no name of weights, check the path'
        )
    content = torch.load(path, map_location='cpu', weights_only=True)
    name = content.get('hyper_parameters', {}).get('model')
    state = content.get('state_dict', {})
    tensors = {
        key.removeprefix('model.'): value
        for key, value in state.items()
        if key.startswith('model.')
    }
    if name is None or not tensors:
        raise ValueError(
            f'weights={path!r} is no backbone file: make one of a checkpoint with '
            'cmid_geo.models.export_backbone(checkpoint, path)'
        )
    return name, tensors
