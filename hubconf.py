# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Entry points of ``torch.hub``.

.. code-block:: python

   torch.hub.load(
       REPOSITORY, 'cmid_resnet50', weights='CMIDResNet50_Weights.MILLIONAID_RGB'
   )
"""

dependencies = [
    'filelock',
    'jaxtyping',
    'kornia',
    'lightning',
    'rasterio',
    'safetensors',
    'timm',
    'torchgeo',
    'tqdm',
]

from cmid_geo.models import cmid_resnet50, cmid_swin_b

__all__ = ('cmid_resnet50', 'cmid_swin_b')
