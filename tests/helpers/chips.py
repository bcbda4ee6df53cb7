# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""A small task, and chips that are the same each time."""

# Their names are timm's from here on
import networks  # noqa: F401
import torch
import torch.nn.functional as F
from torch.utils.data import Dataset

SMALL = {
    'model': 'resnet_test',
    'size': 64,
    'queue_size': 24,
    'hidden_dim': 16,
    'output_dim': 8,
    'num_prototypes': 12,
    'warmup_steps': 1,
    'teacher_temp_steps': 2,
}


class Chips(Dataset):
    """Smooth chips that are the same each time."""

    def __init__(self, number: int = 16, bands: int = 3, size: int = 64) -> None:
        generator = torch.Generator().manual_seed(0)
        coarse = torch.rand(number, bands, 8, 8, generator=generator)
        self.chips = F.interpolate(coarse, size=(size, size), mode='bilinear')

    def __len__(self) -> int:
        return len(self.chips)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        valid = torch.ones(self.chips.shape[-2:], dtype=torch.bool)
        return {'image': self.chips[index], 'valid': valid}
