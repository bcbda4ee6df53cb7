# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""The bitemporal image transformer: change seen through a few tokens of each date."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from .pyramid import Pyramid
from .siamese import Siamese


class BIT(Siamese):
    r"""Bitemporal image transformer (Chen, Qi and Shi 2021).

    A date's map :math:`X_i` is summed up in *tokens* vectors, which attend to those of the other
    date; each pixel of :math:`X_i` then attends to the tokens of its own date, and the absolute
    difference of the two maps is classified:

    .. math::
        T_i = \mathrm{softmax}(\phi X_i)^\top X_i, \quad
        [T'_1, T'_2] = \mathrm{Encoder}([T_1, T_2] + W), \quad
        X'_i = \mathrm{Decoder}(X_i, T'_i), \quad
        Y = \mathrm{Head}(|X'_1 - X'_2|)

    The paper takes the map of one stage of a ResNet-18; here the maps of strides 4 to 32 of any
    backbone are projected, enlarged to stride 4 and summed. If you use this model, please cite
    https://doi.org/10.1109/TGRS.2021.3095166.

    Attributes:
        encoder: The pyramid that both dates share.
        decoder: Neck, tokenizer and transformers.
        segmentation_head: From the difference to logits.
    """

    def __init__(
        self,
        backbone: str,
        in_channels: int = 3,
        classes: int = 1,
        pretrained: bool = False,
        drop_path_rate: float = 0.0,
        tokens: int = 4,
        width: int = 32,
        encoder_depth: int = 1,
        decoder_depth: int = 8,
    ) -> None:
        """Initialize a new BIT instance.

        Args:
            backbone: timm's name of the backbone.
            in_channels: Number of bands of a date.
            classes: Number of maps of logits.
            pretrained: Whether to start from timm's weights.
            drop_path_rate: Stochastic depth of the backbone, in [0, 1).
            tokens: Tokens of a date.
            width: Channels of tokens and pixels.
            encoder_depth: Layers in which tokens attend to each other.
            decoder_depth: Layers in which pixels attend to tokens.
        """
        super().__init__()
        self.encoder = Pyramid(backbone, in_channels, pretrained, drop_path_rate)
        channels, depths = self.encoder.out_channels[2:], (encoder_depth, decoder_depth)
        self.decoder = TokenDecoder(channels, tokens, width, *depths)
        self.segmentation_head = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, classes, 3, padding=1),
        )

    def decode(
        self, dates: list[tuple[Tensor, Tensor]], size: tuple[int, ...]
    ) -> Float[Tensor, 'batch _ height width']:
        """Compare the maps of strides 4 to 32, and enlarge the difference."""
        first, second = zip(*dates[2:])
        difference = self.decoder(list(first), list(second))
        return F.interpolate(difference, size, mode='bilinear')


