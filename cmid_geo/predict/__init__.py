# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""From scenes to maps."""

from .api import map_scenes, predict_scene
from .datamodule import SceneWindows
from .pca import embed_scene, principal_colours, write_map
from .predictor import SceneMapper
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
