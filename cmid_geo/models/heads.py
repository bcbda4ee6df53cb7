# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Heads on a backbone's cells."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class Projector(nn.Module):
    """Cells to one unit vector a view, for the global loss."""

    def __init__(
        self, width: int, hidden_dim: int = 2048, output_dim: int = 256
    ) -> None:
        """Initialize a new Projector instance.

        Args:
            width: Length of a cell's vector.
            hidden_dim: Units of the hidden layer.
            output_dim: Length of the unit vectors.
        """
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width, hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, output_dim)
        )

    def forward(
        self, features: Float[Tensor, 'batch width rows cols']
    ) -> Float[Tensor, 'batch dim']:
        """Average the cells and project.

        Args:
            features: One vector a cell.

        Returns:
            Unit vectors in float32, whatever the autocast type.
        """
        return _unit(self.layers(features.mean(dim=(2, 3))))


class PrototypeHead(nn.Module):
    """Cells to their cosines with learned prototypes, for the local loss."""

    def __init__(
        self,
        width: int,
        hidden_dim: int = 2048,
        output_dim: int = 256,
        num_prototypes: int = 2048,
        batch_norm: bool = True,
    ) -> None:
        """Initialize a new PrototypeHead instance.

        Args:
            width: Length of a cell's vector.
            hidden_dim: Units of the two hidden layers.
            output_dim: Length of a prototype.
            num_prototypes: Number of prototypes.
            batch_norm: Whether to normalize the hidden layers over the cells of the batch,
                as the paper does for convolutional networks.
        """
        super().__init__()
        layers: list[nn.Module] = []
        for inputs in (width, hidden_dim):
            layers.append(nn.Linear(inputs, hidden_dim))
            if batch_norm:
                layers.append(nn.BatchNorm1d(hidden_dim))
            layers.append(nn.GELU())
        self.layers = nn.Sequential(*layers, nn.Linear(hidden_dim, output_dim))
        # Weight normalization with the gain fixed at 1 leaves directions alone
        self.directions = nn.Linear(output_dim, num_prototypes, bias=False).weight
        nn.init.trunc_normal_(self.directions, std=0.02)

    def forward(
        self, cells: Float[Tensor, 'cells width']
    ) -> Float[Tensor, 'cells prototypes']:
        """Compare vectors of matched cells with the prototypes: cosines, in [-1, 1]."""
        vectors, directions = _unit(self.layers(cells)), _unit(self.directions)
        # Divided by temperatures down to 0.04: bfloat16 would blur them
        with torch.autocast(cells.device.type, enabled=False):
            return F.linear(vectors, directions.to(vectors.dtype))


class PixelDecoder(nn.Module):
    """Cells to pixels, for the reconstruction."""

    def __init__(self, width: int, bands: int, cell: int = 32) -> None:
        """Initialize a new PixelDecoder instance.

        Args:
            width: Length of a cell's vector.
            bands: Number of bands to rebuild.
            cell: Side of a cell in pixels.
        """
        super().__init__()
        pixels = nn.Conv2d(width, cell**2 * bands, 1)
        # Starts from the mean image: a random texture would first have to be unlearned
        for parameter in pixels.parameters():
            nn.init.zeros_(parameter)
        self.layers = nn.Sequential(pixels, nn.PixelShuffle(cell))

    def forward(
        self, features: Float[Tensor, 'batch dim rows cols']
    ) -> Float[Tensor, 'batch bands height width']:
        """Rebuild the normalized pixels of each cell from its vector."""
        return self.layers(features)


def _unit(vectors: Tensor) -> Tensor:
    """Scale the last dimension to length 1, in float32 or wider: torch does it in any type."""
    if vectors.dtype.itemsize < 4:
        vectors = vectors.float()
    return F.normalize(vectors, dim=-1)
