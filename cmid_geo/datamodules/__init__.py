# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Datamodules: scenes in batches, scaled to [0, 1]."""

from .change import ChangeDataModule
from .pairs import LEVIRCDDataModule, OSCDDataModule
from .scenes import SceneDataModule

__all__ = ('ChangeDataModule', 'LEVIRCDDataModule', 'OSCDDataModule', 'SceneDataModule')
