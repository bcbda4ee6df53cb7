# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Samplers of chips: random windows, listed ones, and those that cover all scenes."""

import itertools
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import Sampler

from ..ops.window_starts import window_starts
from .chips import Chip, HasScenes
from .coverage import Coverage

#: Side in pixels of the blocks that make up a region: what most tiled files have, or a part of that.
BLOCK = 256

#: Draws in a row that may lack a second date before the sampler gives up.
_TRIES = 1000

#: Fraction of a window in another scene that is lost where the pixels do not quite coincide.
_SLIVER = 1e-3


class _Epochs(Sampler[Chip]):
    """Draws that are a function of seed and epoch alone."""

    length: int
    seed: int
    epoch = 0

    def __len__(self) -> int:
        """Return the number of chips in an epoch."""
        return self.length

    def set_epoch(self, epoch: int) -> None:
        """Choose the chips of another epoch, as Lightning does.

        Args:
            epoch: Number of the epoch, from 0.
        """
        self.epoch = epoch

    def _rng(self) -> np.random.Generator:
        """Source of randomness of this epoch."""
        return np.random.default_rng([self.seed, self.epoch])


class RandomChips(_Epochs):
    """Random windows, evenly over the valid ground of all scenes.

    Scenes are drawn in proportion to their valid ground; one just as large as a chip is drawn as
    well, at its only position. Windows with too little valid ground are not drawn, as far as a
    decimated look at each scene tells. An epoch is a function of the arguments and :meth:`set_epoch`
    alone: every process draws the same list, which Lightning then shares out.

    A window is decoded from whole blocks of a file, 3.5 of 256 pixels on average. With
    *chips_per_region* n, a window drawn so is followed by n - 1 others that touch the same blocks of 256
    pixels, its *region*: those are still in GDAL's cache where *batch_size* regions fit in. Regions are
    replaced in turn, one in n with each batch, and each chip of a batch is of another region, drawn
    by itself: a batch is as varied as without. What changes is that a region shows in n batches in a
    row (those of one worker, so each *num_workers* batches), and that an epoch sees an n-th of the regions.
    Each chip alone is distributed as without, evenly, since windows are drawn evenly among
    those that touch the same blocks, and the first again where that one is not valid enough; with several
    dates nearly so, because the others of a region are drawn once.
    """

    def __init__(
        self,
        dataset: HasScenes,
        size: int,
        length: int,
        *,
        dates: int = 1,
        min_valid: float = 0.75,
        seed: int | None = None,
        chips_per_region: int = 1,
        batch_size: int = 1,
        num_workers: int = 0,
    ) -> None:
        """Initialize a new RandomChips instance.

        Args:
            dataset: Where to draw from.
            size: Side of a chip in pixels of the dataset's resolution.
            length: Chips in an epoch.
            dates: Dates of a chip. With more than one, other scenes of as many other dates are
                drawn that cover the window wholly and are valid enough there as well.
            min_valid: Least fraction of a chip that must be valid, in [0, 1].
            seed: Of the random numbers; None for ``torch.initial_seed()``, which
                ``seed_everything`` sets.
            chips_per_region: Chips that are drawn from the same blocks of a file.
            batch_size: Chips of a batch, of all processes together: each is of a region of its own.
                Matters for several chips a region only.
            num_workers: Processes that take the batches in turn, as those of a ``DataLoader`` do:
                the chips of a region are then read by one of them.

        Raises:
            ValueError: If an argument is out of range or no scene has such a chip.

        Warns:
            UserWarning: If some scenes have none.
        """
        counts = {'size': size, 'length': length, 'dates': dates}
        counts |= {'chips_per_region': chips_per_region, 'batch_size': batch_size}
        for name, value in counts.items():
            if value < 1:
                raise ValueError(
                    f'{name}={value} must be at least 1: give a larger {name}'
                )
        if not 0 <= min_valid <= 1:
            raise ValueError(
                f'min_valid={min_valid} is a fraction: give a number from 0 to 1'
            )
        self.dataset, self.size, self.length = dataset, size, length
        self.dates, self.min_valid = dates, min_valid
        self.seed = torch.initial_seed() if seed is None else seed
        self.chips_per_region = chips_per_region
        self.open_regions = batch_size * max(1, num_workers)
        self.coverage = [
            Coverage(dataset.validity(i), scene.width, scene.height)
            for i, scene in enumerate(dataset.scenes)
        ]
        self._boxes = np.array([scene.bounds for scene in dataset.scenes])
        self._dates = np.array([scene.start.value for scene in dataset.scenes])
        usable = np.array([c.restrict(size, min_valid) for c in self.coverage])
        _report([*_small(dataset.scenes, size), *self._empty(usable)], usable)
        if dates > 1:
            paired = self._paired(usable)
            _report(self._lonely(usable & ~paired), paired)
            usable = paired
        area = [c.valid_fraction * c.width * c.height for c in self.coverage]
        weight = np.where(usable, area, 0.0)
        self.probabilities = weight / weight.sum()
        self._cumulative = np.cumsum(self.probabilities)
        self._draw(np.random.default_rng(0))  # fails now rather than in training

    def __iter__(self) -> Iterator[Chip]:
        """Iterate over the chips of the epoch.

        Yields:
            Windows inside the scenes.
        """
        yield from itertools.islice(self._endless(self._rng()), self.length)

    def _endless(self, rng: np.random.Generator) -> Iterator[Chip]:
        """Draw from the open regions in turn, and put another in the place of one used up."""
        regions: list[Chip] = []
        for turn in itertools.count():
            for place in range(self.open_regions):
                if not turn:
                    regions.append(self._draw(rng))
                # Not all at once, so that each batch takes as long to read
                elif (turn + place) % self.chips_per_region == 0:
                    regions[place] = self._draw(rng)
                else:
                    yield self._near(regions[place], rng)
                    continue
                yield regions[place]

    def _near(self, chip: Chip, rng: np.random.Generator) -> Chip:
        """Draw a window among those that touch the same blocks; the same one if that is not valid."""
        cover, starts = self.coverage[chip.scenes[0]], []
        for start, extent in ((chip.col, cover.width), (chip.row, cover.height)):
            first, last = start // BLOCK, (start + self.size - 1) // BLOCK
            low = max(first * BLOCK, last * BLOCK - self.size + 1)
            high = min((first + 1) * BLOCK - 1, (last + 1) * BLOCK - self.size)
            starts.append(int(rng.integers(low, min(high, extent - self.size) + 1)))
        moved = replace(chip, col=starts[0], row=starts[1])
        return moved if self._holds(moved) else chip

    def _holds(self, chip: Chip) -> bool:
        """Whether a window is covered by all its scenes and valid enough there."""
        scene, *others = chip.scenes
        valid = self.coverage[scene].fraction(chip.col, chip.row, self.size)
        if valid < self.min_valid - 1e-9:
            return False
        if not others:
            return True
        places, covers = self._places(scene, chip.col, chip.row)
        return bool(covers[others].all()) and all(
            self.coverage[other].fraction(*places[other], self.size)
            >= self.min_valid - _SLIVER
            for other in others
        )

    def _empty(self, usable: np.ndarray) -> list[str]:
        """Say which scenes are large enough for a chip but not valid enough, if any are."""
        names = [
            f'{scene.files[0]!r} ({cover.valid_fraction:.0%} valid)'
            for scene, cover, has_chip in zip(
                self.dataset.scenes, self.coverage, usable, strict=True
            )
            if not has_chip and min(scene.width, scene.height) >= self.size
        ]
        return _problem(
            names,
            f'no window of {self.size} pixels is valid to {self.min_valid:.0%}; lower min_valid, or the '
            'size of the chips (patch_size)',
        )

    def _paired(self, usable: np.ndarray) -> np.ndarray:
        """Return which scenes share ground with enough other dates."""
        least = np.array(self.dataset.res) * (self.size - 0.01)
        paired = usable.copy()
        for i in np.flatnonzero(usable):
            low = np.maximum(self._boxes[i, :2], self._boxes[:, :2])
            high = np.minimum(self._boxes[i, 2:], self._boxes[:, 2:])
            shared = usable & ((high - low) >= least).all(1)
            paired[i] = len(set(self._dates[shared])) >= self.dates
        return paired

    def _lonely(self, lonely: np.ndarray) -> list[str]:
        """Say which scenes lack other dates, if any do, and why."""
        scenes = self.dataset.scenes
        names = [repr(s.files[0]) for s, alone in zip(scenes, lonely) if alone]
        cure = (
            'no file name holds a date: tell where it is by date_regex=, or use dates=1'
        )
        if any(scene.is_dated for scene in scenes):
            cure = 'add scenes of the same ground, or use dates=1'
        why = f'no chip there is covered by {self.dates} dates; {cure}'
        return _problem(names, why)

    def _draw(self, rng: np.random.Generator) -> Chip:
        """Draw a scene, a window in it, and other dates of the same place."""
        for _ in range(_TRIES):
            # Scaled by the last sum, which rounding may leave beside 1
            point = rng.random() * self._cumulative[-1]
            scene = int(np.searchsorted(self._cumulative, point, side='right'))
            col, row = self.coverage[scene].draw(rng)
            others = self._other_dates(scene, col, row, rng) if self.dates > 1 else []
            if len(others) == self.dates - 1:
                return Chip((scene, *others), col, row, self.size, self.size)
        raise ValueError(
            f'{_TRIES} windows in a row were not covered by dates={self.dates} scenes that are valid '
            f'there to min_valid={self.min_valid}: lower min_valid, dates or the size of the chips'
        )

    def _other_dates(
        self, scene: int, col: int, row: int, rng: np.random.Generator
    ) -> list[int]:
        """Draw scenes of distinct other dates that cover a window, as many as there are."""
        places, covers = self._places(scene, col, row)
        covers &= self._dates != self._dates[scene]
        chosen: dict[int, int] = {}
        enough = self.min_valid - _SLIVER
        for other in rng.permutation(np.flatnonzero(covers)).tolist():
            if len(chosen) == self.dates - 1:
                break
            valid = self.coverage[other].fraction(*places[other], self.size)
            if self._dates[other] not in chosen and valid >= enough:
                chosen[self._dates[other]] = other
        return list(chosen.values())

    def _places(self, scene: int, col: int, row: int) -> tuple[np.ndarray, np.ndarray]:
        """Tell the first pixel of a scene's window in each scene, (scenes, 2), and which cover it."""
        res = np.array(self.dataset.res)
        shift = (self._boxes[scene] - self._boxes)[:, [0, 3]] * (1, -1) / res
        places = np.array([col, row]) + shift
        # The last pixel that it could begin at
        ends = (self._boxes[:, 2:] - self._boxes[:, :2]) / res - self.size
        return places, ((places >= -0.01) & (places <= ends + 0.01)).all(1)


