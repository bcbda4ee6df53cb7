# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Decoders of segmentation_models_pytorch on any timm backbone."""

from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, get_args

from torch import nn

from .pyramid import Pyramid, is_vit

Decoder = Literal[
    'upernet', 'unet', 'unet++', 'fpn', 'deeplabv3+', 'segformer', 'manet', 'linknet', 'dpt',
]  # fmt: skip

DECODERS = get_args(Decoder)

#: Decoders that want the last map at stride 16.
DILATED = ('deeplabv3+',)


def create_segmenter(
    decoder: Decoder,
    backbone: str,
    in_channels: int = 3,
    classes: int = 1,
    pretrained: bool = False,
    drop_path_rate: float = 0.0,
    **options: Any,
) -> Any:
    """Create a model of segmentation_models_pytorch on any backbone of timm.

    Args:
        decoder: Name of the decoder. 'dpt' is for ViT only; all others take any backbone.
        backbone: timm's name of the backbone.
        in_channels: Number of bands.
        classes: Number of maps of logits.
        pretrained: Whether to start from timm's weights.
        drop_path_rate: Stochastic depth of the backbone, in [0, 1).
        options: Of the decoder, such as ``decoder_channels``.

    Returns:
        A model with ``encoder``, ``decoder`` and ``segmentation_head`` that takes images whose
        sides are multiples of 32.

    Raises:
        ValueError: If there is no such decoder or backbone, or they do not go together.
    """
    if decoder not in DECODERS:
        raise ValueError(f'model={decoder!r} is no decoder: choose of {list(DECODERS)}')
    # Imported where it is needed: it takes seconds
    import segmentation_models_pytorch as smp

    arch = decoder.replace('++', 'plusplus').replace('3+', '3plus')
    kind = partial(smp.create_model, arch)
    options |= {'classes': classes, 'in_channels': in_channels, 'encoder_weights': None}
    if decoder == 'dpt':
        if not is_vit(backbone):
            raise ValueError(
                f"model='dpt' reads the tokens of a ViT but backbone={backbone!r} has none: choose "
                "model='upernet', or a backbone such as 'vit_small_patch16_224'"
            )
        options['encoder_weights'] = 'imagenet' if pretrained else None
        return kind(
            encoder_name=f'tu-{backbone}', dynamic_img_size=True, drop_path_rate=drop_path_rate,
            **options,
        )  # fmt: skip
    stride = 16 if decoder in DILATED else 32
    encoder = Pyramid(backbone, in_channels, pretrained, drop_path_rate, stride)
    with _offered(encoder, smp.encoders.encoders) as name:
        return kind(encoder_name=name, **options)


@contextmanager
def _offered(encoder: Pyramid, known: dict[str, Any]) -> Generator[str]:
    """Offer an encoder under a name: models of the library build theirs by name."""
    name = f'cmid_geo {id(encoder)}'
    entry = {'params': {}, 'pretrained_settings': {}}
    known[name] = entry | {'encoder': lambda **_: encoder}
    try:
        yield name
    finally:
        del known[name]


class FCNHead(nn.Sequential):
    """The head that UPerNet is trained with beside its own, on the map of stride 16.

    A 3x3 convolution, batch norm, ReLU, dropout 0.1 and a 1x1 convolution; torchvision's head of the
    same name has a quarter of the map's channels between them.
    """

    def __init__(self, in_channels: int, classes: int, width: int = 256) -> None:
        """Initialize a new FCNHead instance.

        Args:
            in_channels: Channels of the map.
            classes: Number of maps of logits.
            width: Channels between the convolutions.
        """
        super().__init__(
            nn.Conv2d(in_channels, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Dropout2d(0.1),
            nn.Conv2d(width, classes, 1),
        )