class TokenDecoder(nn.Module):
    """From the maps of two dates to one map of their difference."""

    def __init__(
        self,
        channels: list[int],
        tokens: int,
        width: int,
        encoder_depth: int,
        decoder_depth: int,
    ) -> None:
        """Initialize a new TokenDecoder instance.

        Args:
            channels: Channels of the maps, from fine to coarse.
            tokens: Tokens of a date.
            width: Channels of tokens and pixels.
            encoder_depth: Layers in which tokens attend to each other.
            decoder_depth: Layers in which pixels attend to tokens.
        """
        super().__init__()
        self.project = nn.ModuleList(nn.Conv2d(each, width, 1) for each in channels)
        self.smooth = nn.Conv2d(width, width, 3, padding=1)
        # Spatial attention: where on the map each token looks
        self.attend = nn.Conv2d(width, tokens, 1, bias=False)
        self.positions = nn.Parameter(torch.randn(1, 2 * tokens, width))
        self.mix = nn.ModuleList(Layer(width) for _ in range(encoder_depth))
        self.look = nn.ModuleList(Layer(width) for _ in range(decoder_depth))

    def forward(
        self,
        first: list[Float[Tensor, 'batch _ _ _']],
        second: list[Float[Tensor, 'batch _ _ _']],
    ) -> Float[Tensor, 'batch width rows cols']:
        """Compare the dates.

        Args:
            first: Maps of the first date, from fine to coarse.
            second: Maps of the second.

        Returns:
            Absolute difference on the grid of the finest map.
        """
        pixels = [self.neck(first), self.neck(second)]
        tokens = torch.cat([self.tokenize(each) for each in pixels], dim=1)
        tokens = tokens + self.positions
        for layer in self.mix:
            tokens = layer(tokens)
        before, after = map(self.look_up, pixels, tokens.chunk(2, dim=1))
        return (before - after).abs()

    def neck(
        self, maps: list[Float[Tensor, 'batch _ _ _']]
    ) -> Float[Tensor, 'batch width rows cols']:
        """Sum the maps of all scales, from fine to coarse, on the grid of the finest."""
        size = maps[0].shape[2:]
        narrow = (project(each) for project, each in zip(self.project, maps))
        alike = [F.interpolate(each, size, mode='bilinear') for each in narrow]
        return self.smooth(torch.stack(alike).sum(0))

    def tokenize(
        self, pixels: Float[Tensor, 'batch width rows cols']
    ) -> Float[Tensor, 'batch tokens width']:
        """Sum a map up in a few tokens: means of its pixels, weighted by where each token looks."""
        weights = self.attend(pixels).flatten(2).softmax(dim=-1)
        return weights @ pixels.flatten(2).transpose(1, 2)

    def look_up(
        self,
        pixels: Float[Tensor, 'batch width rows cols'],
        tokens: Float[Tensor, 'batch tokens width'],
    ) -> Float[Tensor, 'batch width rows cols']:
        """Refine the map of a date: each pixel attends to its tokens, which know both dates."""
        queries = pixels.flatten(2).transpose(1, 2)
        for layer in self.look:
            queries = layer(queries, tokens)
        return queries.transpose(1, 2).unflatten(2, pixels.shape[2:])


class Layer(nn.Module):
    """Attention and a perceptron, each behind a norm and beside a shortcut.

    The heads may be wider than the queries altogether, which torch's MultiheadAttention cannot do.
    """

    def __init__(self, width: int, heads: int = 8, head_width: int = 8) -> None:
        """Initialize a new Layer instance.

        Args:
            width: Channels of queries and tokens.
            heads: Number of heads.
            head_width: Channels of each head.
        """
        super().__init__()
        inner = heads * head_width
        self.heads = heads
        self.norm, self.norm_behind = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query = nn.Linear(width, inner, bias=False)
        self.key_value = nn.Linear(width, 2 * inner, bias=False)
        self.out = nn.Linear(inner, width)
        self.perceptron = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(
        self,
        queries: Float[Tensor, 'batch queries width'],
        tokens: Float[Tensor, 'batch tokens width'] | None = None,
    ) -> Float[Tensor, 'batch queries width']:
        """Attend.

        Args:
            queries: What looks.
            tokens: What is looked at; the queries themselves by default.

        Returns:
            The queries, changed.
        """
        normed = self.norm(queries)
        looked_at = normed if tokens is None else self.norm(tokens)
        key, value = self._split(self.key_value(looked_at)).chunk(2, dim=1)
        query = self._split(self.query(normed))
        seen = F.scaled_dot_product_attention(query, key, value)
        queries = queries + self.out(seen.transpose(1, 2).flatten(2))
        return queries + self.perceptron(self.norm_behind(queries))

    def _split(self, inner: Tensor) -> Tensor:
        """(batch, n, k * heads * channels) to (batch, k * heads, n, channels)."""
        channels = self.query.out_features // self.heads
        return inner.unflatten(2, (-1, channels)).transpose(1, 2)
