# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Scenes of folders, globs, files and URLs, and names of their maps."""

import contextlib
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from ..datasets.filenames import DEFAULT_BAND_REGEX, find_rasters, group_bands, stem
from ..datasets.scene import NOTHING_DECLARED, Declared, Scene
from .inputs import SceneFiles, scenes_of

#: A scene where several files had to be read to tell that they are one; else its files.
Found = Scene | tuple[str, ...]


@dataclass(frozen=True)
class ListedScene:
    """A scene to map.

    Attributes:
        dates: What there is of each date.
        out: The map.
    """

    dates: tuple[Found, ...]
    out: Path

    @property
    def source(self) -> SceneFiles:
        """As :func:`~cmid_geo.predict.predict_scene` takes it."""
        return self.dates[0] if len(self.dates) == 1 else self.dates

    @property
    def name(self) -> str:
        """What to call it in messages."""
        return ' and '.join(_files(date)[0] for date in self.dates)


def _files(found: Found) -> tuple[str, ...]:
    return found.files if isinstance(found, Scene) else found


def list_scenes(
    scenes: Sequence[str],
    out: str | Path,
    dates: int,
    ending: str,
    declared: Declared = NOTHING_DECLARED,
) -> list[ListedScene]:
    """List what is to be mapped.

    Args:
        scenes: Folders, globs, files and URLs; of two dates before and after by turns, of folders
            the scenes of one name, or else in one order.
        out: Folder of the maps.
        dates: How many a map needs.
        ending: Of the maps' names.
        declared: What the files do not say.

    Returns:
        The scenes. Maps are called as their (first) file, with its folder's name before it where
        two would be called the same.

    Raises:
        ValueError: If a path does not exist, there is nothing to map, dates do not fit together,
            or two maps would have one name.
    """
    folder = Path(out)
    around = (folder.resolve(), *folder.resolve().parents)
    for path in scenes:
        if os.path.isdir(path) and Path(path).resolve() in around:
            raise ValueError(
                f'the maps would lie in {str(out)!r} among the scenes of {path!r} and be taken for scenes the '
                'next time: choose another folder'
            )
    listed = [_scenes_of(path, declared) for path in scenes]
    if len(listed) % dates:
        raise ValueError(
            f'{len(listed)} paths for a task that compares {dates} dates: give before and after by turns'
        )
    if dates == 1:
        unique = {_files(each): each for several in listed for each in several}
        found = [(each,) for each in unique.values()]
    else:
        pairs = zip(scenes[::2], listed[::2], listed[1::2])
        found = [pair for each in pairs for pair in _match(*each)]
    if not found:
        raise ValueError(f'{list(scenes)} hold no raster: give folders or files')
    return [
        ListedScene(each, folder / f'{name}{ending}')
        for each, name in zip(found, _names(found), strict=True)
    ]


def _scenes_of(path: str, declared: Declared) -> list[Found]:
    """What there is of each scene of a path."""
    found: list[Found] = []
    for group in group_bands(find_rasters(path), DEFAULT_BAND_REGEX):
        files = tuple(group.values())
        here: Sequence[Found] = [files]
        if len(files) > 1:
            # Only the files themselves tell bands of a scene from sheets of a map; where they
            # cannot be read, mapping them will say why
            with contextlib.suppress(ValueError):
                here = scenes_of(files, declared)
        found += here
    return found


def _match(
    path: str, before: list[Found], after: list[Found]
) -> list[tuple[Found, ...]]:
    """Pair dates by name where the names are the same, else by order."""
    if len(before) != len(after):
        raise ValueError(
            f'{path!r} holds {len(before)} scenes before and its partner {len(after)} after: each needs one '
            'of the other; leave out what has none'
        )
    names = [[_name(found) for found in each] for each in (before, after)]
    if set(names[0]) == set(names[1]) and len(set(names[0])) == len(before):
        places = dict(zip(names[1], after, strict=True))
        after = [places[name] for name in names[0]]
    return list(zip(before, after, strict=True))


def _name(found: Found) -> str:
    """The name of a scene's file; of several that hold a band each without the band's."""
    files = _files(found)
    first = stem(files[0])
    plain = re.sub(DEFAULT_BAND_REGEX, '', first) if len(files) > 1 else first
    return plain.strip(' ,._-') or first


def _names(found: Sequence[tuple[Found, ...]]) -> list[str]:
    """A name for each map, no two the same."""
    plain = ['_'.join(dict.fromkeys(map(_name, dates))) for dates in found]
    counts = Counter(plain)
    folders = (PurePath(_files(dates[0])[0]).parent.name for dates in found)
    names = [
        name if counts[name] == 1 else f'{folder}_{name}'
        for name, folder in zip(plain, folders, strict=True)
    ]
    # Beside a map may lie its probabilities
    files = [*names, *(f'{name}_probabilities' for name in names)]
    twice = [name for name, count in Counter(files).items() if count > 1]
    if twice:
        raise ValueError(
            f'two scenes would be mapped to {twice[0]!r}: map them to different folders'
        )
    return names
