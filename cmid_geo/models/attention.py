# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Self-attention of timm's ViT and Swin, read from a network that stays as it is."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from timm.models.swin_transformer import SwinTransformer, window_partition
from timm.models.swin_transformer_v2 import SwinTransformerV2
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ..ops.cells import CELL


def attention_map(
    network: nn.Module,
    image: Float[Tensor, 'bands height width'],
    cell: tuple[int, int] | None = None,
    block: int = -1,
) -> Float[Tensor, 'heads rows cols']:
    """Read how much of each place a network takes to compute its vector of one place.

    Args:
        network: timm's ViT or Swin, or a :class:`~cmid_geo.models.MaskedBackbone` of one.
        image: Normalized as the network expects, with sides that are multiples of 32.
        cell: Row and column of the 32x32 pixels whose vector it is: the mean over the tokens in them;
            by default a ViT's class token.
        block: Number of the transformer's block, negative ones from its end.

    Returns:
        Weights of each head over the tokens' grid. With a ViT those of an image, its class token and its
        registers add up to 1. Swin looks at the window of the cell alone: NaN elsewhere.

    Raises:
        ValueError: If the network has no such attention, or there is no such block or cell.
    """
    network = getattr(network, 'network', network)
    blocks = _blocks_of(network)
    if not -len(blocks) <= block < len(blocks):
        raise ValueError(
            f'block={block} of {len(blocks)}: choose from {-len(blocks)} to {len(blocks) - 1}'
        )
    chosen = blocks[block]
    weights, shape = _run(network, chosen, image)
    if isinstance(network, VisionTransformer):
        return _of_vit(network, weights[0], image.shape, cell)
    rows, cols = shape[1:3]
    queries = _tokens_of(cell, (rows, cols), image.shape, 'Swin has no class token')
    return _of_windows(chosen, weights, (rows, cols), queries)


def _blocks_of(network: nn.Module) -> list[Any]:
    """Blocks of a transformer, in order."""
    several: Any = network
    if isinstance(network, VisionTransformer):
        return list(several.blocks)
    if isinstance(network, SwinTransformer | SwinTransformerV2):
        return [block for layer in several.layers for block in layer.blocks]
    raise ValueError(
        f'{type(network).__name__} has no attention that is known here: use a ViT (vit_*, deit_*) or Swin (swin_*, '
        'swinv2_*) of timm'
    )


@contextmanager
def _watching(network: nn.Module, block: Any) -> Generator[dict[str, Tensor]]:
    """Keep what a block attends to, and leave no trace.

    timm's ``AttentionExtract`` leaves its hooks in the network, and it in evaluation.
    """
    attention, seen = block.attn, {}
    if getattr(attention, 'attn_drop', None) is None:
        raise ValueError(
            f'{type(attention).__name__} does not show its weights: use a ViT or Swin of timm'
        )
    modes = {module: module.training for module in network.modules()}
    fused = getattr(attention, 'fused_attn', None)
    hooks = [
        attention.attn_drop.register_forward_hook(
            lambda *call: seen.update(weights=call[2].detach().float().cpu())
        ),
        block.register_forward_pre_hook(
            lambda *call: seen.update(shape=torch.tensor(call[1][0].shape))
        ),
    ]
    try:
        network.eval()
        # Fused attention never writes its weights down
        if fused is not None:
            attention.fused_attn = False
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
        if fused is not None:
            attention.fused_attn = fused
        for module, training in modes.items():
            module.training = training


@torch.no_grad()
def _run(
    network: nn.Module, block: Any, image: Tensor
) -> tuple[Float[Tensor, 'windows heads queries keys'], list[int]]:
    """Weights of a block, and the shape of what it was given."""
    device = next(network.parameters()).device
    features: Any = network
    with _watching(network, block) as seen:
        features.forward_features(image[None].to(device))
    return seen['weights'], seen['shape'].tolist()


def _tokens_of(
    cell: tuple[int, int] | None, grid: tuple[int, int], shape: torch.Size, lacking: str
) -> list[int]:
    """Numbers of the tokens in a cell."""
    cells = shape[1] // CELL, shape[2] // CELL
    inside = cell is not None and all(0 <= at < n for at, n in zip(cell, cells))
    if cell is None or not inside:
        why = lacking if cell is None else f'cell={cell} is outside'
        raise ValueError(
            f'{why}: give cell=(row, column), of {cells[0]} rows and {cells[1]} columns of {CELL}x{CELL} pixels'
        )
    (top, down), (left, across) = (
        (at * side // n, max(1, side // n))
        for at, side, n in zip(cell, grid, cells, strict=True)
    )
    rows, cols = range(top, top + down), range(left, left + across)
    return [row * grid[1] + col for row in rows for col in cols]


def _of_vit(
    network: Any, weights: Tensor, shape: torch.Size, cell: tuple[int, int] | None
) -> Tensor:
    """A ViT's attention to its patches, of the class token or a cell."""
    side = network.patch_embed.patch_size
    grid = shape[1] // side[0], shape[2] // side[1]
    prefix = network.num_prefix_tokens
    if cell is None and network.cls_token is not None:
        queries = [0]
    else:
        tokens = _tokens_of(cell, grid, shape, 'this ViT has no class token')
        queries = [prefix + token for token in tokens]
    return weights[:, queries, prefix:].mean(1).unflatten(1, grid)


def _of_windows(
    block: Any, weights: Tensor, grid: tuple[int, int], queries: list[int]
) -> Tensor:
    """Swin's attention: from windows back to the places of their tokens."""
    places = _windows(block, grid)
    total = torch.zeros(weights.shape[1], grid[0] * grid[1])
    seen = torch.zeros(grid[0] * grid[1], dtype=torch.bool)
    for query in queries:
        window, at = (places == query).nonzero()[0].tolist()
        keys = places[window]
        # What only fills a window up lies nowhere
        inside = keys >= 0
        total[:, keys[inside]] += weights[window, :, at, inside] / len(queries)
        seen[keys[inside]] = True
    return total.masked_fill(~seen, torch.nan).unflatten(1, grid)


def _windows(block: Any, grid: tuple[int, int]) -> Int64[Tensor, 'windows tokens']:
    """Numbers of the tokens in each window of a block; -1 for what fills it up."""
    numbers = torch.arange(grid[0] * grid[1]).view(1, *grid, 1)
    (down, across), (high, wide) = block.shift_size, block.window_size
    shifted = numbers.roll((-down, -across), (1, 2))
    filled = F.pad(shifted, (0, 0, 0, -grid[1] % wide, 0, -grid[0] % high), value=-1)
    return window_partition(filled, (high, wide)).flatten(1)
