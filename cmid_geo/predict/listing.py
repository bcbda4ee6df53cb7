# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Which scenes there are to map, and what their maps are called."""

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from ..datasets.filenames import (
    DEFAULT_BAND_REGEX,
    DEFAULT_DATE_REGEX,
    find_rasters,
    group_bands,
    stem,
)
from ..datasets.scene import Declared, find_scenes

#: The files of one date.
Files = tuple[str, ...]


@dataclass(frozen=True)
class Task:
    """A scene to map.

    Attributes:
        dates: The files of each date.
        out: The map.
    """

    dates: tuple[Files, ...]
    out: Path

    @property
    def scene(self) -> list[str] | list[list[str]]:
        """As :func:`~cmid_geo.predict.predict_scene` takes it."""
        files = [list(date) for date in self.dates]
        return files[0] if len(files) == 1 else files

    @property
    def name(self) -> str:
        """What to call it in messages."""
        return ' and '.join(date[0] for date in self.dates)


@dataclass
class Tally:
    """What became of many scenes.

    Attributes:
        made: Maps that were made.
        skipped: Maps that were there.
        failed: Scenes that could not be mapped, and why.
    """

    made: list[Path] = field(default_factory=list)
    skipped: list[Path] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        """Say it."""
        counts = f'{len(self.made)} maps made, {len(self.skipped)} were there already'
        bad = [f'\n  {name}: {why}' for name, why in self.failed.items()]
        return f'{counts}, {len(bad)} scenes failed{":" * bool(bad)}{"".join(bad)}'


def list_tasks(
    scenes: Sequence[str],
    out: str | Path,
    dates: int,
    ending: str,
    file_crs: str | None = None,
) -> list[Task]:
    """List what is to be mapped.

    Args:
        scenes: Folders, globs, files and URLs; of two dates before and after by turns, of folders
            the scenes of one name, or else in one order.
        out: Folder of the maps.
        dates: How many a map needs.
        ending: Of the maps' names.
        file_crs: The CRS of files that state none.

    Returns:
        The tasks. Maps are called as their (first) file, with its folder's name before it where
        two would be called the same.

    Raises:
        ValueError: If a path does not exist, there is nothing to map, dates do not fit together,
            or two maps would have one name.
    """
    for path in scenes:
        if os.path.isdir(path) and Path(out).resolve().is_relative_to(
            Path(path).resolve()
        ):
            raise ValueError(
                f'the maps would lie in {str(out)!r} among the scenes of {path!r} and be taken for scenes the '
                'next time: choose another folder'
            )
    listed = [_scenes_of(path, Declared(crs=file_crs)) for path in scenes]
    if dates == 1:
        every = [files for each in listed for files in each]
        found: list[tuple[Files, ...]] = [(files,) for files in dict.fromkeys(every)]
    else:
        if len(listed) % dates:
            raise ValueError(
                f'{len(listed)} paths for a task that compares {dates} dates: give before and after by turns'
            )
        found = []
        for first in range(0, len(listed), dates):
            found += _match(scenes[first], listed[first], listed[first + 1])
    if not found:
        raise ValueError(f'{list(scenes)} hold no raster: give folders or files')
    folder = Path(out)
    return [
        Task(each, folder / f'{name}{ending}')
        for each, name in zip(found, _names(found), strict=True)
    ]


def _scenes_of(path: str, declared: Declared) -> list[Files]:
    """The files of each scene of a path."""
    found: list[Files] = []
    for group in group_bands(find_rasters(path), DEFAULT_BAND_REGEX):
        files = tuple(group.values())
        if len(files) == 1:
            found.append(files)
            continue
        try:
            # Only the files themselves tell bands of a scene from sheets of a map
            scenes = find_scenes(
                files, None, DEFAULT_BAND_REGEX, DEFAULT_DATE_REGEX, declared
            )
            found += [scene.files for scene in scenes]
        except ValueError:
            # Mapping them will say why
            found.append(files)
    return found


def _match(
    path: str, before: list[Files], after: list[Files]
) -> list[tuple[Files, ...]]:
    """Pair dates by name where the names are the same, else by order."""
    if len(before) != len(after):
        raise ValueError(
            f'{path!r} holds {len(before)} scenes before and its partner {len(after)} after: each needs one '
            'of the other; leave out what has none'
        )
    names = [[_name(files) for files in each] for each in (before, after)]
    if set(names[0]) == set(names[1]) and len(set(names[0])) == len(before):
        places = dict(zip(names[1], after, strict=True))
        after = [places[name] for name in names[0]]
    return list(zip(before, after, strict=True))


def _name(files: Files) -> str:
    """The name of a scene's file; of several that hold a band each without the band's."""
    first = stem(files[0])
    plain = re.sub(DEFAULT_BAND_REGEX, '', first) if len(files) > 1 else first
    return plain.strip(' ,._-') or first


def _names(found: Sequence[tuple[Files, ...]]) -> list[str]:
    """A name for each map, no two the same."""
    plain = ['_'.join(dict.fromkeys(map(_name, dates))) for dates in found]
    counts = Counter(plain)
    names = [
        name if counts[name] == 1 else f'{PurePath(dates[0][0]).parent.name}_{name}'
        for name, dates in zip(plain, found, strict=True)
    ]
    # Beside a map may lie its probabilities
    files = [*names, *(f'{name}_probabilities' for name in names)]
    twice = [name for name, count in Counter(files).items() if count > 1]
    if twice:
        raise ValueError(
            f'two scenes would be mapped to {twice[0]!r}: map them to different folders'
        )
    return names
