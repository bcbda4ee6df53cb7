# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Polygons of the classes of a finished map, with their area on the ground."""

import json
import math
import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import rasterio.features
import shapely
from jaxtyping import Float64
from pyogrio.errors import DataLayerError, DataSourceError
from pyproj import CRS, Geod, Transformer

from ..atomic_files import write_atomically
from ..datasets.gdal import gdal_settings
from ..datasets.rasters import FAILURES, UnreadableError, describe_raster, open_raster
from .api import Tally
from .outputs import Product
from .vectors import check_closed, write_polygons

#: Name of the layer of polygons.
LAYER = 'classes'

#: What the layer's description tells, by which files of ours are known.
NOTES = {'map', 'min_area', 'tolerance'}

#: Longest part of an edge that is taken for a geodesic, in degrees: areas of 10 degrees differ by 1e-6.
LONGEST = 0.1

#: Metres of a degree of latitude, nearly.
METRES = 111_000


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
    _check_numbers(min_area=min_area, tolerance=tolerance)
    source = str(os.fspath(path))
    package = _package(Path(source)) if out is None else Path(out)
    if package.suffix.lower() != '.gpkg':
        raise ValueError(
            f'out={str(out)!r}: polygons are written to a GeoPackage, give a name with .gpkg'
        )
    check_closed(package)
    with gdal_settings():
        labels, polygons, crs, names = _trace(source)
    areas = ground_areas(polygons, crs)
    # Beyond a projection's domain no area is known, and the polygon stays
    kept = ~(areas < min_area)
    labels, polygons, areas = labels[kept], polygons[kept], areas[kept]
    if tolerance:
        polygons = shapely.simplify(polygons, tolerance, preserve_topology=True)
    named = [names.get(label, str(label)) for label in labels.tolist()]
    columns = {'label': labels, 'class': np.array(named, object), 'area': areas}
    notes = {'map': source, 'min_area': min_area, 'tolerance': tolerance}
    write = partial(
        _write, polygons, columns, crs=crs, notes=json.dumps(notes, sort_keys=True)
    )
    # It may have been opened meanwhile
    check_closed(package)
    write_atomically(package, write)
    return package


def check_polygons(product: Product, min_area: float, tolerance: float) -> None:
    """Refuse polygons of maps that will hold no classes, before they are made.

    Args:
        product: What the maps hold.
        min_area: See :func:`write_class_polygons`.
        tolerance: See :func:`write_class_polygons`.

    Raises:
        ValueError: If the maps are not of classes in one band, or a number is off.
    """
    _check_numbers(min_area=min_area, tolerance=tolerance)
    layer = product.layers[0] if product.layers else None
    if layer is None or layer.suffix or not layer.classes or layer.count > 1:
        raise ValueError(
            f'vector=True: maps of {product.kind} with no single band of classes have no polygons of them: map '
            'a task of segmentation or change by --output classes or both, or leave --vector out'
        )


def add_polygons(tally: Tally, min_area: float, tolerance: float) -> None:
    """Write polygons of all maps of a run; of maps that were there, where they have no such ones.

    Args:
        tally: The maps. What fails is noted there by the map's name.
        min_area: See :func:`write_class_polygons`.
        tolerance: See :func:`write_class_polygons`.
    """
    found = [path for path in tally.skipped if lacks_polygons(path, min_area, tolerance)]  # fmt: skip
    for path in [*tally.made, *found]:
        with tally.trying(path.name):
            check_package(path)
            write_class_polygons(path, min_area=min_area, tolerance=tolerance)


def check_package(path: Path) -> None:
    """Refuse to write a map's polygons over a file of others.

    Args:
        path: The map.

    Raises:
        ValueError: If one lies where the polygons go, or another program has it open.
    """
    package = _package(path)
    if package.exists() and not is_own_package(package):
        raise ValueError(
            f'{package} is there and not ours: move it away, polygons of {path.name} go there'
        )
    check_closed(package)


