# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""A landscape from the air: colours of the season, sun, haze and sensor."""

from collections.abc import Sequence
from datetime import date as Date

import numpy as np
from numpy import ndarray
from numpy.random import Generator

from .landscape import INNER, Landscape
from .shapes import smooth_noise

# Reflectance of red, green, blue and near infrared, and the contrast of rows.
PAINTS = {
    'soil': (0.43, 0.34, 0.26, 0.42, 0.16),
    'sprout': (0.38, 0.38, 0.23, 0.52, 0.16),
    'green': (0.21, 0.34, 0.15, 0.74, 0.07),
    'lush': (0.14, 0.27, 0.12, 0.80, 0.10),
    'ripe': (0.66, 0.56, 0.34, 0.50, 0.05),
    'straw': (0.60, 0.52, 0.38, 0.48, 0.10),
    'bloom': (0.62, 0.60, 0.16, 0.72, 0.04),
    'meadow': (0.27, 0.38, 0.19, 0.68, 0.03),
    'hay': (0.44, 0.45, 0.26, 0.58, 0.08),
    'twigs': (0.27, 0.24, 0.20, 0.34, 0),
    'buds': (0.20, 0.31, 0.12, 0.70, 0),
    'crowns': (0.15, 0.25, 0.11, 0.70, 0),
    'gold': (0.42, 0.29, 0.13, 0.55, 0),
    'needles': (0.10, 0.18, 0.11, 0.44, 0),
}
# The year of each crop: what stands in the field in the middle of every month.
CROPS = (
    'sprout sprout sprout green green green ripe soil soil soil sprout sprout',
    'sprout sprout green green green ripe straw straw straw soil sprout sprout',
    'soil soil soil soil soil sprout lush lush lush straw soil soil',
    'sprout green green bloom bloom green ripe straw soil sprout green green',
    'meadow meadow meadow meadow meadow hay meadow hay meadow meadow meadow meadow',
    'soil soil soil soil soil lush lush lush green soil soil soil',
    'hay meadow meadow meadow meadow meadow meadow hay meadow meadow meadow hay',
)
TREES = (
    'twigs twigs twigs buds buds crowns crowns crowns crowns gold twigs twigs',
    'needles ' * 12,
)
ROOFS = (
    *((0.57, 0.30, 0.21, 0.46), (0.50, 0.30, 0.23, 0.42), (0.44, 0.31, 0.26, 0.39)),
    *((0.36, 0.37, 0.40, 0.36), (0.26, 0.26, 0.28, 0.25), (0.42, 0.36, 0.31, 0.38)),
    *((0.74, 0.73, 0.70, 0.66), (0.55, 0.57, 0.60, 0.54), (0.44, 0.51, 0.53, 0.46)),
)
SKY, AIR = (0.19, 0.23, 0.29, 0.13), (0.62, 0.68, 0.76, 0.40)


def _season(years: Sequence[str], kinds: ndarray, days: ndarray) -> ndarray:
    """Return the paint of things of some kinds on days of the year, (5, things)."""
    paints = np.array([[PAINTS[name] for name in year.split()] for year in years])
    month = (days / 30.42 - 0.5) % 12
    before, share = month.astype(int), month % 1
    paint = (1 - share) * paints[kinds, before].T
    return (paint + share * paints[kinds, (before + 1) % 12].T).astype(np.float32)


def _fields(land: Landscape, rng: Generator, day: int) -> ndarray:
    """Paint the parcels with their crops, rows and tramlines, (4, H, W)."""
    count, parcels, kinds = len(land.crops), land.parcels, land.crops
    paint = _season(CROPS, kinds, day + rng.normal(0, 9, count))
    paint[:4] *= 1 + rng.normal(0, 0.08, count) + rng.normal(0, 0.03, (4, count))
    line = np.arange(land.size, dtype=np.float32)
    cos, sin = np.array([np.cos(land.angles), np.sin(land.angles)], np.float32)
    across = cos[parcels] * line[:, None] - sin[parcels] * line + 0.35 * land.grain
    pitch = (2 * np.pi / (3.1 + (kinds * 1.7) % 3.3)).astype(np.float32)
    texture = paint[4][parcels] * np.sin(pitch[parcels] * across)
    lanes = (18 + 2 * kinds).astype(np.float32)
    texture -= 0.16 * (across % lanes[parcels] < 1.3)
    growth = land.patches + 0.5 * smooth_noise(rng, land.size, 25)
    texture += 0.055 * growth + 0.03 * land.grain
    colour = paint[:4, parcels] * (1 + texture)
    colour[3] *= 1 - 0.05 * growth
    return colour


