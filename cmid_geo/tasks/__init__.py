# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Tasks: the methods, as TorchGeo's users run them."""

from .change import ChangeDetection
from .cmid import CMID
from .remember import Remember

__all__ = ('CMID', 'ChangeDetection', 'Remember')
