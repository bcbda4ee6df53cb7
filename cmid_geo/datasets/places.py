# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Which files show one place at two dates, and what changed there."""

from collections.abc import Callable, Iterable
from pathlib import PurePath

import numpy as np
from torchgeo.datasets.utils import Path

from .filenames import find_rasters, stem
from .grids import natural_res
from .scene import Scene, place

#: A place's name, its dates and its mask.
Place = tuple[str, Scene, Scene, Scene]


#: From files, and whether they are masks, to scenes.
ScenesOf = Callable[[list[str], bool], list[Scene]]


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
    _check_bands(found)
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
        after: Likewise of the second dates.
        masks: Likewise of the masks.
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
    found = list(zip(names, *several))
    _check_bands(found)
    return found


def _listed(paths: Path | Iterable[Path]) -> list[str]:
    """Files of a path, sorted; of several single files, as they were listed."""
    if isinstance(paths, str) or not isinstance(paths, Iterable):
        return find_rasters(paths)
    return [file for path in paths for file in find_rasters(path)]


def _check_bands(found: list[Place]) -> None:
    """Refuse dates with different numbers of bands."""
    counts = {len(date.bands) for _, *dates, _ in found for date in dates}
    if len(counts) > 1:
        raise ValueError(
            f'dates have {sorted(counts)} bands: all must have the same; choose those that all have by '
            f'bands={list(range(1, min(counts) + 1))}'
        )


def align(
    name: str, first: Scene, second: Scene, mask: Scene
) -> tuple[Scene, Scene, Scene]:
    """Lay both dates of a place on the grid of its mask.

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
    res = natural_res(own, own.crs)
    dates = [place(date, own.crs, res, own.transform) for date in (first, second)]
    for date in dates:
        low, high = np.array(date.bounds).reshape(2, 2)
        bounds = np.array(own.bounds).reshape(2, 2)
        if not (np.minimum(high, bounds[1]) > np.maximum(low, bounds[0])).all():
            raise ValueError(
                f'{date.files[0]!r} and the mask {mask.files[0]!r} of {name!r} share no ground: match '
                'them by their names, or list them in one order'
            )
    return dates[0], dates[1], mask
