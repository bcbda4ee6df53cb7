# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Datamodules: batches for the tasks."""

from .change import ChangeDataModule
from .classification import ImageFolderDataModule
from .coco import CocoDataModule
from .pairs import LEVIRCDDataModule, OSCDDataModule
from .scenes import SceneDataModule
from .segmentation import SegmentationDataModule

__all__ = (
    'ChangeDataModule',
    'CocoDataModule',
    'ImageFolderDataModule',
    'LEVIRCDDataModule',
    'OSCDDataModule',
    'SceneDataModule',
    'SegmentationDataModule',
)
