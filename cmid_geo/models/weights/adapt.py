# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Adaptation of tensors to another size: bands, windows and positions."""

from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import resample_abs_pos_embed, resize_rel_pos_bias_table
from torch import Tensor, nn

from ...ops.bands import find_bands


def repeat_bands(weight: Tensor, bands: int) -> Tensor:
    """Repeat the filters of a first convolution over other bands, as timm does with three.

    Args:
        weight: Filters (filters, given bands, height, width).
        bands: Bands wanted. One gets the sum of all.

    Returns:
        Filters scaled by given over wanted bands, so that a grey image gives what it gave.
    """
    given = weight.shape[1]
    if bands == 1:
        return weight.sum(1, keepdim=True)
    repeated = weight.repeat(1, -(-bands // given), 1, 1)[:, :bands]
    return repeated * (given / bands)


def copy_bands(weight: Tensor, given: Sequence[str], wanted: Sequence[str]) -> Tensor:
    """Copy the filters of a first convolution band by band, by their names.

    Args:
        weight: Filters (filters, given bands, height, width).
        given: Names of the bands it was trained on, compared as :func:`find_bands` does.
        wanted: Names of the bands it is to take.

    Returns:
        Filters of the wanted bands. Those of a band that was not given are 0: the network
        starts as it was, and learns to use them.

    Raises:
        ValueError: If the names are not as many as the filters' bands, or none was given.
    """
    if len(given) != weight.shape[1]:
        raise ValueError(
            f'the weights name {len(given)} bands ({", ".join(given) or "none"}) but have filters for '
            f'{weight.shape[1]}: leave out bands=..., the filters are then repeated over all bands'
        )
    if not all(isinstance(name, str) for name in wanted):
        raise ValueError(
            f'bands={list(wanted)}: name the bands, as in bands=("red", "green", "blue")'
        )
    found = find_bands(wanted, given)
    if all(place is None for place in found):
        raise ValueError(
            f'bands={list(wanted)}: none of them is among those of the weights ({", ".join(given)}): '
            'name them as the weights do, or leave out bands=... to repeat the filters'
        )
    zeros = torch.zeros_like(weight[:, 0])
    return torch.stack([zeros if p is None else weight[:, p] for p in found], dim=1)


def resize_positions(name: str, tensor: Tensor, model: nn.Module) -> Tensor | None:
    """Resample what a transformer learned of positions to the size of another.

    Args:
        name: Name of the tensor in the model.
        tensor: Swin's table of biases or ViT's embeddings, of another size.
        model: That holds the name.

    Returns:
        The tensor in the model's size; None if it is nothing of the kind.
    """
    path, _, kind = name.rpartition('.')
    owner: Any = model.get_submodule(path)
    own = getattr(owner, kind)
    if tensor.ndim != own.ndim or tensor.shape[-1] != own.shape[-1]:
        return None
    if kind == 'relative_position_bias_table':
        return resize_rel_pos_bias_table(tensor, owner.window_size, tuple(own.shape))
    if kind == 'pos_embed' and hasattr(owner, 'patch_embed'):
        rows, cols = owner.patch_embed.grid_size
        prefix = own.shape[1] - rows * cols
        side = (tensor.shape[1] - prefix) ** 0.5
        if side == int(side):
            size = [rows, cols]
            return resample_abs_pos_embed(tensor, size, num_prefix_tokens=prefix)
    return None


def replace_first_convolution(model: nn.Module, name: str, bands: int) -> None:
    """Let the first convolution of a model take another number of bands.

    Args:
        model: Changed in place.
        name: Name of its weight.
        bands: Bands to take.

    Raises:
        ValueError: If the convolution is grouped.
    """
    owner: Any = model.get_submodule(name.removesuffix('.weight'))
    if owner.groups != 1:
        raise ValueError(
            f'{name} is a convolution of {owner.groups} groups, which takes other bands only if the '
            f'network is built so: in_chans={bands} when you create it'
        )
    # The module stays: it may normalize its weights or pad in its own way
    filters = owner.weight
    anew = filters.new_empty(len(filters), bands, *filters.shape[2:])
    owner.weight = nn.Parameter(anew, requires_grad=filters.requires_grad)
    nn.init.kaiming_uniform_(owner.weight, a=5**0.5)
    owner.in_channels = bands
