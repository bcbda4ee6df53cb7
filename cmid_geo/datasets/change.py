# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Two dates of each place and a mask of what changed between them, in GeoTIFF folders."""

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import compress
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pyproj import CRS
from torch.utils.data import Dataset
from torchgeo.datasets import DatasetNotFoundError
from torchgeo.datasets.utils import Path, Sample

from ..plots.samples import sample_figure
from .chips import Chip
from .filenames import DEFAULT_BAND_REGEX, DEFAULT_DATE_REGEX, find_rasters, stem
from .grids import Bools
from .reader import SceneReader
from .scene import Declared, Scene, check_same_count, find_scenes, place

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: A place's name, its dates and its mask.
Place = tuple[str, Scene, Scene, Scene]

#: From files, and whether they are masks, to scenes.
ScenesOf = Callable[[list[str], bool], list[Scene]]


class ChangePairs(Dataset[Sample]):
    """Places seen at two dates, with a label of change a pixel.

    Each place keeps the grid of its mask: a date of another CRS, resolution or origin is
    interpolated bilinearly to it, labels never are. Files lie either in one folder a place
    (*root*), each with a mask and two dates, or in three lists that fit together
    (*before*, *after* and *masks*).

    A sample holds ``image`` (2, C, H, W) float32, raw values, 0 where not valid; ``mask`` (H, W)
    int64; ``valid`` (H, W) bool, where both dates hold data; and ``scene`` and ``window``.

    Attributes:
        places: Names, one a place: of its folder, or of its mask's file.
        scenes: The masks, as scenes: chips are windows on their grids.
        bands: Names of the bands of a date.
    """

    def __init__(
        self,
        root: Path | None = None,
        *,
        before: Path | Iterable[Path] | None = None,
        after: Path | Iterable[Path] | None = None,
        masks: Path | Iterable[Path] | None = None,
        bands: Sequence[str | int] | None = None,
        mask_name: str = 'change',
        binary: bool = False,
        ignore_index: int = 255,
        band_regex: str = DEFAULT_BAND_REGEX,
        date_regex: str = DEFAULT_DATE_REGEX,
        zero_is_nodata: bool = False,
        transforms: Callable[[Sample], Sample] | None = None,
        nodata: float | None = None,
        file_crs: CRS | str | None = None,
    ) -> None:
        """Initialize a new ChangePairs instance.

        Args:
            root: A folder of folders, one a place, each with a mask and files of two dates.
            before: Instead of *root*: a folder, a glob, a file, or several, of the first dates.
            after: A folder, a glob, a file, or several, of the second dates.
            masks: A folder, a glob, a file, or several, of the masks. Files of the three are matched by name where the names
                are the same, else by their sorted order.
            bands: Bands in the order wanted, by name or position from 1; all by default.
            mask_name: With *root*, the mask's name without its ending.
            binary: Whether any value but 0 is change, such as the 255 of many masks.
            ignore_index: Label to give where the mask holds no data.
            band_regex: Finds the band in the names of single-band files, in a group ``band``.
            date_regex: With *root*, finds the date in file names, in a group ``date``.
            zero_is_nodata: Whether pixels with 0 in all bands are invalid even if no file says so.
            transforms: Applied to each sample.
            nodata: Fill value that files of dates do not declare: pixels that have it in all bands
                are invalid.
            file_crs: The CRS of files that state none.

        Raises:
            DatasetNotFoundError: If there is no raster.
            ValueError: If files do not fit together, with what to do.
        """
        self.paths = root if root is not None else masks
        self.transforms = transforms
        self.binary, self.ignore_index = binary, ignore_index

        def scenes_of(files: list[str], is_mask: bool) -> list[Scene]:
            """Scenes of files: masks have one band, in which 0 is a class."""
            wanted, zero = ([1], False) if is_mask else (bands, zero_is_nodata)
            declared = Declared(zero, None if is_mask else nodata, file_crs)
            return find_scenes(files, wanted, band_regex, date_regex, declared)

        lists = [each for each in (before, after, masks) if each is not None]
        if root is not None and not lists:
            found = pairs_in_folders(root, mask_name, scenes_of)
        elif root is None and len(lists) == 3:
            found = pairs_in_lists(*lists, scenes_of)
        else:
            raise ValueError(
                'pairs lie either in root=, one folder a place, or in before=, after= and masks=: give '
                'root alone, or the three'
            )
        if not found:
            raise DatasetNotFoundError(self)
        for date in (date for _, *dates, _ in found for date in dates):
            check_same_count(found[0][1].rasters, date.rasters)
        self.places = tuple(name for name, *_ in found)
        self.bands = found[0][1].bands
        self.pairs = tuple(align(*trio) for trio in found)
        self.scenes = tuple(mask for _, _, mask in self.pairs)
        self._reader = SceneReader()

    @property
    def res(self) -> tuple[float, float]:
        """Pixel size (x, y) of the first mask, in units of its CRS."""
        return self.scenes[0].grid.res

    @property
    def files(self) -> list[str]:
        """All files of dates, place by place."""
        dates = [date for *dates, _ in self.pairs for date in dates]
        return [file for date in dates for file in date.files]

    def select(self, places: Iterable[str]) -> 'ChangePairs':
        """Take some of the places.

        Args:
            places: Their names.

        Returns:
            A dataset of these alone, in the order of this one.
        """
        chosen, wanted = copy.copy(self), set(places)
        kept = [name in wanted for name in self.places]
        chosen.places = tuple(compress(self.places, kept))
        chosen.pairs = tuple(compress(self.pairs, kept))
        chosen.scenes = tuple(compress(self.scenes, kept))
        return chosen

    def __len__(self) -> int:
        """Return the number of places."""
        return len(self.pairs)

    def __getitem__(self, index: Chip | int) -> Sample:
        """Read a window of a place, or all of it.

        Args:
            index: A chip of one scene, which may overhang the mask; or a place's number.

        Returns:
            The sample.

        Raises:
            ValueError: If a file cannot be read any more.
        """
        if not isinstance(index, Chip):
            mask = self.scenes[index]
            index = Chip((int(index),), 0, 0, mask.width, mask.height)
        *dates, mask = self.pairs[index.scenes[0]]
        target = mask.grid.window(*index.window)
        images, valids = zip(*(self._reader.read(date, target) for date in dates))
        values, known = self._reader.read(mask, target)
        labels = values[0].round().astype(np.int64)
        if self.binary:
            labels = (labels != 0).astype(np.int64)
        ends = max(mask.height - index.row, 0), max(mask.width - index.col, 0)
        inside = np.zeros_like(known)
        inside[max(-index.row, 0) : ends[0], max(-index.col, 0) : ends[1]] = True
        labels[inside & ~known] = self.ignore_index
        valid = valids[0] & valids[1] & inside
        sample = {
            'image': torch.from_numpy(np.stack(images) * valid),
            'mask': torch.from_numpy(labels),
            'valid': torch.from_numpy(valid),
            'scene': torch.tensor(index.scenes[0]),
            'window': torch.tensor(index.window),
        }
        return sample if self.transforms is None else self.transforms(sample)

    def plot(
        self,
        sample: Sample,
        show_titles: bool = True,
        suptitle: str | None = None,
        **options: Any,
    ) -> 'Figure':
        """Draw a sample, and what was predicted of it.

        Args:
            sample: As of this dataset, raw or in [0, 1]; with ``prediction`` (H, W) this is drawn beside.
            show_titles: Whether to say which is which.
            suptitle: Title of all.
            **options: Of :func:`~cmid_geo.plots.samples.sample_figure`, such as ``names`` of classes.

        Returns:
            The figure.
        """
        known: dict[str, Any] = {'bands': self.bands, 'dates': ('before', 'after')}
        known['ignore_index'] = self.ignore_index
        if self.binary:
            known['names'] = ('no change', 'change')
        return sample_figure(sample, show_titles, suptitle, **(known | options))

    def validity(self, scene: int, cells: int = 512) -> Bools | None:
        """Map roughly where both dates of a place are valid.

        Args:
            scene: Index of the place.
            cells: At most so many cells on a side.

        Returns:
            Bool (rows, cols) over the mask; None if no pixel in it can be invalid.

        Raises:
            ValueError: If a file cannot be read any more.
        """
        *dates, mask = self.pairs[scene]
        if not any(date.may_be_invalid or date.grid != mask.grid for date in dates):
            return None
        coarse = mask.grid.coarse(cells)
        first, second = (self._reader.read(date, coarse)[1] for date in dates)
        return first & second


