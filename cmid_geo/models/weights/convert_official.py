# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Conversion of the authors' released checkpoints to our names of the same tensors."""

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .checkpoint import under

#: In a full file the backbone that gradients moved, and the other that followed it.
STUDENT, TEACHER = 'online_encoder.', 'branch_encoder.'

#: The released Swin's names, and timm's.
SWIN = (
    (r'^patch_embed\.projection\.', 'patch_embed.proj.'),
    (r'^stages\.(\d+)\.blocks\.', r'layers.\1.blocks.'),
    (r'\.attn\.w_msa\.', '.attn.'),
    (r'\.ffn\.layers\.0\.0\.', '.mlp.fc1.'),
    (r'\.ffn\.layers\.1\.', '.mlp.fc2.'),
    (r'^norm3\.', 'norm.'),
)

#: What else a full file holds, and where CMID keeps it. The layers of the prototype head
#: have the same numbers in both.
TRAINING = (
    (r'^online_projector\.layer\.0\.0\.', 'student.projector.layers.0.'),
    (r'^online_projector\.layer\.0\.3\.', 'student.projector.layers.2.'),
    (r'^branch_projector\.layer\.0\.0\.', 'teacher.projector.layers.0.'),
    (r'^branch_projector\.layer\.0\.3\.', 'teacher.projector.layers.2.'),
    (r'^class_projector\.mlp\.', 'student.prototypes.layers.'),
    (r'^branch_class_projector\.mlp\.', 'teacher.prototypes.layers.'),
    (r'^class_projector\.last_layer\.weight_v$', 'student.prototypes.directions'),
    (
        r'^branch_class_projector\.last_layer\.weight_v$',
        'teacher.prototypes.directions',
    ),
    (r'^online_encoder\.mask_token$', 'student.backbone.mask_token'),
    (r'^branch_encoder\.mask_token$', 'teacher.backbone.mask_token'),
    (r'^mim2org\.decoder_pred\.0\.', 'decoder.layers.0.'),
    (r'^class_loss\.center$', 'assign.center'),
)


def convert_released_state_dict(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give the backbone of a released file timm's names.

    ResNet-50's names are timm's already. Swin-B's are not, and the inputs of its patch
    merging come in another order: four neighbours of each channel there, all channels of
    each neighbour in timm.

    Args:
        state_dict: Tensors of a backbone-only file, or those under ``model`` of a full one,
            of which the student's backbone is taken.

    Returns:
        The backbone's tensors by timm's names.

    Source: https://doi.org/10.1109/TGRS.2023.3268232
    """
    if is_full(state_dict):
        state_dict = under(state_dict, f'{STUDENT}model.')
    if not is_released_swin(state_dict):
        return dict(state_dict)
    converted = {}
    for name, tensor in state_dict.items():
        # Follows from the window alone; timm computes it
        if name.endswith('relative_position_index'):
            continue
        merging = re.match(r'stages\.(\d+)\.downsample\.(.*)', name)
        if merging:
            # timm merges at the start of a stage, not at the end of the one before
            name = f'layers.{int(merging[1]) + 1}.downsample.{merging[2]}'
            tensor = _by_neighbour(tensor)
        converted[rename(name, SWIN)] = tensor
    return converted


def convert_released_training_state(
    state_dict: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """Give all tensors of a full released file the names of :class:`~cmid_geo.tasks.CMID`.

    Args:
        state_dict: Tensors under ``model`` of a full file.

    Returns:
        Student, teacher, decoder, queue and centre, as in the task's ``state_dict``.
    """
    training = {}
    for side, prefix in (('student', STUDENT), ('teacher', TEACHER)):
        inner = under(state_dict, f'{prefix}model.') or under(state_dict, prefix)
        for name, tensor in convert_released_state_dict(inner).items():
            if name != 'mask_token':
                training[f'{side}.backbone.network.{name}'] = tensor
    for name, tensor in state_dict.items():
        ours = rename(name, TRAINING)
        if ours == name:
            continue
        if ours.endswith(('mask_token', 'center')):
            tensor = tensor.flatten()
        elif ours.startswith(('student.p', 'teacher.p')):
            # Layers over cells are written as 1x1 convolutions there
            tensor = tensor.flatten(1) if tensor.ndim > 2 else tensor
        training[ours] = tensor
    if 'queue' in state_dict:
        keys = state_dict['queue'].T.contiguous()
        training['queue.keys'] = keys
        # Random vectors at first, so always full; the pointer is at the oldest
        cursor = int(state_dict['queue_ptr']) if 'queue_ptr' in state_dict else 0
        training['queue.seen'] = torch.tensor(len(keys) + cursor)
    return training


def is_full(state_dict: Mapping[str, Tensor]) -> bool:
    """Whether these are the tensors of a full released file.

    Args:
        state_dict: Tensors by name.

    Returns:
        True if so.
    """
    return any(name.startswith(f'{STUDENT}model.') for name in state_dict)


def is_released_swin(state_dict: Mapping[str, Tensor]) -> bool:
    """Whether these are the released Swin's names.

    Args:
        state_dict: Tensors by name, without prefix.

    Returns:
        True if so.
    """
    return any('.attn.w_msa.' in name for name in state_dict)


def _by_neighbour(tensor: Tensor) -> Tensor:
    """Reorder the inputs of a patch merging from (channel, neighbour) to (neighbour, channel)."""
    channels = tensor.unflatten(-1, (-1, 4))[..., [0, 2, 1, 3]]
    return channels.transpose(-1, -2).flatten(-2).contiguous()


def rename(name: str, table: Sequence[tuple[str, str]]) -> str:
    """Give a tensor another name.

    Args:
        name: Name of a tensor.
        table: Regular expressions and their replacements, applied one after the other.

    Returns:
        The new name.
    """
    for pattern, replacement in table:
        name = re.sub(pattern, replacement, name)
    return name
