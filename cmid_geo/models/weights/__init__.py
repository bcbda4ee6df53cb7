# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Weights: enums, files, conversion, loading and export."""

from typing import TYPE_CHECKING

from ...lazy import attach

if TYPE_CHECKING:
    from .convert_official import convert_released_state_dict
    from .enums import CMIDResNet50_Weights, CMIDSwinB_Weights
    from .export import export_backbone
    from .loading import load_backbone
    from .report import LoadReport

__all__ = (
    'CMIDResNet50_Weights',
    'CMIDSwinB_Weights',
    'LoadReport',
    'convert_released_state_dict',
    'export_backbone',
    'load_backbone',
)

__getattr__, __dir__ = attach(__name__)
