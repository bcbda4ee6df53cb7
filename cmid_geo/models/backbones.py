# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Backbones of timm that accept a mask of hidden cells."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from timm.layers import PatchEmbed
from timm.models.convnext import ConvNeXt
from timm.models.resnet import ResNet
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ..ops.cells import CELL, expand_mask
from .classification import check_name, check_sides, create_network

SUPPORTED = (
    'supported are the families of ResNet (resnet18 to resnet152, resnext, wide_resnet), '
    'Swin (swin_*, swinv2_*), ViT with patches of 8, 16 or 32 pixels (vit_*, deit_*) and ConvNeXt '
    "(convnext_*, convnextv2_*); timm.list_models('resnet*') lists the names of one"
)


class MaskedBackbone(nn.Module, ABC):
    """A timm network whose output is one vector a cell, and from which cells can be hidden.

    At hidden places a learned *mask token* is added to the output of the stem. Without a
    mask the features are those of timm's ``forward_features``.
    """

    #: Whether the network normalizes over the batch.
    convolutional: ClassVar[bool] = False
    #: Side of a cell in pixels, 32 or 16.
    cell: int = CELL
    #: From the centre of a cell's pixels to the centre of what its vector sees (its receptive
    #: field), in pixels to the right and downwards.
    field_offset: float = 0.0

    def __init__(
        self, name: str, network: Any, stem_width: int | None = None, cell: int = CELL
    ) -> None:
        """Initialize a new MaskedBackbone instance.

        Args:
            name: timm's name of the network.
            network: The network, without a classifier.
            stem_width: Channels after the stem; by default as many as the network says.
            cell: Side of a cell in pixels, 32 or 16.
        """
        super().__init__()
        self.cell = cell
        # Of four finer cells the upper left is the coarse one, and sees what that does
        self.field_offset = (CELL - cell) / 2
        if stem_width is None:
            stem_width = int(network.feature_info[0]['num_chs'])
        self.name = name
        self.network = network
        self.num_features: int = network.num_features
        self.mask_token = nn.Parameter(torch.zeros(stem_width))
        # No gradient reaches what timm puts behind the features; DDP wants to know
        for part in ('head', 'fc_norm', 'attn_pool'):
            behind = getattr(network, part, None)
            if isinstance(behind, nn.Module):
                behind.requires_grad_(False)
        self.register_load_state_dict_pre_hook(_accept_plain_state_dict)

    def forward(
        self,
        image: Float[Tensor, 'batch bands height width'],
        mask: Bool[Tensor, 'batch rows cols'] | None = None,
    ) -> Float[Tensor, 'batch dim rows cols']:
        """Compute the features of each cell.

        Args:
            image: Normalized views whose sides are multiples of :attr:`cell` pixels.
            mask: True where a cell is hidden; nowhere by default.

        Returns:
            One vector for each cell.

        Raises:
            ValueError: If a side is no multiple of :attr:`cell`.
        """
        check_sides(image, self.cell)
        return self.encode(image, mask)

    @abstractmethod
    def encode(self, image: Tensor, mask: Tensor | None) -> Tensor:
        """Run the network; see :meth:`forward`."""

    def coarsen(
        self, features: Float[Tensor, 'batch dim rows cols']
    ) -> Float[Tensor, 'batch dim coarse_rows coarse_cols']:
        """Take from features of finer cells those of cells of 32 pixels.

        Args:
            features: Of :meth:`forward`.

        Returns:
            What the network gives on timm's own grid.
        """
        step = CELL // self.cell
        return features[:, :, ::step, ::step]

    @property
    def coarse_offset(self) -> float:
        """The :attr:`field_offset` of cells of 32 pixels, see :meth:`coarsen`."""
        return self.field_offset - (CELL - self.cell) / 2

    def residual_weight(self) -> Tensor | None:
        """Mean weight of what scales the residual branches, where the network has such."""
        scales = self.residual_scales()
        if not scales:
            return None
        return torch.stack([scale.detach().abs().mean() for scale in scales]).mean()

    def residual_scales(self) -> list[Tensor]:
        """Weights of each residual branch's last norm, or its layer scale."""
        return []

    def hide(self, stem: Tensor, mask: Tensor | None) -> Tensor:
        """Add the mask token at the hidden places of a stem's output, channels first."""
        if mask is None:
            return stem
        hidden = expand_mask(mask, *stem.shape[2:])[:, None].to(stem.dtype)
        return stem + hidden * self.mask_token.to(stem.dtype)[:, None, None]


