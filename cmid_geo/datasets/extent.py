# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Extent of the scenes of a dataset: on the ground, in time, and of their pixels."""

import math
from collections.abc import Sequence
from typing import Any

from pyproj import CRS, Geod, Transformer
from pyproj.exceptions import ProjError

from .scene import Scene


def extent_of(dataset: Any) -> dict[str, Any] | None:
    """Tell where and when the scenes of a dataset lie, as checkpoints keep it.

    Args:
        dataset: With ``scenes``, of its own or of its ``images``; for others nothing is known.

    Returns:
        A dictionary of plain values, ``scenes``, their number; ``bbox`` (west, south, east, north) in degrees of WGS 84,
        None where the CRS has no place on Earth; ``start`` and ``end``, ISO 8601 dates of the first and
        the last scene, None where no file states a date; ``resolution``, the geometric mean of a pixel's
        sides in metres as they are read, at the first scene's centre. None where nothing is known.
    """
    images = getattr(dataset, 'images', dataset)
    scenes = getattr(images, 'scenes', None)
    if not scenes or not isinstance(scenes[0], Scene):
        return None
    dated = [scene for scene in scenes if scene.is_dated]
    return {
        'scenes': len(scenes),
        'bbox': _box_of(scenes),
        'start': min(s.start for s in dated).date().isoformat() if dated else None,
        'end': max(s.stop for s in dated).date().isoformat() if dated else None,
        'resolution': _pixel_of(scenes[0]),
    }


def _box_of(scenes: Sequence[Scene]) -> list[float] | None:
    """What lies around all scenes, in degrees; one transformation for each CRS."""
    boxes: dict[str, list[tuple[float, float, float, float]]] = {}
    for scene in scenes:
        boxes.setdefault(scene.grid.crs, []).append(scene.grid.bounds)
    found = []
    for crs, several in boxes.items():
        west, south, east, north = zip(*several)
        around = min(west), min(south), max(east), max(north)
        try:
            change = Transformer.from_crs(CRS.from_wkt(crs), 4326, always_xy=True)
            box = change.transform_bounds(*around)
        except ProjError:
            return None
        # Across 180 degrees west lies behind east; all around is true of it as well
        found.append((-180.0, box[1], 180.0, box[3]) if box[0] > box[2] else box)
    west, south, east, north = zip(*found)
    whole = [min(west), min(south), max(east), max(north)]
    return whole if all(map(math.isfinite, whole)) else None


def _pixel_of(scene: Scene) -> float | None:
    """Side of a square as large as a pixel in the middle of a scene, in metres."""
    grid = scene.grid
    col, row = grid.width // 2, grid.height // 2
    corners = [(col, row), (col + 1, row), (col + 1, row + 1), (col, row + 1)]
    try:
        change = Transformer.from_crs(CRS.from_wkt(grid.crs), 4326, always_xy=True)
        # Written out: affine 2 multiplies by another sign than affine 3
        a, b, c, d, e, f = grid.transform[:6]
        places = [
            change.transform(a * x + b * y + c, d * x + e * y + f) for x, y in corners
        ]
        east, north = zip(*places)
        area, _ = Geod(ellps='WGS84').polygon_area_perimeter(east, north)
    except ProjError:
        return None
    side = math.sqrt(abs(area))
    return side if math.isfinite(side) and side > 0 else None
