# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Tasks: the methods, as TorchGeo's users run them."""

from typing import TYPE_CHECKING

from ..lazy import attach

if TYPE_CHECKING:
    from ..callbacks.remember import Remember
    from ..metrics.rotated_mean_average_precision import RotatedMAP
    from .change import ChangeDetection
    from .classification import Classification
    from .cmid import CMID
    from .detection import ObjectDetection
    from .oriented import OrientedDetection
    from .segmentation import SemanticSegmentation

__all__ = (
    'CMID',
    'ChangeDetection',
    'Classification',
    'ObjectDetection',
    'OrientedDetection',
    'Remember',
    'RotatedMAP',
    'SemanticSegmentation',
)

__getattr__, __dir__ = attach(__name__)
