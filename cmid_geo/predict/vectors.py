# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Objects found in the windows of a scene: collected, merged over the seams, and written."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pyogrio
import shapely
from jaxtyping import Bool, Int64
from pyogrio.errors import DataLayerError, DataSourceError
from torch import Tensor

from ..datasets.grids import Grid
from ..ops.rotated_boxes import corners

#: Ending of a file: GDAL's driver and the options of a layer. RFC 7946 asks for rings that run
#: counterclockwise and are cut at 180 degrees; 12 decimals of a degree are a tenth of a micrometre.
FORMATS: dict[str, tuple[str, dict[str, str | int]]] = {
    '.gpkg': ('GPKG', {}),
    '.geojson': ('GeoJSON', {'RFC7946': 'YES', 'COORDINATE_PRECISION': 12}),
}

#: Name of the layer in a file, which may hold others.
LAYER = 'objects'


#: A detection on a scene's pixel grid: corners of its polygon, in order around, as (col, row) in
#: pixels, with (0, 0) the outer corner of the scene's first pixel; its score in [0, 1]; its label from
#: 1 on, as 0 is the background; and whether it touches an edge of its window that is no edge of the
#: scene: it may be a fragment.
OBJECT = np.dtype(
    [('corners', 'f8', (4, 2)), ('score', 'f4'), ('label', 'i8'), ('cut', '?')]
)

#: Detections, in an array of :data:`OBJECT`.
Objects = np.ndarray


def objects_of_window(
    found: dict[str, Tensor],
    col: int,
    row: int,
    size: int,
    width: int,
    height: int,
    *,
    threshold: float,
    margin: float = 2.0,
) -> Objects:
    """Move what a detector found in a window onto the scene's pixel grid.

    The window may hang over the scene, filled there with anything: objects whose centre is outside
    the scene are dropped. Boxes without area or with numbers that are not finite are dropped too.

    Args:
        found: In pixels of the window, ``boxes`` (N, 4) as (x1, y1, x2, y2), which are clipped to
            the scene, or (N, 5) as (cx, cy, w, h, angle), which are not; ``scores`` (N) and
            ``labels`` (N).
        col: First column of the window in the scene.
        row: First row of the window in the scene.
        size: Side of the window in pixels.
        width: Of the scene in pixels.
        height: Of the scene in pixels.
        threshold: Objects go that score less.
        margin: An object that comes this near to an edge of the window, in pixels, counts as cut
            by it, unless the scene ends there.

    Returns:
        The objects, in the order they were found.
    """
    boxes, scores, labels = (
        found[name].detach().cpu() for name in ('boxes', 'scores', 'labels')
    )
    boxes = boxes.double()
    if boxes.shape[1] not in (4, 5):
        raise ValueError(
            f'boxes have {boxes.shape[1]} numbers but upright ones have 4 (x1, y1, x2, y2) and '
            'rotated ones 5 (cx, cy, w, h, angle): pass one of these forms'
        )
    finite = boxes.isfinite().all(1)
    boxes, scores, labels = boxes[finite], scores[finite], labels[finite]
    upright = boxes.shape[1] == 4
    points = boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]] if upright else corners(boxes)
    inside = points.reshape(-1, 4, 2).numpy()
    # (x, y) of the edges where the scene goes on behind the window
    near = np.array([col, row]) > 0
    far = np.array([col, row]) + size < [width, height]
    cut = (near & (inside <= margin)) | (far & (inside >= size - margin))

    moved = inside + np.array([col, row])
    centre, end = moved.mean(1), np.array([width, height], float)
    if upright:
        moved = moved.clip(0, end)
    polygons = shapely.polygons(moved)
    keep = ((centre >= 0) & (centre <= end)).all(1) & (scores >= threshold).numpy()
    keep &= shapely.is_valid(polygons) & (shapely.area(polygons) > 0)
    columns = moved, scores.numpy(), labels.numpy(), cut.any((1, 2))
    return np.rec.fromarrays(columns, dtype=OBJECT)[keep]


def merge_objects(
    objects: Objects, nms_thresh: float = 0.5, fragment: float = 0.5
) -> Objects:
    """Keep one of the objects that several windows found, class by class.

    Whole objects come before cut ones, whatever they score, then the better before the worse: each
    that is still there drops the later ones that it overlaps too far. So an object that one window
    saw whole replaces its fragments in the windows around. An object that no window saw whole
    stays in several fragments: let windows overlap by more than the largest object.

    Args:
        objects: Of all windows of a scene, in any order.
        nms_thresh: Objects go whose intersection over union with a kept one is above this.
        fragment: A cut object also goes if more than this fraction of it lies in a kept one.

    Returns:
        What is left, by falling score and then by position, whatever the order was before.
    """
    for name, value in {'nms_thresh': nms_thresh, 'fragment': fragment}.items():
        if not 0 <= value <= 1:
            raise ValueError(
                f'{name} is {value} but a fraction is meant: give a number from 0 to 1'
            )
    ranked = objects[_order(objects)]
    ranked = ranked[np.argsort(ranked['cut'], kind='stable')]
    polygons = shapely.polygons(ranked['corners'])
    kept = np.zeros(len(ranked), np.bool_)
    for label in np.unique(ranked['label']):
        own = ranked['label'] == label
        kept[own] = _greedy(polygons[own], ranked['cut'][own], nms_thresh, fragment)
    merged = ranked[kept]
    return merged[_order(merged)]


