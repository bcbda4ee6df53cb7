# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""A served file goes through download, cache, interruption, change and the lack of a network."""

import hashlib
import io
import multiprocessing
import os
import re
import threading
import warnings
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from cmid_geo import downloads
from cmid_geo.models import CMIDResNet50_Weights, load_backbone
from cmid_geo.models.weights import download
from cmid_geo.models.weights.download import fetch

pytestmark = pytest.mark.allow_hosts(['127.0.0.1'])


class Server(ThreadingHTTPServer):
    """Serves one file, like the authors' server under an address without a file name."""

    def __init__(self) -> None:
        super().__init__(('127.0.0.1', 0), Handler)
        #: What is served, and how.
        self.content, self.etag, self.status, self.cut = b'', '"one"', 200, [0]
        self.ranges = True
        #: What was asked for: where each request began.
        self.asked: list[int] = []
        self.url = f'http://127.0.0.1:{self.server_port}/f/b2e7/?dl=1'


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server = self.server
        begin = 0
        if 'Range' in self.headers and self.headers['If-Range'] == server.etag:
            begin = int(self.headers['Range'].removeprefix('bytes=').removesuffix('-'))
        server.asked.append(begin)
        body = server.content[begin:]
        self.send_response(
            server.status if server.status != 200 else 206 if begin else 200
        )
        if begin:
            at = begin if server.ranges else 0
            self.send_header('Content-Range', f'bytes {at}-{len(server.content) - 1}/*')
            body = server.content[at:]
        if server.etag:
            self.send_header('ETag', server.etag)
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        # A length of 0 is a whole answer, another the place where the line breaks
        cut = server.cut.pop(0) if server.cut else 0
        self.wfile.write(body[:cut] if cut else body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    monkeypatch.setattr(downloads.time, 'sleep', lambda seconds: None)
    server = Server()
    torch.save({'conv1.weight': torch.arange(3000.0)}, tmp_path / 'made.pth')
    server.content = (tmp_path / 'made.pth').read_bytes()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / 'hub' / 'checkpoints'


def names(cache: Path) -> set[str]:
    return {path.name for path in cache.iterdir() if path.suffix != '.lock'}


def test_downloads_once_and_records_the_hash(server: Server, cache: Path) -> None:
    path = fetch(server.url, 'a.pth')
    assert path == cache / 'a.pth' and path.read_bytes() == server.content
    record = hashlib.sha256(server.content).hexdigest()
    assert (cache / 'a.pth.sha256').read_text() == record
    assert fetch(server.url, 'a.pth') == path
    assert server.asked == [0], 'the second time it came from the cache'
    assert names(cache) == {'a.pth', 'a.pth.sha256'}


@pytest.mark.parametrize('etag', ['"one"', 'W/"weak"', ''])
def test_goes_on_where_the_line_broke_if_it_is_the_same_file(
    etag: str, server: Server, cache: Path
) -> None:
    server.etag, server.cut = etag, [5000, 3000]
    assert fetch(server.url, 'a.pth').read_bytes() == server.content
    assert server.asked == ([0, 5000, 8000] if etag == '"one"' else [0, 0, 0])
    assert names(cache) == {'a.pth', 'a.pth.sha256'}


def test_a_file_that_changed_meanwhile_comes_from_its_start(
    server: Server, cache: Path
) -> None:
    server.cut = [1000] * 3
    with pytest.raises(ConnectionError, match='bytes came'):
        fetch(server.url, 'a.pth')
    assert names(cache) == {'a.pth.part', 'a.pth.etag'}, 'nothing under the final name'
    server.content, server.etag, server.cut = server.content[::-1], '"two"', []
    server.content = b'PK' + server.content
    assert fetch(server.url, 'a.pth').read_bytes() == server.content
    assert server.asked[-1] == 0


def test_a_line_that_keeps_breaking_names_the_file_to_place(
    server: Server, cache: Path
) -> None:
    server.cut = [1000] * 3
    with pytest.raises(
        ConnectionError,
        match=f'could not be downloaded .*place it as {cache / "a.pth"}',
    ):
        fetch(server.url, 'a.pth')
    assert not (cache / 'a.pth').exists() and not (cache / 'a.pth.sha256').exists()


def test_what_is_refused_is_not_asked_again(server: Server, cache: Path) -> None:
    server.status = 404
    with pytest.raises(ConnectionError, match='Not Found'):
        fetch(server.url, 'a.pth')
    assert len(server.asked) == 1
    assert not (cache / 'a.pth').exists()


def test_a_page_is_no_checkpoint(server: Server, cache: Path) -> None:
    server.content = b'<!DOCTYPE html><title>Please log in</title>'
    with pytest.raises(ValueError, match='no checkpoint .*DOCTYPE.*browser'):
        fetch(server.url, 'a.pth')
    assert not (cache / 'a.pth').exists() and not (cache / 'a.pth.sha256').exists()
    assert not (cache / 'a.pth.part').exists()


def test_another_content_than_the_known_or_recorded_one_is_refused(
    server: Server, cache: Path
) -> None:
    with pytest.raises(ValueError, match='not 00ff, the one known'):
        fetch(server.url, 'a.pth', sha256='00ff')
    assert names(cache) <= {'a.pth.etag'}
    path = fetch(server.url, 'a.pth', sha256=hashlib.sha256(server.content).hexdigest())
    # Damaged in the cache
    path = fetch(server.url, 'b.pth')
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(
        ValueError,
        match=f'recorded in .*changed or damaged, delete {path} .*; delete .*b.pth.sha256 if',
    ):
        fetch(server.url, 'b.pth')
    # Deleted, and other at the server now
    path.unlink()
    server.content = b'PK' + server.content
    with pytest.raises(
        ValueError, match='server now has another file.*delete .*b.pth.sha256'
    ):
        fetch(server.url, 'b.pth')
    assert not path.exists()
    (cache / 'b.pth.sha256').unlink()
    assert fetch(server.url, 'b.pth').read_bytes() == server.content


def test_a_server_that_sends_another_rest_is_not_spliced(
    server: Server, cache: Path
) -> None:
    server.ranges, server.cut = False, [1000]
    assert fetch(server.url, 'a.pth').read_bytes() == server.content
    assert server.asked == [0, 1000, 0]


def test_a_full_disk_is_not_the_networks_fault(
    server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(downloads.tqdm, 'update', full)
    with pytest.raises(OSError, match='No space left') as error:
        fetch(server.url, 'a.pth')
    assert not isinstance(error.value, ConnectionError) and server.asked == [0]


def test_a_read_only_cache_is_read(
    server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = fetch(server.url, 'a.pth')
    (cache / 'a.pth.sha256').unlink()

    def refuse(*_: object) -> None:
        raise PermissionError(13, 'Permission denied')

    monkeypatch.setattr(downloads.FileLock, 'acquire', refuse)
    monkeypatch.setattr(download, 'write_atomically', refuse)
    assert fetch(server.url, 'a.pth') == path
    with pytest.raises(
        OSError, match=r'cannot be written \(Permission denied\): set TORCH_HOME.*b.pth'
    ):
        fetch(server.url, 'b.pth')


def test_a_bad_file_placed_by_hand_is_not_remembered(
    served: Server, cache: Path
) -> None:
    place = cache / CMIDResNet50_Weights.MILLIONAID_RGB.file_name()
    cache.mkdir(parents=True)
    place.write_bytes(served.content[:500])
    with pytest.raises(ValueError, match='truncated, damaged or no checkpoint'):
        CMIDResNet50_Weights.MILLIONAID_RGB.get_state_dict()
    place.write_bytes(served.content)
    assert len(CMIDResNet50_Weights.MILLIONAID_RGB.get_state_dict()) == 120


def test_a_bad_file_served_is_not_kept(served: Server, cache: Path) -> None:
    whole, served.content = served.content, served.content[:500]
    with pytest.raises(ValueError, match='truncated, damaged or no checkpoint'):
        CMIDResNet50_Weights.MILLIONAID_RGB.get_state_dict()
    served.content = whole
    assert len(CMIDResNet50_Weights.MILLIONAID_RGB.get_state_dict()) == 120


@pytest.mark.parametrize('wrong', ['network', 'shape', 'kind'])
@pytest.mark.parametrize('placed', [True, False])
def test_a_wrong_first_file_does_not_stand_in_the_way_of_the_right_one(
    wrong: str, placed: bool, served: Server, cache: Path
) -> None:
    member, right = CMIDResNet50_Weights.MILLIONAID_RGB, served.content
    state = shapes_of('resnet34' if wrong == 'network' else 'resnet18')
    if wrong == 'network':
        del state['layer1.0.conv1.weight']
    elif wrong == 'shape':
        state['conv1.weight'] = state['conv1.weight'][:, :1]
    else:
        state = {f'online_encoder.model.{name}': t for name, t in state.items()}
    served.content = as_file(state)
    if placed:
        cache.mkdir(parents=True)
        (cache / member.file_name()).write_bytes(served.content)
    cure = rf'not the backbone file of {member}: delete it, and place what {re.escape(served.url)}'
    with pytest.raises(ValueError, match=cure):
        member.get_state_dict()
    assert not list(cache.glob('*.sha256'))
    (cache / member.file_name()).unlink(missing_ok=True)
    served.content, served.etag = right, '"right"'
    assert len(member.get_state_dict()) == 120


def test_a_first_file_that_nobody_knows_is_told_of(served: Server, cache: Path) -> None:
    found = hashlib.sha256(served.content).hexdigest()
    match = f'millionaid_rgb_backbone.pth is taken as it is.*CMID_GEO_SHA256={found}'
    with pytest.warns(UserWarning, match=match):
        CMIDResNet50_Weights.MILLIONAID_RGB.get_state_dict()
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        CMIDResNet50_Weights.MILLIONAID_RGB.get_state_dict()


def test_hashes_are_pinned(
    served: Server, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    member = CMIDResNet50_Weights.MILLIONAID_RGB
    found = hashlib.sha256(served.content).hexdigest()
    with pytest.raises(ValueError, match='not 00ff, the one known'):
        member.get_state_dict(sha256='00ff')
    monkeypatch.setenv('CMID_GEO_SHA256', '00ff,11ee')
    with pytest.raises(ValueError, match='not 00ff or 11ee, of CMID_GEO_SHA256'):
        member.get_state_dict()
    assert not (cache / member.file_name()).exists()
    monkeypatch.setenv('CMID_GEO_SHA256', f'00ff {found.upper()}')
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert len(member.get_state_dict()) == 120


def killed(url: str, folder: str) -> None:
    """Downloads until the process dies in the midst of it."""
    os.environ['TORCH_HOME'] = folder
    write = downloads.tqdm.update
    downloads.tqdm.update = lambda bar, n: (write(bar, n), os._exit(9))
    fetch(url, 'a.pth', progress=False)


@pytest.mark.filterwarnings('ignore:.*fork.*:DeprecationWarning')
def test_a_killed_download_does_not_poison_the_cache(
    server: Server, cache: Path, tmp_path: Path
) -> None:
    server.content = b'PK' + os.urandom(3 << 20)
    process = multiprocessing.get_context('fork').Process(
        target=killed, args=(server.url, str(tmp_path))
    )
    process.start()
    process.join(60)
    assert process.exitcode == 9
    assert not (cache / 'a.pth').exists() and (cache / 'a.pth.part').exists()
    # The lock went with the process; what had been written is not asked for again
    assert fetch(server.url, 'a.pth').read_bytes() == server.content
    assert len(server.asked) == 2


def test_processes_that_start_together_download_once(
    server: Server, cache: Path
) -> None:
    found: list[Path] = []
    threads = [
        threading.Thread(
            target=lambda: found.append(fetch(server.url, 'a.pth', progress=False))
        )
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [cache / 'a.pth'] * 4 and server.asked == [0]


@pytest.fixture
def served(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """The authors' server, as far as the enums know; of a smaller network."""
    member = CMIDResNet50_Weights.MILLIONAID_RGB
    monkeypatch.setattr(member.value, 'url', server.url)
    monkeypatch.setitem(member.meta, 'model', 'resnet18')
    server.content = as_file(shapes_of('resnet18'))
    return server


def as_file(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def shapes_of(model: str, fill: float = 0.0) -> dict[str, torch.Tensor]:
    """A network's tensors, each of one number: files of a few kilobytes."""
    with torch.device('meta'):
        state = timm.create_model(model, num_classes=0).state_dict()
    one = torch.tensor(fill)
    return {name: one.to(t.dtype).expand(t.shape) for name, t in state.items()}


def test_the_enum_downloads_converts_and_loads(
    served: Server, cache: Path, tmp_path: Path
) -> None:
    old = timm.create_model('resnet18', num_classes=0)
    torch.save(old.state_dict(), tmp_path / 'made.pth')
    served.content = (tmp_path / 'made.pth').read_bytes()
    new = timm.create_model('resnet18')
    for _ in range(2):
        report = load_backbone(new, 'CMIDResNet50_Weights.MILLIONAID_RGB')
        assert len(report.loaded) == 120
    assert torch.equal(new.conv1.weight, old.conv1.weight)
    assert served.asked == [0]
    assert (cache / 'cmidresnet50_millionaid_rgb_backbone.pth').exists()


def test_without_a_network_the_file_to_place_is_named(
    served: Server, cache: Path
) -> None:
    served.shutdown()
    served.server_close()
    place = cache / 'cmidresnet50_millionaid_rgb_backbone.pth'
    with pytest.raises(ConnectionError, match=f'refused.*place it as {place}'):
        CMIDResNet50_Weights.MILLIONAID_RGB.get_state_dict()
    # Placed by hand it is used, and remembered from then on
    torch.save(shapes_of('resnet18'), place)
    assert len(CMIDResNet50_Weights.MILLIONAID_RGB.get_state_dict()) == 120
    torch.save(shapes_of('resnet18', 1.0), place)
    with pytest.raises(ValueError, match='changed or damaged'):
        CMIDResNet50_Weights.MILLIONAID_RGB.get_state_dict()
