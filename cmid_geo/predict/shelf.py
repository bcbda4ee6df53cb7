# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Arrays put aside on disk, for later or for another process."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

#: Where an array lies in the file: offset, type and shape.
Place = tuple[int, str, tuple[int, ...]]


class Shelf:
    """An append-only file of arrays, each under a key.

    Several processes have a shelf each in one folder, on any file system that all see: no two
    write to one file, and the list of a shelf's contents appears when it is closed.
    """

    def __init__(self, path: Path) -> None:
        """Initialize a new Shelf instance.

        Args:
            path: File to append to; the list gets the ending ``.json``.
        """
        self.path = path
        self.places: dict[tuple[int, ...], list[Place]] = {}
        self._end = 0
        self._file: Any = None

    def put(self, key: tuple[int, ...], *arrays: np.ndarray) -> None:
        """Put arrays aside.

        Args:
            key: To find them by.
            arrays: Of any types.
        """
        if self._file is None:
            self._file = open(self.path, 'w+b')  # noqa: SIM115
        for array in arrays:
            self._file.seek(self._end)
            self._file.write(np.ascontiguousarray(array).data)
            place = self._end, array.dtype.str, array.shape
            self.places.setdefault(key, []).append(place)
            self._end += array.nbytes

    def take(self, key: tuple[int, ...]) -> list[np.ndarray]:
        """Read arrays back, once.

        Args:
            key: Under which they were put; it is free again.

        Returns:
            The arrays.
        """
        if self._file is None:
            self._file = open(self.path, 'rb')  # noqa: SIM115
        found = []
        for offset, dtype, shape in self.places.pop(key):
            array = np.empty(shape, dtype)
            self._file.seek(offset)
            self._file.readinto(array.data)
            found.append(array)
        return found

    def close(self, **about: Any) -> None:
        """Close the file and, last, write the list of what is in it.

        Args:
            about: What else to tell, as JSON.
        """
        if self._file is not None:
            self._file.close()
            self._file = None
        places = [[list(key), places] for key, places in self.places.items()]
        listed = self.path.with_suffix('.json')
        listed.write_text(json.dumps({'places': places, 'about': about}))

    @classmethod
    def open(cls, path: Path) -> tuple['Shelf', dict[str, Any]]:
        """Open the shelf that another process closed.

        Args:
            path: Its file.

        Returns:
            The shelf, and what else it tells.

        Raises:
            FileNotFoundError: If it was not closed.
        """
        content = json.loads(path.with_suffix('.json').read_text())
        shelf = cls(path)
        for key, places in content['places']:
            shelf.places[tuple(key)] = [(o, d, tuple(s)) for o, d, s in places]
        return shelf, content['about']

    def __iter__(self) -> Iterator[tuple[int, ...]]:
        """Yield the keys in the order in which they were put."""
        return iter(tuple(self.places))
