# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

from . import weights as weights
from .backbones import MaskedBackbone as MaskedBackbone
from .backbones import create_backbone as create_backbone
from .bit import BIT as BIT
from .change import create_change_model as create_change_model
from .detection import FPNBackbone as FPNBackbone
from .detection import create_detector as create_detector
from .encoder import Encoder as Encoder
from .encoder import Encoding as Encoding
from .heads import PixelDecoder as PixelDecoder
from .heads import Projector as Projector
from .heads import PrototypeHead as PrototypeHead
from .oriented import OrientedRCNN as OrientedRCNN
from .siamese import SiameseModel as SiameseModel
from .teacher import KeyQueue as KeyQueue
from .teacher import make_teacher as make_teacher
from .teacher import update_teacher as update_teacher
from .weights.convert_official import (
    convert_released_state_dict as convert_released_state_dict,
)
from .weights.enums import CMIDResNet50_Weights as CMIDResNet50_Weights
from .weights.enums import CMIDSwinB_Weights as CMIDSwinB_Weights
from .weights.export import export_backbone as export_backbone
from .weights.loading import load_backbone as load_backbone
from .weights.matching import LoadReport as LoadReport
from .weights.registry import cmid_resnet50 as cmid_resnet50
from .weights.registry import cmid_swin_b as cmid_swin_b
from .weights.registry import get_model as get_model
from .weights.registry import get_model_weights as get_model_weights
from .weights.registry import get_weight as get_weight
from .weights.registry import list_models as list_models
from .weights.registry import list_weights as list_weights
