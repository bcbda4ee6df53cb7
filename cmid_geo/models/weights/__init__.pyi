# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

from .convert_official import convert_released_state_dict as convert_released_state_dict
from .enums import CMIDResNet50_Weights as CMIDResNet50_Weights
from .enums import CMIDSwinB_Weights as CMIDSwinB_Weights
from .export import export_backbone as export_backbone
from .loading import load_backbone as load_backbone
from .matching import LoadReport as LoadReport
from .stac_item import write_stac_item as write_stac_item