def _cover(
    land: Landscape, rng: Generator, date: int, day: int
) -> tuple[ndarray, ndarray]:
    """Paint the ground and what stands on it; return colours and heights."""
    colour, grain, patches = _fields(land, rng, day), land.grain, land.patches
    meadow = _season(CROPS, np.array([6]), np.array([day]))[:4, 0]
    garden, canopy = land.garden_since <= date, land.canopy(date)
    felled, cleared = land.felled_since <= date, land.cleared_since <= date
    rough, road = 0.12 * grain, land.road_since <= date
    for where, paint, texture in (
        (land.margins | land.banks, meadow, rough),
        (garden, meadow, rough + 0.16 * patches),
        (land.yards & garden, (0.52, 0.49, 0.45, 0.50), 0.07 * grain),
        (land.wood, (0.16, 0.20, 0.12, 0.45), rough),
        (cleared, (0.60, 0.47, 0.34, 0.56), 0.08 * grain + 0.08 * patches),
        (felled, (0.44, 0.38, 0.27, 0.50), 0.22 * grain),
        (land.water, (0.13, 0.19, 0.19, 0.06), 0.06 * patches + 0.03 * grain),
        (road, (0.43, 0.43, 0.43, 0.40), 0.05 * grain + 0.03 * patches),
    ):
        colour[:, where] = np.array(paint, np.float32)[:, None] * (1 + texture[where])

    kinds, trees = land.needles, canopy > 0
    leaves = _season(TREES, kinds, day + rng.normal(0, 8, len(kinds)))[:4]
    leaves *= 1 + rng.normal(0, 0.12, len(kinds)) + rng.normal(0, 0.04, leaves.shape)
    shade = 1 + 0.12 * grain[trees] + 0.05 * patches[trees]
    colour[:, trees] = leaves[:, land.crown[trees]] * shade

    house = land.house_at(date)
    built = house >= 0
    roofs = np.array(ROOFS)[land.houses[:, 7].astype(int)] * land.houses[:, 8:9]
    colour[:, built] = roofs[house[built]].T * (1 + 0.05 * grain[built])
    # A roof falls off from its ridge.
    x, y, angle, _, wide, eave, pitch = land.houses[house[built], :7].T
    row, column = np.nonzero(built)
    away = np.abs((row - y) * np.cos(angle) - (column - x) * np.sin(angle))
    canopy[built] = eave + pitch * np.clip(wide - away, 0, None)
    return colour, canopy


def _light(
    height: ndarray, relief: ndarray, azimuth: float, elevation: float
) -> ndarray:
    """Return the light on each pixel, (4, H, W): a sun with shadows, a blue sky."""
    east, south = np.sin(azimuth), -np.cos(azimuth)
    fall, top = np.tan(elevation), np.zeros_like(height)
    for step in range(1, int(height.max() / fall) + 2):
        move = round(-south * step), round(-east * step)
        shadow = np.roll(height, move, (0, 1)) - np.float32(step * fall)
        np.maximum(top, shadow, out=top)
    lit = 1 - np.clip(top - height, 0, 1)
    down, right = np.gradient(0.6 * height + relief)
    climb = down * np.float32(south) + right * np.float32(east)
    facing = (1 - climb / np.float32(fall)) / np.sqrt(1 + down**2 + right**2)
    sky = np.array(SKY, np.float32)[:, None, None]
    return sky + (1 - sky) * (lit * np.clip(facing, 0, 1.7))


def photograph(land: Landscape, rng: Generator, date: int, day: Date) -> ndarray:
    """Return red, green, blue and near infrared of a landscape on a day as uint8."""
    number = day.timetuple().tm_yday
    colour, height = _cover(land, rng, date, number)
    noon = 42 + 23.4 * np.sin(2 * np.pi * (number - 81) / 365)
    sun = np.radians([rng.uniform(125, 215), max(noon - rng.uniform(3, 9), 22)])
    colour *= _light(height, land.relief, *sun)
    haze = rng.uniform(0.02, 0.09) * (1 + 0.25 * smooth_noise(rng, land.size, 600, 2))
    air = np.array(AIR, np.float32)[:, None, None]
    colour += haze.astype(np.float32) * (air - colour)
    # The optics blur what the rasters left too sharp; the sensor adds its noise.
    for axis in (1, 2):
        near = np.roll(colour, 1, axis) + np.roll(colour, -1, axis)
        colour = 0.66 * colour + 0.17 * near
    colour = colour[:, INNER, INNER] * np.float32(rng.uniform(0.95, 1.08))
    colour += 0.008 * rng.standard_normal(colour.shape, np.float32)
    return np.clip(np.rint(255 * np.clip(colour, 0, 1) ** 0.9), 1, 255).astype(np.uint8)