class ListedChips(_Epochs):
    """Draws from a list of windows or other samples, each as likely, by seed and epoch alone."""

    def __init__(self, chips: Sequence[Any], length: int, seed: int = 0) -> None:
        """Initialize a new ListedChips instance.

        Args:
            chips: Windows, or indices of samples, to draw from.
            length: Draws in an epoch.
            seed: Of the random numbers.
        """
        self.chips, self.length, self.seed = list(chips), length, seed

    def __iter__(self) -> Iterator[Chip]:
        """Iterate over all of the list again and again, each time in another order."""
        rng = self._rng()
        for place in range(self.length):
            if place % len(self.chips) == 0:
                order = rng.permutation(len(self.chips))
            yield self.chips[order[place % len(self.chips)]]


class GridChips(Sampler[Chip]):
    """Windows that together cover every scene.

    The last window of a row or column is moved inwards, so that none overhangs. Scenes smaller than
    a chip are left out, with a warning.
    """

    def __init__(
        self, dataset: HasScenes, size: int, stride: int | None = None
    ) -> None:
        """Initialize a new GridChips instance.

        Args:
            dataset: What to cover.
            size: Side of a chip in pixels of the dataset's resolution.
            stride: Distance between chips in pixels, by default *size*.

        Raises:
            ValueError: If *size* or *stride* is out of range or every scene is smaller than a chip.

        Warns:
            UserWarning: If some scenes are.
        """
        stride = size if stride is None else stride
        if not 1 <= stride <= size:
            raise ValueError(
                f'stride={stride} must be from 1 to size={size}, else ground is left out between '
                'the chips: choose another'
            )
        self.chips = [
            Chip((i,), col, row, size, size)
            for i, scene in enumerate(dataset.scenes)
            if min(scene.width, scene.height) >= size
            for row in window_starts(scene.height, size, stride)
            for col in window_starts(scene.width, size, stride)
        ]
        _report(_small(dataset.scenes, size), self.chips)

    def __len__(self) -> int:
        """Return the number of chips."""
        return len(self.chips)

    def __iter__(self) -> Iterator[Chip]:
        """Iterate over the chips, scene by scene and row by row."""
        return iter(self.chips)


