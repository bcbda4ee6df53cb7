# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Headers kept on the disk between runs, and read anew from files that changed.

A file is JSON behind its hash, so that what is damaged is told from what is whole and nothing in a
shared folder can be run.
"""

import hashlib
import itertools
import json
import os
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path

import rasterio

from ..atomic_files import write_atomically
from ..version import __version__
from .filenames import VIRTUAL, is_remote
from .headers import MANY, Headers, read_headers

#: Of what is kept: raise it where a file is described differently than before.
FORMAT = 1

#: Options of GDAL that change where it finds a file to lie.
GEOREFERENCING = ('GDAL_GEOREF_SOURCES', 'GTIFF_SRS_SOURCE')

#: Environment variable that names the folder for headers; empty or 0 for none.
FOLDER = 'CMID_GEO_CACHE'

#: Seconds after which headers that no run asked for are removed.
LONGEST = 90 * 24 * 3600

#: Endings of what GDAL finds beside a file by the whole of its name.
_APPENDED = ('.aux.xml', '.ovr', '.msk')

#: Bytes of a hash, written as hexadecimal digits.
_HASH = 16

#: Whether headers may be written to the disk.
_writes = ContextVar('_writes', default=True)


@dataclass
class _Kept:
    """Headers, and the mark that each of the files had."""

    headers: Headers = field(default_factory=Headers)
    marks: dict[str, str] = field(default_factory=dict)


@contextmanager
def headers_left_alone() -> Generator[None]:
    """Recall headers that are there, and write none: for what shall leave the disk as it is."""
    token = _writes.set(False)
    try:
        yield
    finally:
        _writes.reset(token)


def kept_headers(
    files: Sequence[str], thorough: bool = False, file_crs: str | None = None
) -> Headers:
    """Describe files, or recall the headers of those that did not change where they are many.

    Args:
        files: Paths and URLs; the latter are always read.
        thorough: Whether to read every block, which finds damage in the middle too.
        file_crs: The coordinate reference system of files that state none, WKT.

    Returns:
        Their headers. Files that cannot be used are always read anew.
    """
    folder = _folder()
    if len(files) < MANY or folder is None:
        return read_headers(files, thorough, file_crs)
    place = folder / f'{_name(files, thorough, file_crs)}.json'
    # Before the files are read: one that changes meanwhile has another mark by the next run
    marks = mark_files(files)
    kept = _load(place)
    fresh = {path for path, mark in marks.items() if kept.marks.get(path) == mark}
    known = Headers(
        {path: kept.headers.rasters[path] for path in fresh},
        {},
        {path: kept.headers.remarks[path] for path in fresh & {*kept.headers.remarks}},
    )
    found = read_headers(
        [path for path in files if path not in fresh], thorough, file_crs
    )
    known.update(found)
    if _writes.get() and found.rasters.keys() & marks.keys():
        _store(place, known, marks, kept)
    return known


def mark_files(files: Sequence[str]) -> dict[str, str]:
    """Mark files by when they, and what lies beside them, changed.

    Args:
        files: Paths and URLs.

    Returns:
        Hashes of names, sizes and times (ns, of content and of status) of each file and of those
        called alike but for their endings: .aux.xml, .msk, .ovr, .tfw. None of URLs and VRTs, of
        which nothing tells when they change, and of files that are not there.
    """
    folders: dict[str, list[str]] = {}
    for path in files:
        if not is_remote(path) and not path.lower().endswith(VIRTUAL):
            folders.setdefault(os.path.dirname(path), []).append(path)
    marks = {}
    for folder, paths in folders.items():
        beside: dict[str, list[os.DirEntry[str]]] = {}
        own: dict[str, str] = {}
        with suppress(OSError), os.scandir(folder or '.') as entries:
            for entry in entries:
                own[entry.name] = _own_name(entry.name)
                beside.setdefault(own[entry.name], []).append(entry)
        for path in paths:
            with suppress(OSError, KeyError):
                marks[path] = _mark(beside[own[os.path.basename(path)]])
    return marks


def _own_name(name: str) -> str:
    """Return the name of a file, or of the one that it lies beside, without its ending."""
    name = name.lower()
    while name.endswith(_APPENDED):
        name = name.removesuffix('.aux.xml').removesuffix('.ovr').removesuffix('.msk')
    return os.path.splitext(name)[0].removesuffix('_rpc')


def _mark(entries: Sequence[os.DirEntry[str]]) -> str:
    """Hash what tells whether files changed."""
    stats = sorted((entry.name, entry.stat()) for entry in entries)
    # The time of the status tells files apart that an archive gave one time of content
    facts = [(name, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for name, s in stats]
    return hashlib.blake2b(
        repr(facts).encode(errors='surrogateescape'), digest_size=8
    ).hexdigest()


def _folder() -> Path | None:
    """Return the folder for headers, None if they are not to be kept."""
    given = os.environ.get(FOLDER)
    if given is not None:
        return None if given in ('', '0') else Path(given).expanduser() / 'headers'
    home = os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')
    return Path(home) / 'cmid_geo' / 'headers'


def _name(files: Sequence[str], thorough: bool, file_crs: str | None) -> str:
    """Name the file for headers of one folder, read in one way by these versions.

    All files below a folder share one, so that a file more or less leaves the others known.
    """
    first, last = min(files), max(files)
    alike = zip(first.split(os.sep), last.split(os.sep), strict=False)
    root = os.sep.join(
        one for one, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], alike)
    )
    versions = __version__, rasterio.__version__, rasterio.__gdal_version__
    given = rasterio.env.getenv() if rasterio.env.hasenv() else {}
    options = [given.get(name, os.environ.get(name)) for name in GEOREFERENCING]
    facts = FORMAT, options, root, os.path.abspath(root), thorough, file_crs, *versions
    return hashlib.blake2b(
        repr(facts).encode(errors='surrogateescape'), digest_size=_HASH
    ).hexdigest()


def _load(place: Path) -> _Kept:
    """Read headers; none where there are none, or they are damaged."""
    with suppress(OSError, KeyError, TypeError, ValueError):
        digest, _, content = place.read_bytes().partition(b'\n')
        if digest.decode(errors='replace') == _digest(content):
            packed = json.loads(content)
            kept = _Kept(Headers.unpack(packed['headers']), packed['marks'])
            with suppress(OSError):
                # What is of use is not removed, however old
                if _writes.get():
                    os.utime(place)
            return kept
    return _Kept()


def _store(place: Path, headers: Headers, marks: dict[str, str], kept: _Kept) -> None:
    """Write headers, and those of the files nobody asked for now that are still there."""
    both = Headers()
    for path in headers.rasters.keys() & marks.keys():
        both.rasters[path] = headers.rasters[path]
    for path, raster in kept.headers.rasters.items():
        # One that was asked for now is in the first part, or cannot be used any more
        asked = path in marks or path in headers.rasters or path in headers.bad
        if not asked and os.path.exists(path):
            both.rasters[path] = raster
    for path in both.rasters:
        source = headers if path in headers.rasters else kept.headers
        if path in source.remarks:
            both.remarks[path] = source.remarks[path]
    all_marks = kept.marks | marks
    packed = {
        'headers': both.pack(),
        'marks': {path: all_marks[path] for path in both.rasters},
    }
    content = json.dumps(packed, separators=(',', ':')).encode()
    with suppress(OSError):
        write_atomically(
            place,
            lambda part: part.write_bytes(_digest(content).encode() + b'\n' + content),
        )
        for other in place.parent.glob('*.json'):
            if other.stat().st_mtime < time.time() - LONGEST:
                other.unlink()


def _digest(content: bytes) -> str:
    """Return the hash that a file begins with."""
    return hashlib.blake2b(content, digest_size=_HASH).hexdigest()
