# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Models of change on any timm backbone."""

from typing import Any, Literal

from .bit import BIT
from .segmentation import DECODERS, Decoder, create_segmenter
from .siamese import SiameseModel

#: What decides about change: a decoder of segmentation_models_pytorch, or the transformer.
ChangeDecoder = Decoder | Literal['bit']
Fusion = Literal['difference', 'concatenation', 'bit']


def create_change_model(
    decoder: ChangeDecoder,
    backbone: str,
    in_channels: int = 3,
    classes: int = 1,
    fusion: Fusion = 'difference',
    pretrained: bool = False,
    drop_path_rate: float = 0.0,
    **options: Any,
) -> SiameseModel | BIT:
    """Create a model of change on any backbone of timm.

    Args:
        decoder: Name of a decoder, or 'bit' for the bitemporal transformer.
        backbone: timm's name of the backbone, which sees one date at a time.
        in_channels: Number of bands of a date.
        classes: Number of maps of logits.
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
    network = (backbone, in_channels, classes, pretrained, drop_path_rate)
    if decoder == 'bit':
        if fusion == 'concatenation':
            raise ValueError(
                "model='bit' compares by the difference: leave out fusion='concatenation', or "
                f'choose another model of {list(DECODERS)}'
            )
        return BIT(*network, **options)
    if decoder == 'dpt':
        raise ValueError(
            "model='dpt' reads the tokens of one image, not maps of two: choose model='upernet' or "
            "'unet', which take ViT as well"
        )
    segmenter = create_segmenter(decoder, *network, **options)
    return SiameseModel(segmenter, decoder, fusion)
