# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Networks of timm, of any size of image."""

import warnings
from difflib import get_close_matches
from typing import Any

import timm
from jaxtyping import Float
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from ..ops.cells import CELL

#: Families that are fixed to one size unless told: how to tell them.
ANY_SIZE: dict[tuple[str, ...], dict[str, Any]] = {
    ('swin',): {'strict_img_size': False},
    ('vit', 'deit', 'eva', 'flexivit'): {'dynamic_img_size': True},
}


def create_network(
    name: str,
    in_channels: int = 3,
    num_classes: int = 0,
    pretrained: bool = False,
    drop_path_rate: float = 0.0,
    **options: Any,
) -> Any:
    """Create a network of timm that accepts images of any size its patches divide.

    Args:
        name: timm's name of the network.
        in_channels: Number of bands.
        num_classes: Number of classes; 0 for no classifier.
        pretrained: Whether to start from timm's weights.
        drop_path_rate: Stochastic depth, in [0, 1): the largest probability with which a block
            is skipped in training.
        options: Of timm's, such as ``features_only``.

    Returns:
        The network.

    Raises:
        ValueError: If timm does not know the name, or the network has no stochastic depth
            and shall have one.
    """
    check_name(name)
    if not 0 <= drop_path_rate < 1:
        raise ValueError(
            f'drop_path_rate={drop_path_rate} is the probability of skipping a block: give one in [0, 1)'
        )
    options |= {'in_chans': in_channels, 'pretrained': pretrained}
    if not options.get('features_only'):
        options['num_classes'] = num_classes
    for families, option in ANY_SIZE.items():
        if name.startswith(families):
            options |= option
    try:
        return timm.create_model(name, drop_path_rate=drop_path_rate, **options)
    except TypeError as error:
        if 'drop_path_rate' not in str(error):
            raise
        if drop_path_rate:
            raise ValueError(
                f'{name!r} has no stochastic depth: set drop_path_rate=0'
            ) from error
        return timm.create_model(name, **options)


def check_name(name: str, supported: str = '') -> None:
    """Refuse a name that timm does not know.

    Args:
        name: Of a network.
        supported: What may be chosen, for the message.

    Raises:
        ValueError: If timm has no such network.
    """
    if timm.is_model(name):
        return
    near = get_close_matches(name, timm.list_models(), n=3)
    hint = f' (did you mean {", ".join(near)}?)' if near else ''
    supported = supported or "timm.list_models('resnet*') lists the names of a family"
    raise ValueError(f'backbone {name!r} is not known to timm{hint}: {supported}')


def check_sides(
    image: Float[Tensor, 'batch bands height width'], cell: int = CELL
) -> None:
    """Refuse images that are not made of whole cells.

    Args:
        image: Of any size.
        cell: Side of a cell in pixels.

    Raises:
        ValueError: If a side is no multiple of *cell*.
    """
    height, width = image.shape[2:]
    if height % cell or width % cell:
        raise ValueError(
            f'images of {height}x{width} pixels: both sides must be multiples of {cell}, pad or crop '
            f'them to {-(-height // cell) * cell}x{-(-width // cell) * cell}'
        )


def pooling_of(network: Any) -> str | None:
    """How a ViT's tokens become the one vector that its classifier sees.

    Args:
        network: timm's network.

    Returns:
        timm's ``global_pool``: 'token' (the class token), 'avg' (the mean of the patch tokens), ...;
        None for a network that is no plain ViT.
    """
    return network.global_pool if isinstance(network, VisionTransformer) else None


def set_pooling(network: Any, global_pool: str) -> None:
    """Choose how a ViT's tokens become one vector; classifier and names of tensors stay.

    timm's ``reset_classifier`` does the same and makes a new classifier; a ViT created with
    ``global_pool='avg'`` has its last norm behind the mean, under another name.

    Args:
        network: timm's network.
        global_pool: 'token' or 'avg', see :func:`pooling_of`; or what the network has.

    Raises:
        ValueError: If the network is no plain ViT, or has no class token.

    Warns:
        UserWarning: If the network reads its class tokens however it is told.
    """
    if pooling_of(network) == global_pool:
        return
    if pooling_of(network) is None or global_pool not in ('token', 'avg'):
        raise ValueError(
            f"global_pool={global_pool!r} of a {type(network).__name__}: 'token' and 'avg' choose how the tokens "
            'of a plain ViT (vit_*, deit_*) are pooled, leave it out for others'
        )
    if global_pool == 'token' and not network.has_class_token:
        raise ValueError(
            "global_pool='token': this ViT has no class token, choose global_pool='avg'"
        )
    if type(network).forward_head is not VisionTransformer.forward_head:
        warnings.warn(
            f'{type(network).__name__} classifies by its class tokens, which CMID does not train: choose a '
            'ViT without distillation',
            stacklevel=3,
        )
    network.attn_pool, network.global_pool = None, global_pool
