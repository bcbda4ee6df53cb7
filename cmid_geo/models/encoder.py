# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Encoder of student and teacher: backbone, projector and prototype head."""

from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor, nn

from .backbones import MaskedBackbone
from .heads import Projector, PrototypeHead


@dataclass(frozen=True)
class Encoding:
    """Features and embeddings of views.

    Attributes:
        features: One vector a cell.
        embedding: One unit vector a view.
    """

    features: Float[Tensor, 'batch width rows cols']
    embedding: Float[Tensor, 'batch dim']

    @property
    def cells(self) -> Float[Tensor, 'batch cells width']:
        """The features row by row, as matching indexes them."""
        return self.features.flatten(2).mT


class Encoder(nn.Module):
    """Backbone, projector and prototype head. The head is called on matched cells only."""

    def __init__(
        self, backbone: MaskedBackbone, projector: Projector, prototypes: PrototypeHead
    ) -> None:
        """Initialize a new Encoder instance.

        Args:
            backbone: Views to cells.
            projector: Cells to one unit vector a view.
            prototypes: Cells to their cosines with the prototypes.
        """
        super().__init__()
        self.backbone = backbone
        self.projector = projector
        self.prototypes = prototypes

    def forward(
        self,
        image: Float[Tensor, 'batch bands height width'],
        mask: Bool[Tensor, 'batch rows cols'] | None = None,
    ) -> Encoding:
        """Encode views.

        Args:
            image: Normalized views.
            mask: True where a cell is hidden; nowhere by default.

        Returns:
            Features of the cells and embeddings of the views.
        """
        features = self.backbone(image, mask)
        return Encoding(features, self.projector(features))
