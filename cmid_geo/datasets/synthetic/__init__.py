# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Synthetic scenes of a procedural landscape."""

from .scenes import SyntheticScenes, write_synthetic_scenes

__all__ = ('SyntheticScenes', 'write_synthetic_scenes')
