# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Networks of CMID, their weights and files, free of Lightning."""

from typing import TYPE_CHECKING

from ..lazy import attach

if TYPE_CHECKING:
    from .backbones import MaskedBackbone, create_backbone
    from .bit import BIT
    from .change import SiameseModel, create_change_model
    from .detection import FPNBackbone, create_detector
    from .encoder import Encoder, Encoding
    from .heads import PixelDecoder, Projector, PrototypeHead
    from .oriented import OrientedRCNN
    from .teacher import KeyQueue, make_teacher, update_teacher
    from .weights.convert_official import convert_released_state_dict
    from .weights.enums import CMIDResNet50_Weights, CMIDSwinB_Weights
    from .weights.export import export_backbone
    from .weights.loading import load_backbone
    from .weights.registry import (
        cmid_resnet50,
        cmid_swin_b,
        get_model,
        get_model_weights,
        get_weight,
        list_models,
        list_weights,
    )
    from .weights.report import LoadReport

__all__ = (
    'BIT',
    'CMIDResNet50_Weights',
    'CMIDSwinB_Weights',
    'Encoder',
    'Encoding',
    'FPNBackbone',
    'KeyQueue',
    'LoadReport',
    'MaskedBackbone',
    'OrientedRCNN',
    'PixelDecoder',
    'Projector',
    'PrototypeHead',
    'SiameseModel',
    'cmid_resnet50',
    'cmid_swin_b',
    'convert_released_state_dict',
    'create_backbone',
    'create_change_model',
    'create_detector',
    'export_backbone',
    'get_model',
    'get_model_weights',
    'get_weight',
    'list_models',
    'list_weights',
    'load_backbone',
    'make_teacher',
    'update_teacher',
)

__getattr__, __dir__ = attach(__name__)