def _order(objects: Objects) -> Int64[np.ndarray, 'n']:
    """Sort by falling score; ties by all else, or the order found would decide."""
    where = objects['corners'].reshape(len(objects), 8).T[::-1]
    # The last key is the first to decide
    return np.lexsort([objects['cut'], objects['label'], *where, -objects['score']])


def _greedy(
    polygons: npt.NDArray[np.object_],
    cut: Bool[np.ndarray, 'n'],
    nms_thresh: float,
    fragment: float,
) -> Bool[np.ndarray, 'n']:
    """Which of sorted polygons of a class stay.

    One at a time: a table of all pairs that overlap has no bound in a crowd.
    """
    tree, areas = shapely.STRtree(polygons), shapely.area(polygons)
    kept = np.ones(len(polygons), np.bool_)
    for best, polygon in enumerate(polygons):
        if not kept[best]:
            continue
        near = tree.query(polygon)
        near = near[(near > best) & kept[near]]
        if not len(near):
            continue
        common = shapely.area(shapely.intersection(polygon, polygons[near]))
        same = common > nms_thresh * (areas[best] + areas[near] - common)
        part = cut[near] & (common > fragment * areas[near])
        kept[near[same | part]] = False
    return kept


def write_objects(
    objects: Objects,
    path: Path,
    grid: Grid,
    names: Sequence[str] | None = None,
    notes: str = '',
) -> None:
    """Write objects as polygons on the ground, with ``class``, ``label`` and ``score``.

    Args:
        objects: On the scene's pixel grid.
        path: A '.gpkg', in the scene's CRS, or a '.geojson', in longitude and latitude as the
            format demands. One that exists is replaced; other layers of a GeoPackage stay.
        grid: Of the scene.
        names: Of the classes, the background first; else ``class`` is the label.
        notes: Description of the layer, such as how it was made: see :func:`read_notes`.
    """
    kind = path.suffix.lower()
    if kind not in FORMATS:
        raise ValueError(
            f"cannot write objects to '{path.name}', only to {' or '.join(FORMATS)}: "
            'change the ending'
        )
    if names is not None and len(objects) and objects['label'].max() >= len(names):
        raise ValueError(
            f'label {objects["label"].max()} has no name among {len(names)}: give one name a '
            'label, that of the background (0) first'
        )
    named = [
        str(label) if names is None else names[label] for label in objects['label']
    ]
    t = grid.transform
    ground = objects['corners'] @ [[t.a, t.d], [t.b, t.e]] + (t.c, t.f)
    columns = {'class': named, 'label': objects['label'], 'score': objects['score']}
    write_polygons(shapely.polygons(ground), columns, path, grid.crs, LAYER, notes)


def write_polygons(
    polygons: npt.NDArray[np.object_],
    columns: dict[str, Any],
    path: Path,
    crs: str,
    layer: str,
    notes: str = '',
) -> None:
    """Write polygons and what is known of each as a layer of a file.

    Args:
        polygons: Of shapely, in units of *crs*.
        columns: Values of each polygon by name.
        path: A '.gpkg', in *crs*, or a '.geojson', in longitude and latitude. Other layers of a
            GeoPackage stay.
        crs: The coordinate reference system, as pyproj reads it.
        layer: Name of the layer.
        notes: Its description.
    """
    table = gpd.GeoDataFrame(columns, geometry=polygons, crs=crs)
    kind = path.suffix.lower()
    if kind == '.geojson':
        # GDAL would do it too, but leaves double points where it cuts a ring
        table = table.to_crs(4326)
    driver, options = FORMATS[kind]
    # QGIS of 2022 and before warns of GDAL's newer default
    version = {'VERSION': '1.2'} if driver == 'GPKG' else {}
    # An empty table does not show its type of geometry
    pyogrio.write_dataframe(
        table, path, layer=layer, driver=driver, geometry_type='Polygon',
        dataset_options=version, layer_options=options | {'DESCRIPTION': notes},
    )  # fmt: skip


def check_closed(path: Path) -> None:
    """Refuse to replace a GeoPackage that another program has open.

    SQLite keeps what such a program wrote, or may read, in files beside it, which it would later apply
    to whatever has the name then.

    Args:
        path: The file.

    Raises:
        ValueError: If a file of SQLite's lies beside it.
    """
    for ending in ('-wal', '-journal'):
        beside = path.with_name(f'{path.name}{ending}')
        if beside.exists():
            raise ValueError(
                f'{path} is open in another program, such as QGIS, or one that had it open was killed (there is '
                f'{beside.name}): close it there, or open and close it once, and run this again'
            )


def read_notes(path: Path) -> str | None:
    """Read what :func:`write_objects` was told about its objects.

    Args:
        path: File that it wrote.

    Returns:
        The description; None if there is none, or the file is damaged or holds no objects.
    """
    try:
        metadata = pyogrio.read_info(path, layer=LAYER)['layer_metadata'] or {}
    except (DataSourceError, DataLayerError):
        return None
    return metadata.get('DESCRIPTION') or None
