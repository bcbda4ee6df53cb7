# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Siamese models of change: one encoder for both dates, one decoder for what differs."""

from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .bit import BIT, encode_dates
from .segmentation import DECODERS, Decoder, create_segmenter

#: What decides about change: a decoder of segmentation_models_pytorch, or the transformer.
ChangeDecoder = Decoder | Literal['bit']
Fusion = Literal['difference', 'concatenation', 'bit']

#: Which of the six maps a decoder reads, where it is not all but the image.
READS = {'upernet': (2, 3, 4, 5), 'fpn': (2, 3, 4, 5), 'deeplabv3+': (2, 5)}


def create_change_model(
    decoder: ChangeDecoder,
    backbone: str,
    in_channels: int = 3,
    classes: int = 1,
    fusion: Fusion = 'difference',
    pretrained: bool = False,
    drop_path_rate: float = 0.0,
    **options: Any,
) -> 'SiameseModel | BIT':
    """Create a model of change on any backbone of timm.

    Args:
        decoder: Name of a decoder, or 'bit' for the bitemporal transformer.
        backbone: timm's name of the backbone, which sees one date at a time.
        in_channels: Number of bands of a date.
        classes: Number of maps of scores.
        fusion: How the two maps of each scale become one: 'difference' or 'concatenation'. The
            bitemporal transformer is a fusion with a head of its own: 'bit' goes with
            ``decoder='bit'`` only, which takes 'difference' as well, since it ends in one.
        pretrained: Whether to start from timm's weights.
        drop_path_rate: Stochastic depth of the backbone, in [0, 1).
        options: Of the decoder, such as ``decoder_channels``; of 'bit' ``tokens`` and ``width``.

    Returns:
        A model with ``encoder``, ``decoder`` and ``segmentation_head`` that takes
        (batch, 2, bands, height, width).

    Raises:
        ValueError: If there is no such decoder or backbone, or choices do not go together.
    """
    if (fusion == 'bit') > (decoder == 'bit'):
        raise ValueError(
            f"fusion='bit' has no place for the decoder {decoder!r}: choose model='bit', or "
            "fusion='difference' or 'concatenation'"
        )
    if decoder == 'bit':
        if fusion == 'concatenation':
            raise ValueError(
                "model='bit' compares by the difference: leave out fusion='concatenation', or "
                f'choose another model of {list(DECODERS)}'
            )
        return BIT(
            backbone, in_channels, classes, pretrained, drop_path_rate, **options
        )
    if decoder == 'dpt':
        raise ValueError(
            "model='dpt' reads the tokens of one image, not maps of two: choose model='upernet' or "
            "'unet', which take ViT as well"
        )
    segmenter = create_segmenter(
        decoder, backbone, in_channels, classes, pretrained, drop_path_rate, **options
    )
    return SiameseModel(segmenter, decoder, fusion)


class SiameseModel(nn.Module):
    """A segmentation model whose encoder sees two dates, and whose decoder sees one fused set.

    Attributes:
        encoder: The :class:`~cmid_geo.models.pyramid.Pyramid` that both dates share.
        fusions: What makes one map of two, a module for each scale.
        decoder: Of segmentation_models_pytorch.
        segmentation_head: From its last map to scores.
    """

    def __init__(self, segmenter: Any, decoder: str, fusion: str) -> None:
        """Initialize a new SiameseModel instance.

        Args:
            segmenter: With ``encoder``, ``decoder`` and ``segmentation_head``.
            decoder: Its name, which tells the maps it reads.
            fusion: 'difference' or 'concatenation'.
        """
        super().__init__()
        self.encoder: Any = segmenter.encoder
        self.decoder: Any = segmenter.decoder
        self.segmentation_head: Any = segmenter.segmentation_head
        read = READS.get(decoder, (1, 2, 3, 4, 5))
        # What no decoder reads gets no weights: they would wait for gradients in vain
        self.fusions = nn.ModuleList(
            Fuse(channels, fusion == 'concatenation' and channels > 0 and index in read)
            for index, channels in enumerate(self.encoder.out_channels)
        )

    def forward(
        self, pair: Float[Tensor, 'batch 2 bands height width']
    ) -> Float[Tensor, 'batch classes height width']:
        """Compute scores of change.

        Args:
            pair: Both dates, standardised, with sides that are multiples of 32 pixels.

        Returns:
            Scores of each pixel.
        """
        maps = encode_dates(self.encoder, pair)
        fused = [fuse(*dates) for fuse, dates in zip(self.fusions, maps)]
        return self.segmentation_head(self.decoder(fused))


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
