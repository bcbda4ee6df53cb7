# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Scenes for notebooks that are run as tests: the real ones of CMID_GEO_DATA, else made-up ones."""

import os
import shutil
import tempfile
from pathlib import Path

if 'CMID_GEO_DATA' not in os.environ:
    from cmid_geo.datasets import write_synthetic_scenes

    root = Path(tempfile.mkdtemp())
    days = '20200615', '20210921', '20220615', '20230921'
    # About as large as the real ones
    write_synthetic_scenes(root / 'made', scenes=1, size=768, dates=days)
    for series in ('naip', 'landsat'):
        # In the places of the sample scenes
        shutil.copytree(root / 'made' / 'images', root / 'scenes' / series)
    os.environ['CMID_GEO_DATA'] = str(root)
