# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Options of several named values, which the command reads without torch."""

from typing import Literal

#: Whose backbone is exported.
Side = Literal['teacher', 'student']

#: Formats of exported backbones.
Format = Literal['ckpt', 'safetensors', 'onnx', 'torchscript']

#: What is written of a prediction.
Output = Literal['classes', 'probabilities', 'both', 'embedding', 'values', 'objects']

#: Types of probabilities in maps.
ProbabilityType = Literal['float32', 'uint8']

#: Test-time augmentation: which flips and quarter turns predictions are averaged over.
Turning = Literal['none', 'flips', 'turns', 'all']

#: Of the computations of a network that predicts.
Precision = Literal['32-true', 'bf16-mixed', '16-mixed']

#: Of prepared scenes.
Compression = Literal['zstd', 'none', 'deflate']