class MaskedResNet(MaskedBackbone):
    """ResNet: the token is added after the stem's pooling.

    Each of its convolutions of stride 2 is centred on the first of the two pixels that become one.
    So the receptive field of cell i is centred on pixel 32 i, not on the cell's centre 32 i + 15.5.
    With cells of 16 pixels the last stage is dilated; cell i then sees what is around pixel 16 i.
    ResNet-D and its kin (``resnet50d``, ``ecaresnet26t``) take the mean of 2x2 in their shortcuts, which
    moves that path by 14 pixels, but not the other: the mean of both is taken, right to within 7 pixels.
    """

    convolutional = True

    def __init__(
        self, name: str, network: Any, stem_width: int | None = None, cell: int = CELL
    ) -> None:
        """Initialize a new MaskedResNet instance; see :class:`MaskedBackbone`."""
        super().__init__(name, network, stem_width, cell)
        pools = [each for each in network.modules() if isinstance(each, nn.AvgPool2d)]
        means = any(each.kernel_size == 2 for each in pools)
        self.field_offset = (7.0 if means else 0.0) - (cell - 1) / 2

    def residual_scales(self) -> list[Tensor]:
        """Weights of the last batch norm of each block."""
        blocks = [each for each in self.network.modules() if hasattr(each, 'conv2')]
        last = (getattr(each, 'bn3', getattr(each, 'bn2', None)) for each in blocks)
        return [norm.weight for norm in last if norm is not None]

    def encode(self, image: Tensor, mask: Tensor | None) -> Tensor:
        """Run stem, mask and the four stages."""
        net = self.network
        stem = net.maxpool(net.act1(net.bn1(net.conv1(image))))
        return net.layer4(net.layer3(net.layer2(net.layer1(self.hide(stem, mask)))))


class MaskedConvNeXt(MaskedBackbone):
    """ConvNeXt: the token is added after the stem; its last stage is dilated for cells of 16 pixels."""

    convolutional = True

    def residual_scales(self) -> list[Tensor]:
        """Layer scale of each block."""
        found = (getattr(each, 'gamma', None) for each in self.network.modules())
        return [scale for scale in found if isinstance(scale, Tensor)]

    def encode(self, image: Tensor, mask: Tensor | None) -> Tensor:
        """Run stem, mask and stages."""
        net = self.network
        return net.norm_pre(net.stages(self.hide(net.stem(image), mask)))


class MaskedSwin(MaskedBackbone):
    """Swin, first and second version: the token is added after the patch embedding.

    With cells of 16 pixels the last stage looks at its input four times, shifted by (0, 1) x (0, 1),
    with 0 beyond the edges as in timm's own padding: a stride of 1 would put other neighbours than it
    knows into its windows.
    """

    def encode(self, image: Tensor, mask: Tensor | None) -> Tensor:
        """Run patch embedding, mask and stages; timm's Swin keeps channels last."""
        net = self.network
        stem = self.hide(net.patch_embed(image).permute(0, 3, 1, 2), mask)
        tokens = stem.permute(0, 2, 3, 1)
        if self.cell == CELL:
            return net.norm(net.layers(tokens)).permute(0, 3, 1, 2)
        tokens = net.layers[:-1](tokens)
        merged = net.norm(net.layers[-1](_shifted(tokens))).permute(0, 3, 1, 2)
        stitched = merged.unflatten(0, (4, -1)).movedim(0, 2).flatten(1, 2)
        rows, cols = tokens.shape[1:3]
        return F.pixel_shuffle(stitched, 2)[:, :, :rows, :cols]


