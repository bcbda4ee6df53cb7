# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Augmentation of classification: mixup, CutMix, RandAugment and random erasing."""

import kornia.augmentation as K
import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn
from torchvision.transforms import v2


class Mixing(nn.Module):
    """Mixes pairs of a batch: their pixels (mixup) or a rectangle of them (CutMix).

    Where both are asked for, a coin decides for each batch. Sources:
    https://arxiv.org/abs/1710.09412 and https://arxiv.org/abs/1905.04899.
    """

    def __init__(self, num_classes: int, mixup: float, cutmix: float) -> None:
        """Initialize a new Mixing instance.

        Args:
            num_classes: Number of classes.
            mixup: Both parameters of the beta distribution that weights of mixup are drawn from; 0 for
                none.
            cutmix: Both parameters of that of the areas of CutMix; 0 for none.

        Raises:
            ValueError: If a parameter is negative.
        """
        super().__init__()
        for name, value in (('mixup', mixup), ('cutmix', cutmix)):
            if value < 0:
                raise ValueError(
                    f'{name}={value} is the parameter of a beta distribution: give one above 0, or '
                    '0 for none'
                )
        self.kinds = [
            kind(alpha=alpha, num_classes=num_classes)
            for kind, alpha in ((v2.MixUp, mixup), (v2.CutMix, cutmix))
            if alpha
        ]

    def forward(
        self,
        image: Float[Tensor, 'batch bands height width'],
        label: Integer[Tensor, 'batch *labels'],
    ) -> tuple[Float[Tensor, 'batch bands height width'], Tensor]:
        """Mix a batch.

        Args:
            image: Of any range.
            label: Classes.

        Returns:
            The images, and the probability of each class (batch, classes); as they came if
            nothing is to be mixed or there is one image only.
        """
        if not self.kinds or len(image) < 2:
            return image, label
        kind = self.kinds[int(torch.randint(len(self.kinds), ()))]
        return kind(image, label)


class RandomAppearance(nn.Module):
    """RandAugment, each image on its own, for images in [0, 1].

    Source: https://arxiv.org/abs/1909.13719. Its changes of colour are defined on red, green and
    blue.
    """

    def __init__(self, magnitude: int, operations: int = 2) -> None:
        """Initialize a new RandomAppearance instance.

        Args:
            magnitude: Strength of the changes, from 0 to 30.
            operations: Changes to each image.
        """
        super().__init__()
        self.change = v2.RandAugment(operations, magnitude)

    def forward(
        self, image: Float[Tensor, 'batch 3 height width']
    ) -> Float[Tensor, 'batch 3 height width']:
        """Change images.

        Args:
            image: In [0, 1].

        Returns:
            The changed images, in [0, 1].
        """
        return torch.stack([self.change(one) for one in image.clamp(0, 1)])


def random_erasing(probability: float) -> nn.Module:
    """Erase a rectangle of normalized images: it becomes 0, their mean.

    Source: https://arxiv.org/abs/1708.04896.

    Args:
        probability: For each image.

    Returns:
        A module from (batch, bands, height, width) to the same.
    """
    return K.RandomErasing(scale=(0.02, 1 / 3), ratio=(0.3, 10 / 3), p=probability)
