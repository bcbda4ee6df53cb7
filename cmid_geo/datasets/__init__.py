# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Datasets: folders of scenes, read a chip at a time."""

from .chips import Chip
from .coco import CocoDetection
from .discovery import Scene
from .dota import OrientedChips, read_dota
from .folders import ImageFolders
from .masks import LabelledScenes, MaskDataset
from .pairs import ChangePairs
from .samplers import GridChips, RandomChips
from .scenes import SceneDataset
from .statistics import BandStatistics, estimate_statistics
from .synthetic import SyntheticScenes, write_synthetic_scenes

__all__ = (
    'BandStatistics',
    'ChangePairs',
    'Chip',
    'CocoDetection',
    'GridChips',
    'ImageFolders',
    'LabelledScenes',
    'MaskDataset',
    'OrientedChips',
    'RandomChips',
    'Scene',
    'SceneDataset',
    'SyntheticScenes',
    'estimate_statistics',
    'read_dota',
    'write_synthetic_scenes',
)
