# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""From scenes to maps."""

from typing import TYPE_CHECKING

from ..lazy import attach

if TYPE_CHECKING:
    from .api import map_scenes
    from .datamodule import SceneWindows
    from .features import embed_scene, principal_colours, write_map
    from .predictor import SceneMapper
    from .scene import predict_scene
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

__getattr__, __dir__ = attach(__name__)
