# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Feature maps of several scales of any timm backbone."""

from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any

import torch.nn.functional as F
from jaxtyping import Float
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from ..ops.cells import CELL
from .classification import check_name, check_sides, create_network

#: Distances in pixels between the vectors of the maps that every pyramid has.
STRIDES = (4, 8, 16, 32)


class Pyramid(nn.Module):
    """Maps of an image from fine to coarse, as decoders and detectors want them.

    It keeps the promise of segmentation_models_pytorch's encoders: a list of the image itself
    and maps of strides 2, 4, 8, 16 and 32 whose channels are ``out_channels``. A network that
    has no map of stride 2 gives one of 0 channels. A ViT has one scale only: a simple feature
    pyramid (Li et al. 2022, https://arxiv.org/abs/2203.16527) makes the others from its last map.

    Attributes:
        name: timm's name of the network.
        network: timm's network, into which :func:`~cmid_geo.models.load_backbone` loads.
        out_channels: Channels of the maps, beginning with the image's bands.
        output_stride: Stride of the last map.
    """

    def __init__(
        self,
        name: str,
        in_channels: int = 3,
        pretrained: bool = False,
        drop_path_rate: float = 0.0,
        output_stride: int = 32,
    ) -> None:
        """Initialize a new Pyramid instance.

        Args:
            name: timm's name of a network.
            in_channels: Number of bands.
            pretrained: Whether to start from timm's weights.
            drop_path_rate: Stochastic depth, in [0, 1).
            output_stride: Stride of the last map, 16 or 32. With 16 the last stage is dilated;
                where a network cannot be, its last map is enlarged.

        Raises:
            ValueError: If the network is not known, or has maps of other strides.
        """
        super().__init__()
        self.name, self.output_stride = name, output_stride
        given = (name, in_channels, 0, pretrained, drop_path_rate)
        create = partial(create_network, *given)
        self.scales: SimplePyramid | None = None
        self.norms = nn.ModuleList()
        if is_vit(name):
            self.network = create()
            stride = patch_size(self.network)
            self.scales = SimplePyramid(self.network.num_features, stride)
            channels = self.scales.out_channels
        else:
            self.network = _features_only(name, output_stride, create)
            channels = list(self.network.feature_info.channels())
            if len(channels) == len(STRIDES):
                # timm's features_only leaves out the norm behind these networks' stages
                self.norms.extend(LayerNorm2d(width) for width in channels)
        self.out_channels = [in_channels, *[0] * (5 - len(channels)), *channels]
        self._channels_last = getattr(self.network, 'output_fmt', None) == 'NHWC'

    def forward(
        self, image: Float[Tensor, 'batch bands height width']
    ) -> list[Float[Tensor, 'batch _ _ _']]:
        """Compute the maps.

        Args:
            image: Normalized, with sides that are multiples of 32 pixels.

        Returns:
            The image, and its maps of strides 2, 4, 8, 16 and 32.

        Raises:
            ValueError: If a side is no multiple of 32.
        """
        check_sides(image)
        height, width = image.shape[2:]
        maps = self._maps(image)
        if self.output_stride < 32 and maps[-1].shape[2] * 32 == height:
            size = maps[-2].shape[2:]
            maps[-1] = F.interpolate(maps[-1], size, mode='bilinear')
        if len(maps) == len(STRIDES):
            maps = [image.new_empty(image.shape[0], 0, height // 2, width // 2), *maps]
        return [image, *maps]

    def _maps(self, image: Tensor) -> list[Tensor]:
        """Maps that the network has, channels first."""
        if self.scales is not None:
            return self.scales(patch_map(self.network, image))
        maps = self.network(image)
        if self._channels_last:
            maps = [each.permute(0, 3, 1, 2) for each in maps]
        if self.norms:
            maps = [norm(each) for norm, each in zip(self.norms, maps)]
        return list(maps)

    # What segmentation_models_pytorch asks of an encoder that it builds by name

    def set_in_channels(self, in_channels: int, pretrained: bool = True) -> None:
        """Agree: it was built for these bands.

        Args:
            in_channels: Number of bands.
            pretrained: Not used.
        """

    def make_dilated(self, output_stride: int) -> None:
        """Agree: it was built with this stride.

        Args:
            output_stride: Stride of the last map.
        """


def pad(
    image: Float[Tensor, 'batch bands height width'],
) -> Float[Tensor, 'batch bands rows cols']:
    """Pad images by zeros at the right and below, to sides that are multiples of 32."""
    height, width = image.shape[2:]
    return F.pad(image, (0, -width % CELL, 0, -height % CELL))


def levels_of(
    pyramid: Pyramid, fpn: nn.Module, image: Float[Tensor, 'batch bands height width']
) -> OrderedDict[str, Float[Tensor, 'batch channels _ _']]:
    """Levels of a feature pyramid network on a backbone's maps of strides 4 to 32.

    Args:
        pyramid: The backbone.
        fpn: torchvision's network on its maps.
        image: Normalized, with sides that are multiples of 32 pixels.

    Returns:
        Levels from fine to coarse, the first four by the names '0' to '3'.
    """
    maps = pyramid(image)[-len(STRIDES) :]
    return fpn(OrderedDict((str(i), each) for i, each in enumerate(maps)))


class SimplePyramid(nn.Module):
    """Maps of strides 4 to 32 of one map, by transposed convolutions and pooling."""

    def __init__(self, width: int, stride: int) -> None:
        """Initialize a new SimplePyramid instance.

        Args:
            width: Channels of the map.
            stride: Its stride in pixels: 4, 8, 16 or 32.
        """
        super().__init__()
        self.levels, self.out_channels = nn.ModuleList(), []
        for wanted in STRIDES:
            layers, channels = nn.Sequential(), width
            for step in range((stride // wanted).bit_length() - 1):
                # A vector becomes four of half the channels
                narrower = max(channels // 2, width // 4)
                if step:
                    layers.extend([LayerNorm2d(channels), nn.GELU()])
                layers.append(nn.ConvTranspose2d(channels, narrower, 2, 2))
                channels = narrower
            if wanted > stride:
                layers.append(nn.MaxPool2d(wanted // stride))
            self.levels.append(layers)
            self.out_channels.append(channels)

    def forward(
        self, features: Float[Tensor, 'batch width rows cols']
    ) -> list[Float[Tensor, 'batch _ _ _']]:
        """Make the four maps.

        Args:
            features: The one map.

        Returns:
            Maps of strides 4, 8, 16 and 32.
        """
        return [level(features) for level in self.levels]


def patch_map(
    network: Any, image: Float[Tensor, 'batch bands height width']
) -> Float[Tensor, 'batch dim rows cols']:
    """Patch tokens of a ViT, after its norm, as a map.

    Args:
        network: timm's ViT.
        image: Normalized.

    Returns:
        One vector a patch; prefix tokens are left out.
    """
    tokens = network.forward_features(image)[:, network.num_prefix_tokens :]
    rows, cols = (side // patch_size(network) for side in image.shape[2:])
    return tokens.unflatten(1, (rows, cols)).permute(0, 3, 1, 2)


def patch_size(network: Any) -> int:
    """Side of a ViT's patches in pixels.

    Args:
        network: timm's ViT.

    Returns:
        8, 16 or 32.

    Raises:
        ValueError: If the patches are of another size.
    """
    size = network.patch_embed.patch_size
    if size not in ((8, 8), (16, 16), (32, 32)):
        raise ValueError(
            f'patches of {size} pixels do not fit maps of strides {STRIDES}: choose a ViT with '
            'patches of 8, 16 or 32 pixels'
        )
    return size[0]


def is_vit(name: str) -> bool:
    """Whether a network of timm is a plain ViT, of one scale.

    Args:
        name: timm's name of the network.

    Returns:
        True for ViT, DeiT and their kin.
    """
    check_name(name)
    return name.startswith(('vit_', 'deit', 'eva', 'flexivit'))


def _features_only(name: str, output_stride: int, create: Callable[..., Any]) -> Any:
    """A network with stages, and only these."""
    dilated = {} if output_stride == 32 else {'output_stride': output_stride}
    try:
        network = create(features_only=True, **dilated)
    except (TypeError, NotImplementedError):
        if not dilated:
            raise
        network = create(features_only=True)
    strides = tuple(network.feature_info.reduction())
    undilated = tuple(min(stride, output_stride) for stride in (2, *STRIDES))
    if strides not in (undilated, undilated[1:], (2, *STRIDES), STRIDES):
        raise ValueError(
            f'{name!r} has maps of strides {strides}: choose a backbone with strides {STRIDES}, such '
            "as resnet50, 'swin_tiny_patch4_window7_224', 'vit_small_patch16_224' or 'convnext_tiny'"
        )
    return network
