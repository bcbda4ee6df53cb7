# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""From scenes to maps."""

from .features import embed_scene, principal_colours, write_map
from .folder import map_scenes
from .mapper import SceneMapper
from .scene import predict_scene
from .sharing import SceneWindows
from .writer import MapWriter

__all__ = (
    'MapWriter',
    'SceneMapper',
    'SceneWindows',
    'embed_scene',
    'map_scenes',
    'predict_scene',
    'principal_colours',
    'write_map',
)
