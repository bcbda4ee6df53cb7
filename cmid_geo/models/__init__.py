# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Networks of CMID, free of Lightning and TorchGeo."""

from .backbones import MaskedBackbone, create_backbone
from .encoder import Encoder, Encoding
from .heads import PixelDecoder, Projector, PrototypeHead
from .loading import export_backbone
from .memory import KeyQueue, make_teacher, update_teacher

__all__ = (
    'Encoder',
    'Encoding',
    'KeyQueue',
    'MaskedBackbone',
    'PixelDecoder',
    'Projector',
    'PrototypeHead',
    'create_backbone',
    'export_backbone',
    'make_teacher',
    'update_teacher',
)
