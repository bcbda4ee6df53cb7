# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Maps as files."""

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import rasterio
from rasterio.transform import from_origin

from cmid_geo.datasets.grids import Grid
from cmid_geo.predict.cog import RasterFile
from cmid_geo.predict.outputs import Layer

#: Names, and how they can be shown.
HOSTILE = {
    'road & <track>': 'road & <track>',
    'a\nb\tc': r'a\nb\tc',
    'nul\x00\x1b[31m': r'nul\x00\x1b[31m',
    'half \ud800 \ufffe': r'half \ud800 \ufffe',
    ']]></Category>': ']]></Category>',
    'see | größe': 'see | größe',
}


def test_names_of_any_text_are_read_again(tmp_path: Path) -> None:
    grid = Grid('EPSG:32633', from_origin(5e5, 5e6, 10, 10), 64, 32)
    names, shown = tuple(HOSTILE), list(HOSTILE.values())
    classes = Layer('', 1, 'uint8', 255, classes=names, colours=((0, 0, 0),) * 6)
    bands = Layer('_probabilities', 6, 'float32', None, names=names)
    for layer in (classes, bands):
        file = RasterFile(tmp_path, f'map{layer.suffix}.tif', layer, grid)
        file.write((0, 0), np.zeros((layer.count, 32, 64), layer.dtype))
        file.close({'labels': 'any'})
    root = ElementTree.parse(tmp_path / 'map.tif.aux.xml').getroot()
    assert [category.text for category in root.iter('Category')] == shown
    with rasterio.open(tmp_path / 'map.tif') as file:
        assert [file.tags(1)[f'class_{i}'] for i in range(6)] == shown
    with rasterio.open(tmp_path / 'map_probabilities.tif') as file:
        assert list(file.descriptions) == shown
