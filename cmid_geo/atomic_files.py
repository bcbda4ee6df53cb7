# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Files that are written at once or not at all."""

import os
from collections.abc import Callable
from pathlib import Path


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Write beside the path to the disk, then rename: a reader never meets half a file.

    Args:
        path: File to write; its folder is made.
        write: Called with the path beside it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f'.{os.getpid()}.{path.name}')
    try:
        write(beside)
        _flush(beside)
        os.replace(beside, path)
        _flush(path.parent)
    finally:
        beside.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    # Windows opens no folders
    if os.name == 'posix' or path.is_file():
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
