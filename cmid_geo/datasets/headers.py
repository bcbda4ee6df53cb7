# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Headers of many rasters, read by several processes.

Threads gain nothing, as GDAL opens files under Python's lock. The processes are programs of their
own that run this module: processes of multiprocessing would run the user's script once more
wherever it has no ``if __name__ == '__main__'``. They import what describes a raster and no more.
"""

import gc
import json
import multiprocessing
import os
import queue
import signal
import subprocess
import sys
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Any

import rasterio
from affine import Affine
from pyproj import CRS

from .gdal import DESCRIBING
from .grids import Grid
from .rasters import Raster, UnreadableError, describe_raster

#: From so many files on, processes are started and headers are kept on the disk. A process starts in a
#: quarter of a second, so two gain from about 450 files on; below there is hardly anything to wait for.
MANY = 1000

#: Most processes: each process of a run on several devices starts its own.
MOST_PROCESSES = 16

#: Files that a process is asked for at a time.
_CHUNK = 100


@dataclass
class Headers:
    """Descriptions of files, by path.

    Attributes:
        rasters: Files that can be used.
        bad: What is wrong with the others.
        remarks: Warnings about files that can be used.
    """

    rasters: dict[str, Raster] = field(default_factory=dict)
    bad: dict[str, str] = field(default_factory=dict)
    remarks: dict[str, list[str]] = field(default_factory=dict)

    def update(self, other: 'Headers') -> None:
        """Take in the headers of other files.

        Args:
            other: Their headers.
        """
        self.rasters |= other.rasters
        self.bad |= other.bad
        self.remarks |= other.remarks

    def pack(self) -> dict[str, Any]:
        """Return what JSON can hold; values that many files share are in it once."""
        systems: dict[str, int] = {}
        kinds: dict[tuple[Any, ...], int] = {}
        rows = {}
        for path, raster in self.rasters.items():
            grid = raster.grid
            system = systems.setdefault(grid.crs, len(systems))
            kind = kinds.setdefault(_kind(raster), len(kinds))
            rows[path] = (system, kind, grid.width, grid.height, *grid.transform[:6])
        tables = {'systems': [*systems], 'kinds': [*kinds], 'rows': rows}
        return tables | {'bad': self.bad, 'remarks': self.remarks}

    @classmethod
    def unpack(cls, packed: dict[str, Any]) -> 'Headers':
        """Return headers as they were packed, with shared values as one object each.

        Args:
            packed: From :meth:`pack`.

        Returns:
            The headers.
        """
        systems = packed['systems']
        kinds = [
            [tuple(value) if isinstance(value, list) else value for value in kind]
            for kind in packed['kinds']
        ]
        rasters = {}
        for path, (system, kind, width, height, *sides) in packed['rows'].items():
            grid = Grid(systems[system], Affine(*sides), width, height)
            rasters[path] = Raster(path, grid, *kinds[kind])
        return cls(rasters, packed['bad'], packed['remarks'])


def _kind(raster: Raster) -> tuple[Any, ...]:
    """Return what most files of a sensor share, in the order of the attributes."""
    bands = raster.dtypes, raster.bands, raster.named, raster.indexes, raster.nodata
    return *bands, raster.declares_nodata, raster.alpha, raster.has_mask


def read_headers(
    files: Sequence[str], thorough: bool = False, file_crs: str | None = None
) -> Headers:
    """Describe files, in several processes where they are many.

    Args:
        files: Paths and URLs.
        thorough: Whether to read every block, which finds damage in the middle too.
        file_crs: The coordinate reference system of files that state none, WKT.

    Returns:
        Their headers, in the order of the files.
    """
    chunks = [files[i : i + _CHUNK] for i in range(0, len(files), _CHUNK)]
    count = min(_processes(len(files)), len(chunks))
    done = _ask(chunks, count, (thorough, file_crs)) if count > 1 else {}
    headers = Headers()
    for number, chunk in enumerate(chunks):
        # None where a process could not be started, or died of a file
        found = done.get(number)
        headers.update(found or _describe_all(chunk, thorough, file_crs))
    return headers


def _describe_all(
    files: Sequence[str], thorough: bool, file_crs: str | None
) -> Headers:
    """Describe files one after the other."""
    headers = Headers()
    crs = None if file_crs is None else CRS.from_wkt(file_crs)
    # Within an environment, those of each file are made much faster
    with rasterio.Env(**DESCRIBING):
        for path in files:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter('always')
                try:
                    headers.rasters[path] = describe_raster(path, thorough, crs)
                except UnreadableError as error:
                    headers.bad[path] = error.why
            if caught:
                headers.remarks[path] = [str(each.message) for each in caught]
    return headers


def _processes(files: int) -> int:
    """Say how many processes should describe files: as many as there are cores for this one."""
    # A loader's workers may start no processes, and are many already
    daemon = multiprocessing.current_process().daemon
    # In frozen programs, and in those that embed Python, it is the program
    program = os.path.basename(sys.executable or '').lower()
    python = program.startswith(('python', 'pypy')) and not hasattr(sys, 'frozen')
    if files < MANY or daemon or not python:
        return 1
    affinity = getattr(os, 'sched_getaffinity', None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return min(cores, MOST_PROCESSES)


def _ask(
    chunks: Sequence[Sequence[str]], count: int, how: tuple[bool, str | None]
) -> dict[int, Headers]:
    """Let processes describe chunks of files; those that none could describe are not in it."""
    todo: queue.SimpleQueue[int] = queue.SimpleQueue()
    for number in range(len(chunks)):
        todo.put(number)
    done: dict[int, Headers] = {}
    options = rasterio.env.getenv() if rasterio.env.hasenv() else {}
    # As here, whatever folders a script has added; -P, or the current one came first
    paths = os.pathsep.join(map(os.path.abspath, sys.path))
    command = (sys.executable, '-P', '-m', __name__)
    first = json.dumps([how, options], default=str) + '\n'
    # Where no process can be started or one breaks off, the caller does its part
    with suppress(OSError), ExitStack() as stack:
        children = [
            stack.enter_context(
                subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    env=os.environ | {'PYTHONPATH': paths},
                )
            )
            for _ in range(count)
        ]
        pool = stack.enter_context(ThreadPoolExecutor(count))
        try:
            list(
                pool.map(lambda each: _serve(each, first, chunks, todo, done), children)
            )
        finally:
            # After Ctrl-C too, when the threads wait for them
            for child in children:
                child.kill()
                with suppress(OSError):
                    # Once, as what could not be written to it raises
                    child.stdin and child.stdin.close()
    return done


def _serve(
    child: subprocess.Popen[bytes],
    first: str,
    chunks: Sequence[Sequence[str]],
    todo: 'queue.SimpleQueue[int]',
    done: dict[int, Headers],
) -> None:
    """Give a process one chunk after the other, until there are no more or it breaks off."""
    with suppress(queue.Empty, OSError, ValueError):
        # No argument, which everybody sees: GDAL's options may hold keys
        line = first
        while child.stdin and child.stdout:
            number = todo.get_nowait()
            line += f'{json.dumps(chunks[number])}\n'
            child.stdin.write(line.encode())
            child.stdin.flush()
            line = ''
            done[number] = Headers.unpack(json.loads(child.stdout.readline()))


def _answer() -> None:
    """Describe chunks of files, a line of JSON each, until there are no more."""
    # The process that asks ends this one
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # What is imported stays: the collector need not look at it each time
    gc.freeze()
    how, options = json.loads(sys.stdin.readline())
    with rasterio.Env(**options):
        for line in sys.stdin:
            headers = _describe_all(json.loads(line), *how)
            print(json.dumps(headers.pack()), flush=True)


if __name__ == '__main__':
    _answer()
