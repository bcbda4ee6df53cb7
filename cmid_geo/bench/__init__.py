# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Our backbones in torchgeo-bench: ``hydra.searchpath=[pkg://cmid_geo.bench] model=cmid``."""
