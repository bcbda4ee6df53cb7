# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Networks of timm's families of a size for tests: ``resnet_test``, ``swin_test``, ``vit_test`` ...

timm's own test networks have names that are no family's, and a ResNet with a stem of three layers.
"""

from typing import Any

from timm.models import register_model
from timm.models.resnet import BasicBlock, ResNet, _create_resnet
from timm.models.swin_transformer import SwinTransformer, _create_swin_transformer
from timm.models.swin_transformer_v2 import (
    SwinTransformerV2,
    _create_swin_transformer_v2,
)
from timm.models.vision_transformer import VisionTransformer, test_vit


@register_model
def resnet_test(pretrained: bool = False, **options: Any) -> ResNet:
    small = {'block': BasicBlock, 'layers': (1, 1, 1, 1), 'channels': (32, 48, 64, 96)}
    return _create_resnet('resnet18', pretrained, **(small | options))


#: Of Swin, first and second version.
SWIN: dict[str, Any] = {'embed_dim': 24, 'depths': (1, 1, 2, 1), 'num_heads': (1, 2, 4, 8)}  # fmt: skip


@register_model
def swin_test(pretrained: bool = False, **options: Any) -> SwinTransformer:
    variant = 'swin_tiny_patch4_window7_224'
    return _create_swin_transformer(variant, pretrained, **(SWIN | options))


@register_model
def swinv2_test(pretrained: bool = False, **options: Any) -> SwinTransformerV2:
    variant, small = 'swinv2_tiny_window8_256', SWIN | {'window_size': 8}
    return _create_swin_transformer_v2(variant, pretrained, **(small | options))


@register_model
def vit_test(pretrained: bool = False, **options: Any) -> VisionTransformer:
    return test_vit(pretrained, **options)
