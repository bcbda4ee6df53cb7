# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Tasks: the methods, as TorchGeo's users run them."""

from .cmid import CMID
from .oriented import OrientedDetection
from .remember import Remember
from .rotated_map import RotatedMAP

__all__ = ('CMID', 'OrientedDetection', 'Remember', 'RotatedMAP')
