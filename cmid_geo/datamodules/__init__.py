# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Datamodules: scenes and images in batches, scaled to [0, 1]."""

from .coco import CocoDataModule
from .scenes import SceneDataModule

__all__ = ('CocoDataModule', 'SceneDataModule')
