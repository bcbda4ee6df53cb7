# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Callbacks of pretraining."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
