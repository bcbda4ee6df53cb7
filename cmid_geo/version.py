# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""The version of this package."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version('cmid-geo')
except PackageNotFoundError:
    # Taken straight from its sources, as torch.hub does
    __version__ = 'unknown'
