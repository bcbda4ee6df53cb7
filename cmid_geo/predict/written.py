# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Written maps, which draw themselves in notebooks."""

from pathlib import Path

import pyogrio
from pyogrio.errors import DataLayerError, DataSourceError

from ..datasets.rasters import FAILURES, open_raster
from ..datasets.scene import Declared
from ..datasets.tables import html_table, list_some, scene_table
from .inputs import scenes_of
from .vectors import FORMATS, LAYER


class WrittenMap(Path):
    """The path of a map, which a notebook shows as a table and a picture."""

    def _repr_html_(self) -> str:
        """Table, and of a raster a picture in the map's own colours."""
        if not self.is_file():
            return html_table({'path': self, 'picture': 'none: there is no such file'})
        if self.suffix in FORMATS:
            return html_table(self._objects())
        try:
            (scene,) = scenes_of([str(self)], Declared())
            with open_raster(str(self)) as handle:
                # Without a palette rasterio raises an error
                coloured = handle.count == 1 and handle.colorinterp[0].name == 'palette'
                palette = handle.colormap(1) if coloured else None
        except (*FAILURES, ValueError) as error:
            return html_table({'path': self, 'picture': f'none: {error}'})
        return scene_table(scene, palette)

    def _objects(self) -> dict[str, object]:
        """Describe a file of objects."""
        try:
            found = pyogrio.read_info(self, layer=LAYER)
        except (DataSourceError, DataLayerError) as error:
            return {'path': self, 'objects': f'unknown: {error}'}
        bounds = found['total_bounds']
        return {
            'path': self,
            'objects': found['features'],
            'geometry': found['geometry_type'],
            'CRS': found['crs'],
            'fields': list_some(found['fields'].tolist()),
            'bounds': 'none' if bounds is None else ', '.join(f'{side:.10g}' for side in bounds),
        }  # fmt: skip