class MaskedViT(MaskedBackbone):
    """ViT: the token is added after the patch embedding, patches are averaged over cells."""

    def __init__(
        self, name: str, network: Any, stem_width: int | None = None, cell: int = CELL
    ) -> None:
        """Initialize a new MaskedViT instance; see :class:`MaskedBackbone`."""
        super().__init__(name, network, stem_width, cell)
        self.field_offset = 0.0

    def encode(self, image: Tensor, mask: Tensor | None) -> Tensor:
        """Run patch embedding, mask and blocks; drop what are not patches; pool to cells."""
        net = self.network
        # With dynamic_img_size the patches keep their grid, channels last
        stem = self.hide(net.patch_embed(image).permute(0, 3, 1, 2), mask)
        rows, cols = stem.shape[2:]
        tokens = net.norm_pre(net.patch_drop(net._pos_embed(stem.permute(0, 2, 3, 1))))
        patches = net.norm(net.blocks(tokens))[:, net.num_prefix_tokens :]
        grid = patches.unflatten(1, (rows, cols)).permute(0, 3, 1, 2)
        return F.avg_pool2d(grid, rows * self.cell // image.shape[2])

    def coarsen(self, features: Tensor) -> Tensor:
        """Average: the patches of a cell lie around its middle, whatever its size."""
        return F.avg_pool2d(features, CELL // self.cell)

    @property
    def coarse_offset(self) -> float:
        """As of finer cells."""
        return self.field_offset


def create_backbone(
    name: str, in_channels: int = 3, pretrained: bool = False, cell: int = CELL
) -> MaskedBackbone:
    """Create a backbone that accepts a mask.

    Stochastic depth is 0, and any image of whole cells is accepted, whatever size the
    network's name says. Tensors are the same for cells of 16 pixels and of 32. A plain timm ``state_dict`` loads into the
    result, or into its ``network``.

    Args:
        name: timm's name of a ResNet, Swin, ViT or ConvNeXt.
        in_channels: Number of bands.
        pretrained: Whether to start from timm's weights.
        cell: Side of a cell in pixels, 32 or 16.

    Returns:
        The backbone; ``num_features`` is the length of its vectors.

    Raises:
        ValueError: If the name is unknown to timm, its family is not supported, or it has no
            cells of that size.
    """
    check_name(name, SUPPORTED)
    if cell not in (16, 32):
        raise ValueError(
            f'cell={cell}: backbones give one vector for 32x32 or 16x16 pixels, choose cell=32 or cell=16'
        )
    families = ('resn', 'wide_resn', 'convnext', 'ecaresn', 'seresn', 'skresn')
    if not name.startswith(('swin', 'vit', 'deit', *families)):
        raise ValueError(f'backbone {name!r} cannot hide cells: {SUPPORTED}')
    dilated = (
        {'output_stride': cell} if cell < CELL and name.startswith(families) else {}
    )
    try:
        network = create_network(name, in_channels, pretrained=pretrained, **dilated)
    except TypeError as error:
        raise ValueError(
            f'backbone {name!r} cannot hide cells ({error}): {SUPPORTED}'
        ) from error
    for layer in network.modules() if dilated else ():
        if type(layer) is nn.Conv2d and max(layer.dilation) > 1:
            layer.__class__ = _DilatedConv2d
    return _wrap(name, network, cell)


class _DilatedConv2d(nn.Conv2d):
    """Dilated convolution that is quick on maps too small for any but its middle weight.

    Libraries compute the others with zeros: the backward pass of small views took twice as long.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Convolve a map, to one of the same size."""
        if max(input.shape[-2:]) > min(self.dilation):
            return super().forward(input)
        middle = self.kernel_size[0] // 2
        weight = self.weight[..., middle, middle, None, None]
        return F.conv2d(input, weight, self.bias, groups=self.groups)


#: The kind of backbone by the class of timm's network.
KINDS = {
    ResNet: MaskedResNet,
    ConvNeXt: MaskedConvNeXt,
    SwinTransformer: MaskedSwin,
    SwinTransformerV2: MaskedSwin,
    VisionTransformer: MaskedViT,
}


def _wrap(name: str, network: nn.Module, cell: int) -> MaskedBackbone:
    """Pick the kind of backbone by the network's class."""
    kind = next((KINDS[each] for each in KINDS if isinstance(network, each)), None)
    patches: Any = getattr(network, 'patch_embed', None)
    # A hybrid has another network before its blocks
    if kind is None or (kind is MaskedViT and not isinstance(patches, PatchEmbed)):
        raise ValueError(
            f'backbone {name!r} ({type(network).__name__}) cannot hide cells: {SUPPORTED}'
        )
    if kind is MaskedViT and patches.patch_size not in ((8, 8), (16, 16), (32, 32)):
        raise ValueError(
            f'backbone {name!r} has patches of {patches.patch_size} pixels: {SUPPORTED}'
        )
    if kind is MaskedViT and patches.patch_size[0] > cell:
        raise ValueError(
            f'cell={cell} with {name!r}, whose patches are {patches.patch_size[0]} pixels: a cell holds whole '
            'patches, choose cell=32 or a ViT with patches of 8 or 16 pixels'
        )
    return kind(name, network, cell=cell)


def _shifted(tokens: Tensor) -> Tensor:
    """Shift a map by (0, 0), (0, 1), (1, 0) and (1, 1) up and left, batch after batch."""
    rows, cols = (side + side % 2 for side in tokens.shape[1:3])
    padded = F.pad(
        tokens, (0, 0, 0, cols + 1 - tokens.shape[2], 0, rows + 1 - tokens.shape[1])
    )
    parts = [padded[:, y : y + rows, x : x + cols] for y in (0, 1) for x in (0, 1)]
    return torch.cat(parts)


def _accept_plain_state_dict(
    module: MaskedBackbone, state_dict: dict[str, Any], prefix: str, *_: Any
) -> None:
    """Let a plain timm ``state_dict`` load: put its tensors under ``network``."""
    own = [key for key in state_dict if key.startswith(prefix)]
    ours = (f'{prefix}network.', f'{prefix}mask_token')
    if any(key.startswith(ours) for key in own) or not own:
        return
    for key in own:
        state_dict[f'{prefix}network.{key.removeprefix(prefix)}'] = state_dict.pop(key)
    state_dict[f'{prefix}mask_token'] = module.mask_token.detach()
