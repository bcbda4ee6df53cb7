# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Backbone for torchgeo-bench, from any of our weights."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torchgeo_bench.datasets.base import BandSpec
from torchgeo_bench.models import BenchModel

from ..models.backbones import create_backbone
from ..models.weights.loading import load_backbone
from ..models.weights.sources import read_source
from ..ops.bands import find_bands, names_of
from ..ops.value_range import ValueRange


class CMIDBench(BenchModel):
    """A pretrained backbone that torchgeo-bench judges: one vector an image, the mean of its cells.

    Bands are taken by name: of the dataset's those that the weights know, in any order. The filters of bands that the dataset
    lacks are left out, and bands that the weights do not know are not looked at. Weights that do not name their bands take those
    of the dataset in their order.

    Attributes:
        used: Places of the bands that are looked at among the dataset's.
        range: What raw values mean, of the bands that are looked at; None where the dataset tells.
    """

    def __init__(
        self,
        bands: list[BandSpec],
        weights: str,
        values: str = 'weights',
        normalization: str = 'bandspec_zscore',
        **kwargs: Any,
    ) -> None:
        """Initialize a new CMIDBench instance.

        Args:
            bands: Of the dataset.
            weights: Name of released weights, file of a checkpoint or an export, or ``hf://USER/REPO``.
            values: 'weights' to scale and normalize raw values as in pretraining, 'dataset' by the dataset's statistics.
                Take 'dataset' where its raw values are in another unit than those of pretraining.
            normalization: How the benchmark normalizes, for ``values='dataset'``.
            **kwargs: Of the benchmark's configuration; without a meaning here.

        Raises:
            ValueError: If the weights do not tell their network, or their values where these are asked for; or if
                no band of theirs is among the dataset's.
        """
        super().__init__(bands=bands, normalization=normalization)
        if values not in ('weights', 'dataset'):
            raise ValueError(f"values={values!r}: choose 'weights' or 'dataset'")
        source = read_source(weights)
        known = source.value_range
        if source.model is None:
            raise ValueError(
                f'{source.name} does not tell which network it is of: write it by cmid-geo export'
            )
        if values == 'weights' and not (known and known.mean and known.std):
            raise ValueError(
                f'{source.name} does not tell which values it takes: choose model.values=dataset, or write it by '
                'cmid-geo export'
            )
        told = source.metadata.get('bands') or ()
        places, self.used = _match(source.name, told, source.metadata, self.bands)
        names = [names_of(told)[place] for place in places] if names_of(told) else None
        self.range = _take(known, places) if known and values == 'weights' else None
        self.backbone = create_backbone(source.model, len(self.used))
        load_backbone(self.backbone, source, bands=names)

    def normalize_inputs(
        self, images: Float[Tensor, 'batch bands height width']
    ) -> Float[Tensor, 'batch used height width']:
        """Take the bands that are looked at, and normalize them.

        Args:
            images: Raw values of all bands.

        Returns:
            What the network takes.
        """
        if self.range is None:
            return super().normalize_inputs(images)[:, self.used]
        return self.range.normalize(self.range.scale(images[:, self.used]))

    @torch.no_grad()
    def _forward_patch_features(
        self, images: Float[Tensor, 'batch used height width']
    ) -> Float[Tensor, 'batch dim']:
        """The mean of the cells of each image."""
        return self.backbone(images).mean((2, 3))


def _match(
    name: str, told: Any, metadata: dict[str, Any], given: list[BandSpec]
) -> tuple[list[int], list[int]]:
    """Places of the common bands among the weights' and among the dataset's."""
    there = [band.name for band in given]
    if wanted := names_of(told):
        found = enumerate(find_bands(wanted, there))
        pairs = [(place, other) for place, other in found if other is not None]
        if not pairs:
            raise ValueError(
                f'{name} is of {", ".join(wanted)}, of which the dataset has none ({", ".join(there)}): choose others '
                'by dataset.bands'
            )
        return [place for place, _ in pairs], [other for _, other in pairs]
    count = int(metadata.get('in_channels') or metadata.get('in_chans') or 3)
    if count != len(there):
        raise ValueError(
            f'{name} is of {count} bands without names, and the dataset gives {", ".join(there)}: list those of them '
            f'that they are, in their order, by dataset.bands=[...]'
        )
    return list(range(count)), list(range(count))


def _take(values: ValueRange, places: list[int]) -> ValueRange:
    """The value range of some of its bands."""
    parts = {
        name: tuple(getattr(values, name)[place] for place in places)
        for name in ('low', 'high', 'mean', 'std')
    }
    return ValueRange(bands=(), **parts)