def pairs_in_folders(root: Path, mask_name: str, scenes_of: ScenesOf) -> list[Place]:
    """Find the places of a folder of folders.

    Args:
        root: The folder.
        mask_name: Name of the masks without ending; all other files show dates.
        scenes_of: From files to scenes.

    Returns:
        The places, sorted by name.

    Raises:
        ValueError: If a folder has not one mask and two dates.
    """
    folders: dict[PurePath, list[str]] = {}
    for path in find_rasters(root):
        folders.setdefault(PurePath(path).parent, []).append(path)
    found = []
    for folder, files in sorted(folders.items()):
        masks = [path for path in files if stem(path) == mask_name]
        # A mask that is not known as one would be read as a date
        if len(masks) != 1:
            raise ValueError(
                f'{str(folder)!r} has {len(masks)} masks named {mask_name!r}: a place needs one, tell its '
                'name without ending by mask_name='
            )
        images = scenes_of([path for path in files if path not in masks], False)
        images.sort(key=lambda scene: (scene.start, scene.files))
        dates = len({scene.start for scene in images})
        if len(images) != 2 or dates != 2:
            raise ValueError(
                f'{str(folder)!r} has {len(images)} images of {dates} dates: a place needs two, tell where '
                'file names state the date by date_regex=, or list the files by before=, after= and '
                'masks='
            )
        inside = folder.is_relative_to(str(root)) and folder != PurePath(root)
        name = str(folder.relative_to(str(root))) if inside else folder.name
        found.append((name, images[0], images[1], scenes_of(masks, True)[0]))
    return found


