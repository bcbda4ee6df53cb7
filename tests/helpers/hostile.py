# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Checkpoints that would run a program, and a server that offers them."""

import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class Evil:
    """Writes a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def write_module(folder: Path, name: str) -> Path:
    """Write a module that writes a file when it is imported; the file."""
    marker = folder / f'{name}.imported'
    (folder / f'{name}.py').write_text(
        'import pathlib, torch\n'
        f'pathlib.Path({str(marker)!r}).touch()\n'
        'class Thing(torch.nn.Module):\n    pass\n'
    )
    return marker


class Handler(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def serve(folder: Path) -> Iterator[str]:
    """Serve a folder's files on this machine; the URL."""
    handler = functools.partial(Handler, directory=str(folder))
    server = ThreadingHTTPServer(('127.0.0.1', 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield f'http://127.0.0.1:{server.server_port}'
    server.shutdown()
    server.server_close()
    thread.join()
