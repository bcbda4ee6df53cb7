# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

from .change import ChangePairs as ChangePairs
from .chips import Chip as Chip
from .coco import CocoDetection as CocoDetection
from .dota import OrientedChips as OrientedChips
from .dota import read_dota as read_dota
from .image_folder import ImageFolders as ImageFolders
from .masks import LabelledScenes as LabelledScenes
from .masks import MaskDataset as MaskDataset
from .prepare import Prepared as Prepared
from .prepare import prepare_scenes as prepare_scenes
from .sample_scenes import SampleScenes as SampleScenes
from .samplers import GridChips as GridChips
from .samplers import RandomChips as RandomChips
from .scene import Scene as Scene
from .scenes import SceneDataset as SceneDataset
from .statistics import BandStatistics as BandStatistics
from .statistics import estimate_statistics as estimate_statistics
from .synthetic.scenes import SyntheticScenes as SyntheticScenes
from .synthetic.scenes import write_synthetic_scenes as write_synthetic_scenes
