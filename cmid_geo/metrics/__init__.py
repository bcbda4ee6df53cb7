# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Metrics: collapse and rank of embeddings, average precision of rotated boxes."""
