# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Operations on tensors: the ground floor, which knows nothing else of the package."""
