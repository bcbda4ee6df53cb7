# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Shapes of a landscape: noise, lines, parcels, walls, crowns."""

from collections.abc import Iterable, Sequence

import numpy as np
import shapely
from numpy import ndarray
from numpy.random import Generator
from rasterio.features import rasterize
from shapely import LineString, Polygon
from shapely.affinity import rotate
from shapely.ops import split


def smooth_noise(
    rng: Generator, size: int, wavelength: float, slope: float = 1.2
) -> ndarray:
    """Return noise of unit variance that is smooth below a wavelength in pixels."""
    down, right = np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)
    squared = (wavelength**2 * (down**2 + right**2)).astype(np.float32)
    gain = (1 + squared) ** np.float32(-slope)
    gain[0, 0] = 0
    spectrum = np.fft.rfft2(rng.standard_normal((size, size), np.float32)) * gain
    noise = np.fft.irfft2(spectrum, s=(size, size)).astype(np.float32)
    return noise / noise.std()


def burn(
    shapes: Sequence[shapely.Geometry],
    values: Iterable[int],
    size: int,
    fill: int = 0,
    dtype: str = 'uint8',
) -> ndarray:
    """Burn values into shapes, of which later ones lie above."""
    if not shapes:
        return np.full((size, size), fill, dtype)
    return rasterize(zip(shapes, values), (size, size), fill=fill, dtype=dtype)


def curve(
    rng: Generator, start: ndarray, end: ndarray, swing: float, waves: int = 7
) -> LineString:
    """Return a line whose heading swings about the straight one, in radians."""
    s, size = np.linspace(0, 1, 24 * waves)[:, None], rng.uniform(0.4, 1, waves)
    turns = np.arange(1, waves + 1) * s + rng.random(waves)
    heading = np.sin(2 * np.pi * turns) @ size / np.sqrt((size**2).sum() / 2)
    path = np.concatenate([[0], np.cumsum(np.exp(1j * swing * heading))])
    # Turned and scaled as a whole, the path ends where it should.
    path = path / path[-1] * complex(*(end - start)) + complex(*start)
    return LineString(np.stack([path.real, path.imag], 1))


def across(rng: Generator, size: int, through: ndarray, swing: float) -> LineString:
    """Return a winding line from edge to edge through a point."""
    angle = rng.uniform(0, np.pi)
    reach = 1.5 * size * np.array([np.cos(angle), np.sin(angle)])
    course = shapely.get_coordinates(curve(rng, -reach, reach, swing, 14))
    return LineString(course - course[len(course) // 2] + through)


def cut_parcels(
    rng: Generator, size: int, area: float
) -> tuple[list[Polygon], ndarray]:
    """Halve the land across its longer side until parcels are small; angles of rows."""
    land = rotate(shapely.box(-size, -size, 2 * size, 2 * size), rng.uniform(0, 90))
    window, todo, done, angles = shapely.box(0, 0, size, size), [land], [], []
    while todo:
        parcel = todo.pop()
        corners = shapely.get_coordinates(parcel.minimum_rotated_rectangle)[:3]
        sides = np.diff(corners, axis=0)
        long = sides[np.argmax(np.hypot(*sides.T))]
        angle = np.arctan2(long[1], long[0])
        if parcel.area < area * rng.uniform(0.5, 1.8):
            done.append(parcel)
            angles.append(angle)
            continue
        middle = shapely.get_coordinates(parcel.centroid)[0]
        middle += long * rng.uniform(-0.13, 0.13)
        angle += np.pi / 2 + rng.normal(0, 0.05)
        reach = 9 * size * np.array([np.cos(angle), np.sin(angle)])
        halves = split(parcel, LineString([middle - reach, middle + reach])).geoms
        todo.extend(half for half in halves if half.intersects(window))
    return done, np.array(angles)


def walls(table: ndarray) -> ndarray:
    """Return the outlines of houses, rows of x, y, angle, half length, half width."""
    corners = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * table[:, None, 3:5]
    turned = corners @ [1, 1j] * np.exp(1j * table[:, 2:3]) + table[:, :2] @ [[1], [1j]]
    return shapely.polygons(np.stack([turned.real, turned.imag], -1))


def crowns(
    size: int, spacing: int, y: ndarray, x: ndarray, radius: ndarray, tall: ndarray
) -> tuple[ndarray, ndarray]:
    """Raise a dome over each tree of a lattice; return the one seen, and its height."""
    line, home = np.arange(size, dtype=np.float32), np.arange(size) // spacing
    crown = np.zeros((size, size), np.int32)
    height = np.zeros((size, size), np.float32)
    for step in np.ndindex(3, 3):
        row, column = np.clip(np.add.outer(step, home) - 1, 0, len(y) - 1)
        tree = row[:, None] * len(y) + column
        away = (line[:, None] - y.take(tree)) ** 2 + (line - x.take(tree)) ** 2
        inner = 1 - away / radius.take(tree) ** 2
        # A dome stands on a trunk: its rim is half as high as its top.
        dome = tall.take(tree) * (0.45 + 0.55 * np.sqrt(np.clip(inner, 0, None)))
        above = (inner > 0) & (dome > height)
        crown, height = np.where(above, tree, crown), np.where(above, dome, height)
    return crown, height
