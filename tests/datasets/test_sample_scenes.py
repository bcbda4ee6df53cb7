# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Sample scenes are downloaded where they are missing or broken, and only there."""

import hashlib
import re
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from cmid_geo import SceneDataModule, downloads
from cmid_geo.datasets import SampleScenes

pytestmark = pytest.mark.allow_hosts(['127.0.0.1'])

FILES = {
    'naip/m_20100629.tif': b'second',
    'naip/m_20090818.tif': b'first' * 1000,
    'landsat/1985.tif': b'third',
}


class Handler(SimpleHTTPRequestHandler):
    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path.removeprefix('/'))
        super().do_GET()

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Serves the files; what was asked for."""
    for name, content in FILES.items():
        path = tmp_path / 'served' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    handler = type('Listening', (Handler,), {'asked': []})
    server = ThreadingHTTPServer(
        ('127.0.0.1', 0), partial(handler, directory=str(tmp_path / 'served'))
    )
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    hashes = {name: hashlib.sha256(each).hexdigest() for name, each in FILES.items()}
    monkeypatch.setattr(SampleScenes, 'hashes', hashes)
    monkeypatch.setattr(SampleScenes, 'url', f'http://127.0.0.1:{server.server_port}/')
    monkeypatch.setattr(downloads.time, 'sleep', lambda seconds: None)
    yield handler.asked
    server.shutdown()
    server.server_close()


def contents(scenes: SampleScenes) -> list[bytes]:
    return [Path(path).read_bytes() for path in (*scenes.naip, *scenes.landsat)]


def test_downloads_once_in_the_order_of_dates(asked: list[str], tmp_path: Path) -> None:
    scenes = SampleScenes(tmp_path / 'new', progress=False)
    assert scenes.naip == [
        str(tmp_path / 'new/naip' / name)
        for name in ('m_20090818.tif', 'm_20100629.tif')
    ]
    assert scenes.landsat == [str(tmp_path / 'new/landsat/1985.tif')]
    assert contents(scenes) == [b'first' * 1000, b'second', b'third']
    assert sorted(asked) == sorted(FILES) and len(scenes) == 3
    SampleScenes(tmp_path / 'new')
    SampleScenes(tmp_path / 'new', download=False)
    assert len(asked) == 3, 'the second time they are there'
    left = {path.suffix for path in (tmp_path / 'new').rglob('*.*')}
    assert left <= {'.tif', '.lock'}


@pytest.mark.parametrize('content', [b'first' * 10, b'other' * 1000, b''])
def test_a_broken_file_comes_again(
    content: bytes, asked: list[str], tmp_path: Path
) -> None:
    root = tmp_path / 'new'
    SampleScenes(root, progress=False)
    asked.clear()
    (root / 'naip/m_20090818.tif').write_bytes(content)
    scenes = SampleScenes(root, progress=False)
    assert contents(scenes)[0] == b'first' * 1000
    assert asked == ['naip/m_20090818.tif']


def test_another_file_on_the_server_is_not_kept(
    asked: list[str], tmp_path: Path
) -> None:
    (tmp_path / 'served/landsat/1985.tif').write_bytes(b'another')
    with pytest.raises(ValueError, match='another file now.*place the one meant as'):
        SampleScenes(tmp_path / 'new', progress=False)
    assert not (tmp_path / 'new/landsat/1985.tif').exists()


def test_without_a_network_the_error_names_file_and_place(
    asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SampleScenes, 'url', 'http://127.0.0.1:1/')
    place = re.escape(str(tmp_path / 'new/naip/m_20100629.tif'))
    with pytest.raises(
        ConnectionError, match=f'127.0.0.1:1/naip/m_2.*place it as {place}'
    ):
        SampleScenes(tmp_path / 'new', progress=False)
    with pytest.raises(FileNotFoundError, match='lacks 3 of 3.*give download=True'):
        SampleScenes(tmp_path / 'new', download=False)


def test_a_root_that_is_a_file_is_refused(asked: list[str], tmp_path: Path) -> None:
    (tmp_path / 'file').write_text('')
    with pytest.raises(OSError, match='cannot be written.*give another root='):
        SampleScenes(tmp_path / 'file', progress=False)


@pytest.mark.disable_socket
def test_the_real_files_are_known_and_make_chips(real_data: Path) -> None:
    scenes = SampleScenes(real_data / 'scenes', download=False)
    assert (len(scenes.naip), len(scenes.landsat)) == (10, 8)
    for paths in (scenes.naip, scenes.landsat):
        datamodule = SceneDataModule(
            paths, patch_size=64, length=8, batch_size=4, seed=0
        )
        datamodule.setup('fit')
        assert next(iter(datamodule.train_dataloader()))['image'].shape == (
            4,
            4,
            64,
            64,
        )