def windows(places: HasScenes, size: int) -> list[Chip]:
    """Windows side by side that cover every place once; the last overhang, and are invalid there.

    Args:
        places: What to cover.
        size: Side of a window in pixels.

    Returns:
        Chips, place by place and row by row.
    """
    return [
        Chip((index,), col, row, size, size)
        for index, mask in enumerate(places.scenes)
        for row in range(0, mask.height, size)
        for col in range(0, mask.width, size)
    ]


def _small(scenes: Sequence[Any], size: int) -> list[str]:
    """Say which scenes are smaller than a chip, if any are."""
    names = [
        f'{scene.files[0]!r} ({scene.width}x{scene.height})'
        for scene in scenes
        if min(scene.width, scene.height) < size
    ]
    return _problem(
        names,
        f'smaller than a chip of {size}x{size} pixels; lower the size of the chips (patch_size) to draw '
        'from there',
    )


def _report(problems: list[str], left: Iterable[Any]) -> None:
    """Warn of scenes that are left out; refuse if nothing is left."""
    if not any(left):
        raise ValueError(f'no scene to draw chips from. {" ".join(problems)}')
    for problem in problems:
        warnings.warn(f'no chips are drawn from {problem}', stacklevel=3)


def _problem(names: list[str], why: str, most: int = 5) -> list[str]:
    """Say why no chip is drawn from some scenes, of which a few are named, if there are any."""
    more = f' and {len(names) - most} more' if len(names) > most else ''
    return [f'{", ".join(names[:most])}{more}: {why}'] if names else []
