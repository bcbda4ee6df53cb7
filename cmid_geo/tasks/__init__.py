# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Tasks: the methods, as TorchGeo's users run them."""

from .cmid import CMID
from .detection import ObjectDetection
from .remember import Remember

__all__ = ('CMID', 'ObjectDetection', 'Remember')
