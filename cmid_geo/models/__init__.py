# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Networks of CMID, their weights and files, free of Lightning."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
