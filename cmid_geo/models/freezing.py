# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Freezing of parts of a pretrained backbone, and of its batch norms.

Both timm and torchvision freeze batch norms by putting modules of another class in their place; here
modules stay, so that checkpoints fit with and without freezing.
"""

from itertools import chain, pairwise
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from .pyramid import Pyramid

#: Parts of a backbone: what comes before its first stage, and four stages.
PARTS = 5


class KeepFrozen(nn.Module):
    """A network of which the frozen parts stay in evaluation mode while the rest trains."""

    _frozen: tuple[nn.Module, ...] = ()

    def freeze(
        self, pyramid: Pyramid, trainable_layers: int = PARTS, freeze_bn: bool = False
    ) -> None:
        """Freeze parts of the backbone, see :func:`freeze_parts`."""
        # A tuple, so that they are not registered a second time
        self._frozen = freeze_parts(pyramid, trainable_layers, freeze_bn)
        # Lightning keeps the modes that it finds and does not call train()
        self.train()

    def train(self, mode: bool = True) -> 'KeepFrozen':
        """Set training mode; frozen parts stay as they are.

        Args:
            mode: Whether to train, or to evaluate.

        Returns:
            The network.
        """
        super().train(mode)
        for part in self._frozen:
            part.eval()
        return self


def freeze_parts(
    pyramid: Pyramid, trainable_layers: int = PARTS, freeze_bn: bool = False
) -> tuple[nn.Module, ...]:
    """Freeze the first parts of a backbone, and its batch norms.

    A backbone has five parts: the stem, with embeddings of positions, and four stages; those
    of a ViT are quarters of its blocks. The paper's ResNets train the last three.

    Args:
        pyramid: Holds the backbone. Its parameters are changed in place.
        trainable_layers: Parts to train, counted from the last, 0 to 5.
        freeze_bn: Whether the batch norms of all parts keep statistics, scale and shift.

    Returns:
        Modules that must stay in evaluation mode while the rest trains.

    Raises:
        ValueError: If the number is out of range, or the parts of the network are not known.
    """
    if not 0 <= trainable_layers <= PARTS:
        raise ValueError(
            f'trainable_layers={trainable_layers}: a backbone has {PARTS} parts, a stem and four '
            f'stages, give the number of those to train, 0 to {PARTS}'
        )
    frozen: list[Any] = []
    if trainable_layers < PARTS:
        frozen += chain.from_iterable(_parts(pyramid)[: PARTS - trainable_layers])
    if freeze_bn:
        frozen += [m for m in pyramid.network.modules() if isinstance(m, _BatchNorm)]
    for each in frozen:
        each.requires_grad_(False)
    return tuple(each for each in frozen if isinstance(each, nn.Module))


def _parts(pyramid: Pyramid) -> list[list[Any]]:
    """Modules and parameters of the stem and of each stage, in their order."""
    network: Any = pyramid.network
    if pyramid.scales is not None:
        blocks = list(network.blocks)
        behind = [*blocks, network.norm]
        inner = {id(each) for part in behind for each in part.parameters()}
        stem = [each for each in network.parameters() if id(each) not in inner]
        ends = [round(len(blocks) * part / 4) for part in range(5)]
        quarters = [blocks[start:end] for start, end in pairwise(ends)]
        quarters[-1].append(network.norm)
        return [stem, *quarters]
    names = [name.replace('.', '_') for name in network.feature_info.module_name()][-4:]
    children = dict(network.named_children())
    if not set(names) <= set(children):
        raise ValueError(
            f'the stages of {pyramid.name!r} are not known: set trainable_layers={PARTS} to train '
            'all of it, or freeze_backbone=True to train none'
        )
    parts: list[list[Any]] = [[] for _ in range(PARTS)]
    place = 0
    for name, child in children.items():
        # What stands before a stage and behind the last belongs to it; the stem ends with the first
        place = max(place, int(name == names[0]))
        parts[min(place, PARTS - 1)].append(child)
        if name in names:
            place = names.index(name) + 2
    return parts
