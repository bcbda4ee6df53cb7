# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Siamese models of change: one encoder for both dates, one decoder for what differs."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

#: Indices of the maps that a decoder reads, where it is not all six but the image.
READS = {'upernet': (2, 3, 4, 5), 'fpn': (2, 3, 4, 5), 'deeplabv3+': (2, 5)}


class Siamese(nn.Module, ABC):
    """A model that encodes both dates in one pass: batch norm then sees them alike.

    Attributes:
        encoder: The :class:`~cmid_geo.models.pyramid.Pyramid` that both dates share.
        decoder: From the maps of two dates to one map of change.
        segmentation_head: From that map to logits.
    """

    encoder: Any
    decoder: Any
    segmentation_head: Any

    def forward(
        self, pair: Float[Tensor, 'batch 2 bands height width']
    ) -> Float[Tensor, 'batch classes height width']:
        """Compute logits of change.

        Args:
            pair: Both dates, normalized, with sides that are multiples of 32 pixels.

        Returns:
            Logits of each pixel.
        """
        maps = self.encoder(pair.flatten(0, 1))
        dates = [each.unflatten(0, (-1, 2)).unbind(1) for each in maps]
        return self.segmentation_head(self.decode(dates, pair.shape[-2:]))

    @abstractmethod
    def decode(
        self, dates: list[tuple[Tensor, Tensor]], size: tuple[int, ...]
    ) -> Tensor:
        """Make the head's input of the maps of both dates, one pair a scale, for images of *size*."""


class SiameseModel(Siamese):
    """A segmentation model whose encoder sees two dates, and whose decoder sees one fused set.

    Attributes:
        encoder: The :class:`~cmid_geo.models.pyramid.Pyramid` that both dates share.
        fusions: What makes one map of two, a module for each scale.
        decoder: Of segmentation_models_pytorch.
        segmentation_head: From its last map to logits.
    """

    def __init__(self, segmenter: Any, decoder: str, fusion: str) -> None:
        """Initialize a new SiameseModel instance.

        Args:
            segmenter: With ``encoder``, ``decoder`` and ``segmentation_head``.
            decoder: Its name, which tells the maps it reads.
            fusion: 'difference' or 'concatenation'.
        """
        super().__init__()
        self.encoder, self.decoder = segmenter.encoder, segmenter.decoder
        self.segmentation_head = segmenter.segmentation_head
        read = READS.get(decoder, (1, 2, 3, 4, 5))
        # What no decoder reads gets no weights: they would wait for gradients in vain
        self.fusions = nn.ModuleList(
            Fuse(channels, fusion == 'concatenation' and channels > 0 and index in read)
            for index, channels in enumerate(self.encoder.out_channels)
        )

    def decode(
        self, dates: list[tuple[Tensor, Tensor]], size: tuple[int, ...]
    ) -> Float[Tensor, 'batch _ rows cols']:
        """Fuse the maps of each scale, and decode them."""
        return self.decoder([fuse(*maps) for fuse, maps in zip(self.fusions, dates)])


class Fuse(nn.Module):
    """One map of those of two dates, as many channels as one has.

    The absolute difference does not know which date was first; a 1x1 convolution of both may.
    """

    def __init__(self, channels: int, concatenate: bool = False) -> None:
        """Initialize a new Fuse instance.

        Args:
            channels: Channels of each map.
            concatenate: Whether to concatenate and project the maps, not to subtract them.
        """
        super().__init__()
        self.project = nn.Conv2d(2 * channels, channels, 1) if concatenate else None

    def forward(
        self,
        first: Float[Tensor, 'batch channels rows cols'],
        second: Float[Tensor, 'batch channels rows cols'],
    ) -> Float[Tensor, 'batch channels rows cols']:
        """Fuse the maps of the first and the second date."""
        if self.project is None:
            return (first - second).abs()
        return self.project(torch.cat([first, second], dim=1))
