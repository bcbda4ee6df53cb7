# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

from .change import ChangeDetection as ChangeDetection
from .classification import Classification as Classification
from .cmid import CMID as CMID
from .detection import ObjectDetection as ObjectDetection
from .oriented import OrientedDetection as OrientedDetection
from .oriented import RotatedMAP as RotatedMAP
from .pretraining import Remember as Remember
from .segmentation import SemanticSegmentation as SemanticSegmentation
