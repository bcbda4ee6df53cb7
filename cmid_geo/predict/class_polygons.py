# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Polygons of the classes of a finished map, with their area on the ground."""

import json
import math
import os
from functools import partial
from pathlib import Path

import numpy as np
import rasterio.features
import shapely
from jaxtyping import Float64
from pyproj import CRS, Transformer

from ..atomic_files import write_atomically
from ..datasets.gdal import gdal_settings
from ..datasets.rasters import FAILURES, UnreadableError, describe_raster, open_raster
from .vectors import write_polygons

#: Name of the layer of polygons.
LAYER = 'classes'


def write_class_polygons(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    min_area: float = 0.0,
    tolerance: float = 0.0,
) -> Path:
    """Write the areas of a map of classes as polygons.

    Pixels of a class that share a side are one polygon, over the whole map. The map's band is held in
    memory as a whole, 1 byte a pixel (2 for more than 255 classes), and so are the polygons.

    Args:
        path: A map of classes in one band, as :func:`~cmid_geo.predict.map_scenes` writes it.
        out: GeoPackage to write, in the map's CRS, with the columns ``label``, ``class`` (its name;
            its number as text where it has none) and ``area``, in square metres; by default the map's
            name with ``.gpkg``. One that exists is replaced.
        min_area: Polygons go whose area is less, in square metres on the ground (geodesic: the same
            in degrees, in Web Mercator and in UTM). Nothing takes their place.
        tolerance: How far borders may move by simplification, in units of the CRS; 0 keeps the
            pixels' steps. Neighbours are simplified each by itself, so gaps may open between them. The
            area is that before simplification.

    Returns:
        The GeoPackage.

    Raises:
        ValueError: If the map cannot be read, is no map of classes in one band, or a number is off.
    """
    for name, value in {'min_area': min_area, 'tolerance': tolerance}.items():
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f'{name}={value}: give 0 or more')
    source = str(os.fspath(path))
    package = Path(source).with_suffix('.gpkg') if out is None else Path(out)
    if package.suffix.lower() != '.gpkg':
        raise ValueError(
            f'out={str(out)!r}: polygons are written to a GeoPackage, give a name with .gpkg'
        )
    with gdal_settings():
        labels, polygons, crs, names = _trace(source)
    areas = ground_areas(polygons, crs)
    kept = areas >= min_area
    labels, polygons, areas = labels[kept], polygons[kept], areas[kept]
    if tolerance:
        polygons = shapely.simplify(polygons, tolerance, preserve_topology=True)
    named = [names.get(label, str(label)) for label in labels.tolist()]
    columns = {'label': labels, 'class': np.array(named, object), 'area': areas}
    notes = {'map': source, 'min_area': min_area, 'tolerance': tolerance}
    write = partial(
        _write, polygons, columns, crs=crs, notes=json.dumps(notes, sort_keys=True)
    )
    write_atomically(package, write)
    return package


def _write(
    polygons: np.ndarray,
    columns: dict[str, np.ndarray],
    path: Path,
    crs: str,
    notes: str,
) -> None:
    """Write the layer."""
    write_polygons(polygons, columns, path, crs, LAYER, notes)


def _trace(source: str) -> tuple[np.ndarray, np.ndarray, str, dict[int, str]]:
    """Labels and outlines of areas of one class, the map's CRS, and names of the classes."""
    raster = describe_raster(source)
    if len(raster.bands) > 1 or raster.dtype not in ('uint8', 'uint16'):
        raise ValueError(
            f'{source} holds {len(raster.bands)} bands of {raster.dtype} but classes are one band of uint8 or '
            'uint16: give a map by cmid-geo map --output classes'
        )
    try:
        with open_raster(source) as file:
            pixels = file.read(raster.indexes[0])
            known = file.read_masks(raster.indexes[0]) > 0
            tags = file.tags(raster.indexes[0])
    except FAILURES as error:
        raise UnreadableError(
            source, f'cannot be read ({error}): make the map again'
        ) from error
    names = {
        int(key.removeprefix('class_')): name
        for key, name in tags.items()
        if key.removeprefix('class_').isdecimal()
    }
    labels, polygons = [], []
    found = rasterio.features.shapes(pixels, known, transform=raster.grid.transform)
    for shape, label in found:
        shell, *holes = shape['coordinates']
        labels.append(int(label))
        polygons.append(shapely.Polygon(shell, holes))
    return np.array(labels, np.int64), np.array(polygons, object), raster.grid.crs, names  # fmt: skip


def ground_areas(polygons: np.ndarray, crs: str) -> Float64[np.ndarray, 'n']:
    """Measure polygons on the ellipsoid: a CRS may stretch areas.

    Args:
        polygons: Of shapely, in units of *crs*.
        crs: The coordinate reference system, as pyproj reads it.

    Returns:
        Square metres.
    """
    system = CRS.from_user_input(crs)
    geod, geodetic = system.get_geod(), system.geodetic_crs
    if geod is None or geodetic is None:
        # A local system has no ellipsoid: its own units are all there is
        return shapely.area(polygons)
    transformer = Transformer.from_crs(system, geodetic, always_xy=True)
    areas = np.zeros(len(polygons))
    for place, polygon in enumerate(polygons):
        rings = [polygon.exterior, *polygon.interiors]
        # Each ring by itself, so that no direction of rings matters
        sizes = [
            abs(geod.polygon_area_perimeter(*transformer.transform(*ring.xy))[0])
            for ring in rings
        ]
        areas[place] = sizes[0] - sum(sizes[1:])
    return areas