def lacks_polygons(path: Path, min_area: float, tolerance: float) -> bool:
    """Tell whether a map has no polygons, or such as were made with other numbers.

    Args:
        path: The map.
        min_area: See :func:`write_class_polygons`.
        tolerance: See :func:`write_class_polygons`.

    Returns:
        Whether they are to be written.
    """
    notes = _read_package(_package(path)) or {}
    return (notes.get('min_area'), notes.get('tolerance')) != (min_area, tolerance)


def is_own_package(path: Path) -> bool:
    """Tell whether a file holds polygons of a map's classes.

    Args:
        path: The file.

    Returns:
        False where there is none, or one that others wrote or added layers to.
    """
    return _read_package(path) is not None


def _read_package(path: Path) -> dict[str, Any] | None:
    """How polygons of ours were made; None of any other file."""
    if not path.is_file():
        return None
    try:
        # A user may have added layers, or written one of that name
        if pyogrio.list_layers(path)[:, 0].tolist() != [LAYER]:
            return None
        told = pyogrio.read_info(path, layer=LAYER)['layer_metadata'] or {}
        notes = json.loads(told.get('DESCRIPTION') or '')
    except (DataSourceError, DataLayerError, ValueError):
        return None
    return notes if isinstance(notes, dict) and NOTES <= set(notes) else None


def _package(path: Path) -> Path:
    """Name of the polygons of a map."""
    return path.with_suffix('.gpkg')


def _check_numbers(**numbers: float) -> None:
    """Refuse what is no length or area."""
    for name, value in numbers.items():
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f'{name}={value}: give 0 or more')


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
            scale = file.scales[raster.indexes[0] - 1]
    except FAILURES as error:
        raise UnreadableError(
            source, f'cannot be read ({error}): make the map again'
        ) from error
    if scale != 1:
        raise ValueError(
            f'{source} holds values in steps of {scale:g}, such as probabilities, and no classes: give a map by '
            'cmid-geo map --output classes'
        )
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

    Their edges are straight in the CRS, however long they are.

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
    unit, angle = (each.axis_info[0].unit_conversion_factor for each in (system, geodetic))  # fmt: skip
    if system.is_geographic and not system.is_derived:
        plane = partial(_equal_area, radians=unit, geod=geod)
        return shapely.area(shapely.transform(polygons, plane))
    # Between two points on the ellipsoid a line of the CRS is no geodesic
    longest = math.radians(LONGEST) if system.is_geographic else LONGEST * METRES
    polygons = shapely.segmentize(polygons, longest / unit)
    transformer = Transformer.from_crs(system, geodetic, always_xy=True)

    def in_degrees(points: Float64[np.ndarray, 'n 2']) -> Float64[np.ndarray, 'n 2']:
        """Longitudes and latitudes, of which some systems have grads."""
        return math.degrees(angle) * np.stack(transformer.transform(*points.T), axis=1)

    areas = np.zeros(len(polygons))
    for place, polygon in enumerate(shapely.transform(polygons, in_degrees)):
        # Each ring by itself, so that no direction of rings matters
        rings = (polygon.exterior, *polygon.interiors)
        sizes = [abs(geod.polygon_area_perimeter(*ring.xy)[0]) for ring in rings]
        areas[place] = sizes[0] - sum(sizes[1:])
    return areas


def _equal_area(
    points: Float64[np.ndarray, 'n 2'], radians: float, geod: Geod
) -> Float64[np.ndarray, 'n 2']:
    """Longitudes and latitudes in the cylindrical equal-area projection, where parallels are straight.

    Snyder, Map Projections: A Working Manual (1987), equations 3-12 and 10-14 to 10-15. A geodesic
    between two points of a parallel would cut a part of its side off.
    """
    lon, sine, e = points[:, 0] * radians, np.sin(points[:, 1] * radians), math.sqrt(geod.es)  # fmt: skip
    # On a sphere q is twice the sine
    more = np.arctanh(e * sine) / e if e else sine
    q = (1 - geod.es) * (sine / (1 - geod.es * sine**2) + more)
    return np.stack([geod.a * lon, geod.a * q / 2], axis=1)
