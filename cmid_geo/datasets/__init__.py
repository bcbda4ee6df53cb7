# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Datasets: folders of scenes, read a chip at a time."""

from typing import TYPE_CHECKING

from ..lazy import attach

if TYPE_CHECKING:
    from .change import ChangePairs
    from .chips import Chip
    from .coco import CocoDetection
    from .dota import OrientedChips, read_dota
    from .image_folder import ImageFolders
    from .masks import LabelledScenes, MaskDataset
    from .samplers import GridChips, RandomChips
    from .scene import Scene
    from .scenes import SceneDataset
    from .statistics import BandStatistics, estimate_statistics
    from .synthetic.scenes import SyntheticScenes, write_synthetic_scenes

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

__getattr__, __dir__ = attach(__name__)
