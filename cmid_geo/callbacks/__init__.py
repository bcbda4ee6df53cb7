# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Callbacks of pretraining."""
