# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Scenes that are read by URL, from a server on this machine."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import rasterio
from rasterfiles import noise, write
from torch import nn

from cmid_geo.predict import predict_scene

pytestmark = pytest.mark.allow_hosts(['127.0.0.1'])


class Server(ThreadingHTTPServer):
    """Serves the files of a folder, whole or in parts."""

    def __init__(self, folder: Path) -> None:
        super().__init__(('127.0.0.1', 0), Handler)
        self.folder = folder
        #: What was asked for, and how many bytes were sent.
        self.asked: list[tuple[str, int]] = []
        self.url = f'http://127.0.0.1:{self.server_port}'


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = 'HTTP/1.1'

    def do_GET(self) -> None:
        path = self.server.folder / self.path.strip('/')
        content = path.read_bytes() if path.is_file() else b''
        first, last = 0, len(content) - 1
        self.send_response(
            404 if not content else 206 if 'Range' in self.headers else 200
        )
        if content and 'Range' in self.headers:
            begin, end = self.headers['Range'].removeprefix('bytes=').split('-')
            first, last = int(begin), min(int(end or last), last)
            self.send_header('Content-Range', f'bytes {first}-{last}/{len(content)}')
        self.send_header('Accept-Ranges', 'bytes')
        self.send_header('Content-Length', str(last + 1 - first))
        self.end_headers()
        sent = content[first : last + 1] if self.command == 'GET' else b''
        self.server.asked.append((self.path, len(sent)))
        self.wfile.write(sent)

    do_HEAD = do_GET

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv('NO_PROXY', '127.0.0.1')
    server = Server(tmp_path / 'served')
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize('prefix', ['', '/vsicurl/'])
def test_read_in_parts_and_without_looking_around(
    tmp_path: Path, server: Server, prefix: str
) -> None:
    data = noise(1, 600, 700)
    name = f'scene{len(prefix)}.tif'
    path = write(tmp_path / 'served' / name, data)
    (tmp_path / 'served' / f'{name}.msk').write_bytes(b'no one may ask for this')
    out = predict_scene(
        nn.Identity(), f'{prefix}{server.url}/{name}', tmp_path / 'map.tif',
        size=128, dtype='uint8',
    )  # fmt: skip
    with rasterio.open(out) as file, rasterio.open(path) as scene:
        assert (file.read() == data).all() and file.transform == scene.transform
    assert {asked for asked, _ in server.asked} == {f'/{name}'}
    # Parts, put together where they lie side by side: less requests than the 110 blocks
    assert 1 < len(server.asked) < 100
    assert max(sent for _, sent in server.asked) < path.stat().st_size


def test_no_such_scene(tmp_path: Path, server: Server) -> None:
    with pytest.raises(ValueError, match='cannot be read .*404'):
        predict_scene(nn.Identity(), f'{server.url}/none.tif', tmp_path / 'map.tif')
