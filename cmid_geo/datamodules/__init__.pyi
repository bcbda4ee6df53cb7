# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

from .change import ChangeDataModule as ChangeDataModule
from .classification import ImageFolderDataModule as ImageFolderDataModule
from .coco import CocoDataModule as CocoDataModule
from .oriented import DOTADataModule as DOTADataModule
from .oriented import OrientedDataModule as OrientedDataModule
from .scenes import SceneDataModule as SceneDataModule
from .segmentation import SegmentationDataModule as SegmentationDataModule
from .torchgeo_change import LEVIRCDDataModule as LEVIRCDDataModule
from .torchgeo_change import OSCDDataModule as OSCDDataModule
