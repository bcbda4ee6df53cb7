# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Conversion of a backbone's tensors to timm's names, whoever wrote them."""

import re
from collections.abc import Collection, Mapping, Sequence
from itertools import islice

from torch import Tensor

from .checkpoint import under
from .convert_official import convert_released_state_dict, is_released_swin, rename

#: What sits behind the features, by the beginnings of its names: never part of a backbone.
HEADS = ('fc.', 'head.', 'heads.', 'head_dist.', 'fc_norm.', 'attn_pool.', 'classifier.',
         'mask_token')  # fmt: skip

#: Buffers that follow from the window's size.
COMPUTED = ('relative_position_index', 'relative_coords_table', 'attn_mask')

#: First tensors of the networks known here, to find a backbone inside of something larger.
FIRST = ('conv1.weight', 'conv1.0.weight', 'stem.0.weight', 'stem_0.weight', 'patch_embed.proj.weight',
         'patch_embed.projection.weight', 'features.0.0.weight', 'conv_proj.weight')  # fmt: skip

#: torchvision's names and timm's, of Swin (both versions), ConvNeXt and ViT.
SWIN = (
    (r'^features\.0\.0\.', 'patch_embed.proj.'),
    (r'^features\.0\.2\.', 'patch_embed.norm.'),
    (r'\.mlp\.0\.', '.mlp.fc1.'),
    (r'\.mlp\.3\.', '.mlp.fc2.'),
    (r'^head\.', 'head.fc.'),
)
CONVNEXT = (
    (r'^features\.0\.', 'stem.'),
    (r'\.block\.0\.', '.conv_dw.'),
    (r'\.block\.2\.', '.norm.'),
    (r'\.block\.3\.', '.mlp.fc1.'),
    (r'\.block\.5\.', '.mlp.fc2.'),
    (r'\.layer_scale$', '.gamma'),
    (r'^classifier\.0\.', 'head.norm.'),
    (r'^classifier\.2\.', 'head.fc.'),
)
VIT = (
    (r'^class_token$', 'cls_token'),
    (r'^encoder\.pos_embedding$', 'pos_embed'),
    (r'^conv_proj\.', 'patch_embed.proj.'),
    (r'^encoder\.layers\.encoder_layer_', 'blocks.'),
    (r'^encoder\.ln\.', 'norm.'),
    (r'\.ln_([12])\.', r'.norm\1.'),
    (r'\.self_attention\.in_proj_', '.attn.qkv.'),
    (r'\.self_attention\.out_proj\.', '.attn.proj.'),
    (r'\.mlp\.(?:0|linear_1)\.', '.mlp.fc1.'),
    (r'\.mlp\.(?:3|linear_2)\.', '.mlp.fc2.'),
    (r'^heads\.head\.', 'head.'),
)


def canonical_name(name: str) -> str:
    """Undo how feature extractors write timm's names: ``layers_0`` for ``layers.0``.

    Args:
        name: Name of a tensor.

    Returns:
        timm's own.
    """
    return re.sub(r'^(layers|stages|stem)_(\d+)\.', r'\1.\2.', name)


def to_timm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give the tensors of timm, torchvision or the authors timm's names.

    Args:
        state: A backbone's tensors, without prefix.

    Returns:
        The same by timm's names.
    """
    if is_released_swin(state):
        return convert_released_state_dict(state)
    if 'features.0.0.weight' in state and any('.attn.' in name for name in state):
        state = _part_query_and_value(_torchvision(state, 'layers', SWIN))
    elif 'features.0.0.weight' in state and any('.block.0.' in name for name in state):
        state = _torchvision(state, 'stages', CONVNEXT)
    elif 'conv_proj.weight' in state:
        state = {rename(name, VIT): tensor for name, tensor in state.items()}
    return {canonical_name(name): tensor for name, tensor in state.items()}


def find_backbone(
    state: Mapping[str, Tensor], wanted: Collection[str]
) -> tuple[str, dict[str, Tensor]]:
    """Find the backbone inside of a larger model, by how many of its names are wanted.

    Args:
        state: Tensors of a model: of a task, a detector, a segmentation network.
        wanted: timm's names of the tensors to be filled.

    Returns:
        The prefix of the backbone's names there, and its tensors by timm's names.
    """
    anchors = (*FIRST, *islice(wanted, 1))
    wanted = set(wanted)
    ends = tuple(f'.{first}' for first in anchors)
    found_in = {n.removesuffix(e[1:]) for n in state for e in ends if n.endswith(e)}
    # Each by its first name, whatever tensor that is
    places = {
        p: next(i for i, n in enumerate(state) if n.startswith(p)) for p in found_in
    }
    best, found = '', to_timm(state)
    # The outermost of those that fit alike, and the first of these
    for prefix in sorted(places, key=lambda each: (each.count('.'), places[each])):
        inner = to_timm(under(state, prefix))
        if len(wanted & set(inner)) > len(wanted & set(found)):
            best, found = prefix, inner
    return best, found


def _torchvision(
    state: Mapping[str, Tensor], stages: str, table: Sequence[tuple[str, str]]
) -> dict[str, Tensor]:
    """Translate Swin or ConvNeXt, whose stages timm calls *stages*."""
    converted = {}
    for name, tensor in state.items():
        layer = re.match(r'features\.([1-7])\.(.*)', name)
        if layer:
            name = f'{stages}.{_stage(layer[1])}.{layer[2]}'
        name = rename(name, table)
        converted[name] = tensor.flatten() if name.endswith('.gamma') else tensor
    return converted


def _part_query_and_value(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Part Swin v2's biases as timm has them: the one of keys is 0 and left out."""
    if any('.cpb_mlp.' in name for name in state):
        for name in [name for name in state if name.endswith('attn.qkv.bias')]:
            query, _, value = state.pop(name).chunk(3)
            name = name.removesuffix('qkv.bias')
            state |= {f'{name}q_bias': query, f'{name}v_bias': value}
    return state


def _stage(layer: str) -> str:
    """Stage and part of a layer: torchvision counts stems, stages and mergings in one row."""
    number = int(layer)
    return f'{number // 2}.{"blocks" if number % 2 else "downsample"}'
