# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

from .api import map_scenes as map_scenes
from .api import predict_scene as predict_scene
from .class_polygons import write_class_polygons as write_class_polygons
from .datamodule import SceneWindows as SceneWindows
from .export import export_task as export_task
from .pca import embed_scene as embed_scene
from .pca import principal_colours as principal_colours
from .pca import write_map as write_map
from .predictor import SceneMapper as SceneMapper
from .similar import Similar as Similar
from .similar import find_similar as find_similar
from .writer import MapWriter as MapWriter
from .written import WrittenMap as WrittenMap
