# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Datamodules: batches for the tasks."""

from .classification import ImageFolderDataModule
from .scenes import SceneDataModule
from .segmentation import SegmentationDataModule

__all__ = ('ImageFolderDataModule', 'SceneDataModule', 'SegmentationDataModule')
