# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

from .api import map_scenes as map_scenes
from .datamodule import SceneWindows as SceneWindows
from .features import embed_scene as embed_scene
from .features import principal_colours as principal_colours
from .features import write_map as write_map
from .predictor import SceneMapper as SceneMapper
from .scene import predict_scene as predict_scene
from .writer import MapWriter as MapWriter
