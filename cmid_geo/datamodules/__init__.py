# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Datamodules: scenes in batches, scaled to [0, 1]."""

from .dota import DOTADataModule, OrientedDataModule
from .scenes import SceneDataModule

__all__ = ('DOTADataModule', 'OrientedDataModule', 'SceneDataModule')
