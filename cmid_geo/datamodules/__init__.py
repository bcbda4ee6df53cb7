# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Datamodules: batches for the tasks."""

from typing import TYPE_CHECKING

from ..lazy import attach

if TYPE_CHECKING:
    from .change import ChangeDataModule
    from .classification import ImageFolderDataModule
    from .coco import CocoDataModule
    from .oriented import DOTADataModule, OrientedDataModule
    from .scenes import SceneDataModule
    from .segmentation import SegmentationDataModule
    from .torchgeo_change import LEVIRCDDataModule, OSCDDataModule

__all__ = (
    'ChangeDataModule',
    'CocoDataModule',
    'DOTADataModule',
    'ImageFolderDataModule',
    'LEVIRCDDataModule',
    'OSCDDataModule',
    'OrientedDataModule',
    'SceneDataModule',
    'SegmentationDataModule',
)

__getattr__, __dir__ = attach(__name__)
