# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""CMID for Earth observation: self-supervised pretraining as a TorchGeo extension."""

from typing import TYPE_CHECKING

from .lazy import attach

if TYPE_CHECKING:
    from .datamodules import (
        ChangeDataModule,
        CocoDataModule,
        DOTADataModule,
        ImageFolderDataModule,
        LEVIRCDDataModule,
        OrientedDataModule,
        OSCDDataModule,
        SceneDataModule,
        SegmentationDataModule,
    )
    from .datasets import ChangePairs, MaskDataset, SceneDataset, SyntheticScenes
    from .models import (
        CMIDResNet50_Weights,
        CMIDSwinB_Weights,
        cmid_resnet50,
        cmid_swin_b,
        create_backbone,
        export_backbone,
        load_backbone,
    )
    from .predict import MapWriter, SceneMapper, SceneWindows, predict_scene
    from .tasks import (
        CMID,
        ChangeDetection,
        Classification,
        ObjectDetection,
        OrientedDetection,
        SemanticSegmentation,
    )
    from .transforms import TwoViews, View
    from .version import __version__

__all__ = (
    'CMID',
    'CMIDResNet50_Weights',
    'CMIDSwinB_Weights',
    'ChangeDataModule',
    'ChangeDetection',
    'ChangePairs',
    'Classification',
    'CocoDataModule',
    'DOTADataModule',
    'ImageFolderDataModule',
    'LEVIRCDDataModule',
    'MapWriter',
    'MaskDataset',
    'OSCDDataModule',
    'ObjectDetection',
    'OrientedDataModule',
    'OrientedDetection',
    'SceneDataModule',
    'SceneDataset',
    'SceneMapper',
    'SceneWindows',
    'SegmentationDataModule',
    'SemanticSegmentation',
    'SyntheticScenes',
    'TwoViews',
    'View',
    '__version__',
    'cmid_resnet50',
    'cmid_swin_b',
    'create_backbone',
    'export_backbone',
    'load_backbone',
    'predict_scene',
)

__getattr__, __dir__ = attach(__name__)
