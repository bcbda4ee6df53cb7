# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""A procedural landscape: its ground, waters, roads, houses and trees.

Lengths are pixels, which are metres.
"""

from itertools import repeat
from typing import NamedTuple

import numpy as np
import shapely
from numpy import ndarray
from numpy.random import Generator
from numpy.typing import ArrayLike
from shapely import LineString, Point, Polygon

from .shapes import across, burn, crowns, curve, cut_parcels, smooth_noise, walls

CLASSES = ('other', 'field', 'wood', 'water', 'road', 'building')
OTHER, FIELD, WOOD, WATER, ROAD, BUILDING = range(6)

# Drawn around the scene and cut off again: shadows and noise wrap around the canvas.
MARGIN = 32
INNER = slice(MARGIN, -MARGIN)
NEVER = 255
CROWN_CELL = 7


class Character(NamedTuple):
    """Traits that tell a town from a forest: a fraction of wood, counts and lengths."""

    wood: float
    villages: int
    radius: float
    block: float
    parcel: float
    lakes: int
    river: float


# Agricultural, wooded and built-up places take turns.
CHARACTERS = (
    Character(0.10, 2, 105, 90, 21000, 1, 15),
    Character(0.60, 1, 75, 80, 9000, 4, 8),
    Character(0.13, 1, 400, 74, 11000, 2, 24),
)
Road = tuple[LineString, float, int]  # its course, half its width, the date it is built


class Landscape:
    """Rasters of one place for all dates, (size + 2 MARGIN)² pixels each.

    A date is its index; `*_since` rasters hold the date at which something appears,
    255 (`NEVER`) where it never does. `houses` has a row a building: x, y, direction
    of the ridge, half length, half width, eave, pitch, kind of roof, tint, date.
    """

    def __init__(
        self, rng: Generator, size: int, character: Character, dates: int
    ) -> None:
        """Draw a place.

        Args:
            rng: Source of every choice.
            size: Height and width of the scene in pixels.
            character: What the place is like.
            dates: Number of dates; each but the first brings real changes.
        """
        self.rng, self.size, self.character = rng, size + 2 * MARGIN, character
        self.relief = 9 * smooth_noise(rng, self.size, 400, 2)
        self.patches = smooth_noise(rng, self.size, 90)
        self.grain = smooth_noise(rng, self.size, 3, 0.6)
        self.drift = [1.6 * smooth_noise(rng, self.size, 40, 1.7) for _ in range(2)]
        grid = np.indices((self.size, self.size)) + np.stack(self.drift)
        self.bent = tuple(np.clip(np.rint(grid), 0, self.size - 1).astype(int))
        fields, self.angles = cut_parcels(rng, self.size, character.parcel)
        numbers = range(len(fields))
        self.parcels = burn(fields, numbers, self.size, dtype='int32')[self.bent]
        self.crops = rng.integers(0, 7, len(fields))
        country, streets = self._roads(dates)
        wet = self._waters(country)
        self._woods()
        self._houses(country, streets, wet)
        self._trees()
        self._changes(dates)

    def _roads(self, dates: int) -> tuple[list[Road], list[Road]]:
        """Return the roads through the country and the streets of the villages."""
        rng, inner = self.rng, self.size - 2 * MARGIN
        radius = min(self.character.radius, 0.5 * inner)
        country, streets = [], []
        for _ in range(max(1, round(self.character.villages * (inner / 1024) ** 2))):
            centre = MARGIN + inner * rng.uniform(0.2, 0.8, 2)
            road = across(rng, self.size, centre, 0.22)
            country.append((road, 3.6, 0))
            ahead = _points_on(road, road.project(Point(centre)) + 9)[0] - centre
            along = ahead / np.hypot(*ahead)
            for axis in (along, along[::-1] * (-1, 1)):
                for offset in np.arange(-radius, radius, self.character.block):
                    foot = centre + axis[::-1] * (-1, 1) * (offset + rng.normal(0, 7))
                    chord = axis * np.sqrt(radius**2 - offset**2)
                    back, forth = rng.uniform(0.5, 1.1, 2)
                    line = curve(rng, foot - back * chord, foot + forth * chord, 0.12)
                    if rng.random() < 0.78 and line.length > 20:
                        streets.append((line, 2.7, 0))
        # Each later date brings a road through the country and a street of houses.
        for date in range(1, dates):
            start = MARGIN + inner * rng.uniform(0.25, 0.75, 2)
            country.append((across(rng, self.size, start, 0.3), 4.2, date))
            if date < len(streets):
                streets[-date] = (*streets[-date][:2], date)
        return country, streets

    def _waters(self, country: list[Road]) -> shapely.Geometry:
        """Lay a river and, clear of the roads, lakes; return them all."""
        rng, inner = self.rng, self.size - 2 * MARGIN
        through = MARGIN + inner * rng.uniform(0.1, 0.9, 2)
        river = across(rng, self.size, through, 0.75)
        wet = [river.buffer(self.character.river / 2)]
        turn = np.linspace(0, 2 * np.pi, 60)[:-1]
        for _ in range(3 * self.character.lakes):
            lobes = np.sin(np.outer(turn, [1, 2, 3, 4]) + rng.uniform(0, 7, 4))
            shore = np.exp(lobes @ rng.normal(0, (0.3, 0.2, 0.12, 0.08)))
            shore *= rng.uniform(0.03, 0.07) * self.size
            around = np.stack([shore * np.cos(turn), shore * np.sin(turn)], 1)
            lake = Polygon(around + rng.uniform(0, self.size, 2)).buffer(0)
            dry = not any(lake.dwithin(road, 12) for road, _, _ in country)
            if dry and len(wet) <= self.character.lakes:
                wet.append(lake)
        everything = shapely.union_all(wet)
        self.water = burn([everything], [1], self.size)[self.bent] > 0
        self.banks = burn([everything.buffer(7)], [1], self.size)[self.bent] > 0
        return everything

    def _woods(self) -> None:
        """Let woods follow the ground but mostly end where a parcel ends."""
        noise = smooth_noise(self.rng, self.size, 260)
        total = np.bincount(self.parcels.ravel(), minlength=len(self.crops))
        mean = np.bincount(self.parcels.ravel(), noise.ravel(), len(self.crops))
        score = 0.75 * (mean / np.maximum(total, 1))[self.parcels] + 0.3 * noise
        self.wood = score > np.quantile(score, 1 - self.character.wood)
        self.wood &= ~self.banks

    def _houses(
        self, country: list[Road], streets: list[Road], wet: shapely.Geometry
    ) -> None:
        """Lay the roads and line them with houses where the ground is free."""
        rng, size, near = self.rng, self.size, wet.buffer(4)
        # A street ends at a lake or river; only the roads have bridges.
        dry: list[Road] = []
        for line, width, since in streets:
            parts = shapely.get_parts(line.difference(near))
            longest = max(parts, key=shapely.length)
            if longest.length > 20:
                dry.append((longest, width, since))
        rows = []
        for line, width, since in [*dry, country[0]]:
            at = np.repeat(np.arange(9, line.length - 5, 19), 2)
            n, side = len(at), np.tile([-1, 1], len(at) // 2)
            at = at + rng.uniform(-4, 4, n)
            foot, ahead = _points_on(line, at), _points_on(line, at + 1)
            angle = np.arctan2(*(ahead - foot).T[::-1])
            kind = rng.random(n)
            hall, terrace = kind < 0.05, (kind > 0.05) & (kind < 0.16)
            long = rng.uniform(4.8, 7.5, n) * np.where(hall, 3.2, 1 + 1.8 * terrace)
            wide = rng.uniform(3.8, 5.5, n) * np.where(hall, 2.6, 1)
            back = side * (width + wide + rng.uniform(3, 9, n))
            x, y = foot[:, 0] - back * np.sin(angle), foot[:, 1] + back * np.cos(angle)
            pitch = np.where(hall, 0, rng.uniform(0.5, 0.95, n))
            roof = np.where(hall, rng.integers(6, 9, n), rng.integers(0, 6, n))
            angle += rng.normal(0, 0.04, n)
            eave, tint = rng.uniform(3.5, 6.5, n), rng.normal(1, 0.09, n)
            row = (x, y, angle, long, wide, eave, pitch, roof, tint, np.full(n, since))
            rows.append(np.stack(row, 1)[rng.random(n) < 0.92])
        table = np.concatenate(rows)
        table = table[((table[:, :2] >= 0) & (table[:, :2] < size)).all(1)]
        column, row = table[:, :2].astype(int).T
        free = ~(self.wood | self.banks)[row, column]
        self._settle(table[free], [*dry, *country], near)

    def _settle(
        self, table: ndarray, roads: list[Road], near: shapely.Geometry
    ) -> None:
        """Keep the houses that clash with nothing; burn them, gardens and roads."""
        size = self.size
        table = table[np.argsort(-table[:, 3], kind='stable')]
        outlines = walls(table)
        solid = [line.buffer(width + 1.5) for line, width, _ in roads]
        free = np.ones(len(table), bool)
        free[shapely.STRtree([*solid, near]).query(outlines, 'intersects')[0]] = False
        pairs = shapely.STRtree(outlines).query(outlines, 'dwithin', 2.5).T
        for first, second in sorted(pairs.tolist()):
            if first < second and free[first]:
                free[second] = False
        kept = np.flatnonzero(free)
        kept = kept[np.argsort(-table[kept, 9], kind='stable')]
        self.houses, homes = table[kept], outlines[kept].tolist()
        self.house = burn(homes, range(len(homes)), size, -1, 'int32')
        gardens = [home.buffer(13) for home in homes]
        since = self.houses[:, 9].astype(int).tolist()
        self.garden_since = burn(gardens, since, size, NEVER)[self.bent]
        yards = [home.buffer(5) for home in homes[::3]]
        self.yards = burn(yards, repeat(1), size)[self.bent] > 0
        # The oldest lie above: where a new road meets an old one nothing changes.
        roads = sorted(roads, key=lambda road: -road[2])
        lines = [line.buffer(width) for line, width, _ in roads]
        self.road_since = burn(lines, [date for _, _, date in roads], size, NEVER)
        self.wood &= self.garden_since == NEVER

    def _trees(self) -> None:
        """Plant woods, hedges, gardens and banks; grow a crown on each tree."""
        rng, size, count = self.rng, self.size, len(self.crops)
        self.margins, hedge = np.zeros((2, size, size), bool)
        hedged = rng.random((count, count)) < 0.3
        for axis in (0, 1):
            other = np.roll(self.parcels, 2, axis)
            border = self.parcels != other
            low, high = np.minimum(self.parcels, other), np.maximum(self.parcels, other)
            self.margins |= border
            hedge |= border & hedged[low, high]
        village = self.garden_since < NEVER
        conifer = self.wood & (smooth_noise(rng, size, 150) > 0.4)
        cases = [self.water, self.banks, village, self.wood, hedge]
        chance = np.select(cases, [0, 0.4, 0.16, 0.97, 0.9], 0.002)
        cells = size // CROWN_CELL + 1
        y, x = CROWN_CELL * (np.indices((cells, cells)) + rng.random((2, cells, cells)))
        at = tuple(np.minimum([y, x], size - 1).astype(int))
        needles = conifer[at]
        vigour = rng.random((cells, cells))
        radius = np.where(needles, 2.3 + 1.7 * vigour, 2.8 + 3.8 * vigour)
        stands = rng.random((cells, cells)) < chance[at]
        tall = np.where(needles, 4.2, 2.2) * radius * stands
        self.needles = needles.ravel().astype(int)
        lattice = (part.astype(np.float32) for part in (y, x, radius, tall))
        self.crown, self.crown_height = crowns(size, CROWN_CELL, *lattice)

    def _changes(self, dates: int) -> None:
        """With each later date fell a piece of wood and strip a field to bare soil."""
        rng, size = self.rng, self.size
        never = np.full((2, size, size), NEVER, np.uint8)
        self.felled_since, self.cleared_since = never
        inner = np.pad(np.ones((size - 2 * MARGIN,) * 2, bool), MARGIN)
        plain = inner & ~(self.wood | self.banks | (self.garden_since < NEVER))
        rows, columns = np.indices((size, size)) + 4 * np.stack(self.drift)
        for date in range(1, dates):
            standing = self.wood & (self.felled_since == NEVER)
            if (standing & inner).any():
                tree = rng.choice(np.flatnonzero(standing & inner))
                away = np.hypot(rows - tree // size, columns - tree % size)
                near = away < rng.uniform(0.05, 0.08) * size
                self.felled_since[near & standing] = date
            field = plain & (self.cleared_since == NEVER)
            room = np.bincount(self.parcels[field], minlength=len(self.crops))
            chosen = rng.choice(np.argsort(-room, kind='stable')[:5])
            self.cleared_since[(self.parcels == chosen) & field] = date

    def house_at(self, date: int) -> ndarray:
        """Return the number of the building over each pixel at a date, -1 without."""
        since = np.append(self.houses[:, 9], NEVER)
        return np.where(since[self.house] <= date, self.house, -1)

    def bare(self, date: int) -> ndarray:
        """Return where wood is felled or a field stripped at a date."""
        return (self.felled_since <= date) | (self.cleared_since <= date)

    def canopy(self, date: int) -> ndarray:
        """Return the height of the trees at a date, 0 where something replaced them."""
        gone = self.bare(date) | self.water | (self.road_since <= date)
        gone |= self.house_at(date) >= 0
        return np.where(gone, np.float32(0), self.crown_height)

    def classes(self, date: int) -> ndarray:
        """Return the class of each pixel at a date."""
        classes = np.full(self.water.shape, FIELD, np.uint8)
        for where, kind in (
            (self.banks | (self.garden_since <= date), OTHER),
            (self.wood | (self.canopy(date) > 0), WOOD),
            (self.bare(date), OTHER),
            (self.water, WATER),
            (self.road_since <= date, ROAD),
            (self.house_at(date) >= 0, BUILDING),
        ):
            classes[where] = kind
        return classes


def _points_on(line: LineString, at: ArrayLike) -> ndarray:
    """Return the points (N, 2) at distances along a line."""
    return shapely.get_coordinates(shapely.line_interpolate_point(line, at))