def pairs_in_lists(
    before: Path | Iterable[Path],
    after: Path | Iterable[Path],
    masks: Path | Iterable[Path],
    scenes_of: ScenesOf,
) -> list[Place]:
    """Match the files of three lists.

    Args:
        before: A folder, a glob, a file, or several, of the first dates.
        after: A folder, a glob, a file, or several, of the second dates.
        masks: A folder, a glob, a file, or several, of the masks.
        scenes_of: From files to scenes.

    Returns:
        The places, in the order of the masks, named as they are.

    Raises:
        ValueError: If the lists do not fit together.
    """
    several = [
        scenes_of(_listed(before), False), scenes_of(_listed(after), False), scenes_of(_listed(masks), True),
    ]  # fmt: skip
    counts = [len(scenes) for scenes in several]
    if len(set(counts)) != 1:
        raise ValueError(
            f'before, after and masks hold {counts[0]}, {counts[1]} and {counts[2]} scenes: each place '
            'needs one of each; leave out what has no partner'
        )
    names = [stem(scene.files[0]) for scene in several[2]]
    named = [{stem(scene.files[0]): scene for scene in scenes} for scenes in several]
    if all(set(each) == set(names) and len(each) == len(names) for each in named):
        several = [[each[name] for name in names] for each in named]
    return list(zip(names, *several))


def _listed(paths: Path | Iterable[Path]) -> list[str]:
    """Files of a path, sorted; of several single files, as they were listed."""
    if isinstance(paths, str) or not isinstance(paths, Iterable):
        return find_rasters(paths)
    return [file for path in paths for file in find_rasters(path)]


def align(
    name: str, first: Scene, second: Scene, mask: Scene
) -> tuple[Scene, Scene, Scene]:
    """Bring both dates of a place to the grid of its mask.

    Args:
        name: Of the place.
        first: First date, on its own grid.
        second: Second date.
        mask: The mask.

    Returns:
        Both dates, which need a warp where CRS or resolution differ; and the mask.

    Raises:
        ValueError: If the mask is rotated, or a date shows other ground.
    """
    own = mask.native
    if not own.is_north_up:
        raise ValueError(
            f'the mask {mask.files[0]!r} of {name!r} is rotated: labels are not interpolated; write it '
            'north up'
        )
    dates = [place(date, own.crs, own.res, own.transform) for date in (first, second)]
    for date in dates:
        low = np.maximum(date.bounds, own.bounds)[:2]
        high = np.minimum(date.bounds, own.bounds)[2:]
        if not (low < high).all():
            raise ValueError(
                f'{date.files[0]!r} and the mask {mask.files[0]!r} of {name!r} share no ground: match '
                'them by their names, or list them in one order'
            )
    # Many masks declare 0 as nodata, to be shown as glass; it is no change all the same
    return dates[0], dates[1], replace(mask, zero_is_nodata=False)
