# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""A Swin in the layout of the authors' released files, written for the tests alone.

From the paper's description of Swin (https://arxiv.org/abs/2103.14030), one window at a
time, with the released names; patch merging by unfolding, so channels come before neighbours.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Named(nn.Module):
    """Holds modules under given names."""

    def __init__(self, **modules: nn.Module) -> None:
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)


class WindowAttention(nn.Module):
    def __init__(self, dim: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        side = 2 * window - 1
        self.relative_position_bias_table = nn.Parameter(torch.randn(side**2, heads))
        places = [(r, c) for r in range(window) for c in range(window)]
        index = [
            [(r - s + window - 1) * side + c - d + window - 1 for s, d in places]
            for r, c in places
        ]
        self.register_buffer('relative_position_index', torch.tensor(index))
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor, region: Tensor) -> Tensor:
        """One window of tokens (batch, tokens, dim); those of other regions are not seen."""
        out = []
        dim = tokens.shape[2] // self.heads
        table = self.relative_position_bias_table[self.relative_position_index]
        hidden = torch.where(region[:, None] == region[None], 0.0, -100.0)
        q, k, v = self.qkv(tokens).chunk(3, dim=2)
        for head in range(self.heads):
            part = slice(head * dim, (head + 1) * dim)
            scores = (
                q[..., part] @ k[..., part].mT / dim**0.5 + table[..., head] + hidden
            )
            out.append(scores.softmax(-1) @ v[..., part])
        return self.proj(torch.cat(out, dim=2))


class Block(nn.Module):
    def __init__(self, dim: int, heads: int, window: int, shift: int) -> None:
        super().__init__()
        self.window, self.shift = window, shift
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = Named(w_msa=WindowAttention(dim, heads, window))
        up = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU())
        self.ffn = Named(layers=nn.Sequential(up, nn.Linear(4 * dim, dim)))

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, rows, cols, dim), sides multiples of the window."""
        rows, cols = x.shape[1:3]
        w = self.window
        shift = self.shift if min(rows, cols) > w else 0
        # What was rolled in from the other side is another region
        region = torch.zeros(rows, cols)
        if shift:
            region[rows - shift :] += 1
            region[:, cols - shift :] += 2
            region[: rows - w, : cols - w] = 9
            region[: rows - w, cols - w : cols - shift] = 10
            region[rows - w : rows - shift, : cols - w] = 11
            region[: rows - w, cols - shift :] = 12
            region[rows - shift :, : cols - w] = 13
        y = self.norm1(x).roll((-shift, -shift), (1, 2))
        mixed = torch.empty_like(y)
        for r in range(0, rows, w):
            for c in range(0, cols, w):
                tokens = y[:, r : r + w, c : c + w].flatten(1, 2)
                made = self.attn.w_msa(tokens, region[r : r + w, c : c + w].flatten())
                mixed[:, r : r + w, c : c + w] = made.unflatten(1, (w, w))
        x = x + mixed.roll((shift, shift), (1, 2))
        return x + self.ffn.layers(self.norm2(x))


class Merging(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        rows, cols = x.shape[1:3]
        unfolded = F.unfold(x.permute(0, 3, 1, 2), 2, stride=2).mT
        return self.reduction(self.norm(unfolded)).unflatten(1, (rows // 2, cols // 2))


class Stage(nn.Module):
    def __init__(
        self, dim: int, heads: int, window: int, depth: int, last: bool
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            Block(dim, heads, window, shift=(i % 2) * (window // 2))
            for i in range(depth)
        )
        self.downsample = None if last else Merging(dim)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x if self.downsample is None else self.downsample(x)


class ReleasedSwin(nn.Module):
    def __init__(self, dim: int, depths: tuple, heads: tuple, window: int = 7) -> None:
        super().__init__()
        self.patch_embed = Named(
            projection=nn.Conv2d(3, dim, 4, 4), norm=nn.LayerNorm(dim)
        )
        last = len(depths) - 1
        self.stages = nn.ModuleList(
            Stage(dim * 2**i, heads[i], window, depth, i == last)
            for i, depth in enumerate(depths)
        )
        self.norm3 = nn.LayerNorm(dim * 2**last)
        for parameter in self.parameters():
            # So that no order or norm can be mistaken for another
            nn.init.normal_(
                parameter, std=0.1
            ) if parameter.ndim > 1 else nn.init.normal_(parameter, 1, 0.2)

    def forward(self, image: Tensor) -> Tensor:
        """Features (batch, dim, rows, cols)."""
        x = self.patch_embed.norm(
            self.patch_embed.projection(image).permute(0, 2, 3, 1)
        )
        for stage in self.stages:
            x = stage(x)
        return self.norm3(x).permute(0, 3, 1, 2)
