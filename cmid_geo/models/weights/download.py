# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""The cache of downloaded checkpoints."""

import contextlib
import hashlib
import logging
import os
import re
import time
import urllib.request
import warnings
from collections.abc import Callable, Generator
from http.client import HTTPException
from pathlib import Path
from ssl import SSLError
from typing import Any
from urllib.error import HTTPError, URLError

import torch
from filelock import FileLock
from tqdm.auto import tqdm

from ...atomic_files import write_atomically
from .checkpoint import MAGIC

#: Times that a download is tried, each going on where the last one broke off.
ATTEMPTS = 3
#: Seconds without a byte after which a connection counts as broken.
TIMEOUT = 60.0

#: Environment variable that holds one or more hashes: files of other content are refused.
PINNED = 'CMID_GEO_SHA256'

logger = logging.getLogger(__name__)


class Broken(OSError):
    """A transfer ended before the file did."""


#: What trying again may help against; a full disk is not among them.
NETWORK = (URLError, HTTPException, Broken, ConnectionError, TimeoutError, SSLError)


def fetch(
    url: str,
    name: str,
    sha256: str | None = None,
    progress: bool = True,
    check: Callable[[Path], object] | None = None,
) -> Path:
    """Find a checkpoint in the cache, or download it once.

    The cache is torch's own, ``$TORCH_HOME/hub/checkpoints``. The content's hash is known, or one
    of those in ``$CMID_GEO_SHA256``, or else recorded beside the file when it first comes, as
    ``NAME.sha256``, and checked each time. A download that is killed leaves a ``NAME.part``, from which the next one goes on
    if the server can; the name itself appears only when all has come. Processes that start
    together download once.

    Args:
        url: Where to download from.
        name: Name of the file in the cache.
        sha256: Hash of the content in hexadecimal digits, where known.
        progress: Whether to show a progress bar.
        check: Called with a file whose hash is neither known nor recorded yet: raises ValueError
            if it is not what it should be, and then nothing is recorded.

    Returns:
        Path of the file.

    Raises:
        ConnectionError: If the download fails: names the file to place by hand, and where.
        OSError: If the cache cannot be written.
        ValueError: If the content is no checkpoint, or not what it was known to be.

    Warns:
        UserWarning: If the content is trusted without being known, with its hash.
    """
    path = Path(torch.hub.get_dir()) / 'checkpoints' / name
    with _only_one(path):
        if path.exists():
            _check_hash(path, path, sha256, check)
            return path
        part = _download(url, path, progress)
        try:
            _refuse_other(part, url)
            _check_hash(part, path, sha256, check)
        except ValueError:
            part.unlink()
            raise
        os.replace(part, path)
        path.with_name(f'{name}.etag').unlink(missing_ok=True)
    return path


@contextlib.contextmanager
def _only_one(path: Path) -> Generator[None]:
    """Let one process at a time fill the cache; from one that is read-only all may read."""
    lock = FileLock(path.with_name(f'{path.name}.lock'))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        if not path.exists():
            raise OSError(
                f'the cache {path.parent} cannot be written ({error.strerror}): set TORCH_HOME to a '
                f'folder that can, or place {path.name} there'
            ) from error
    try:
        yield
    finally:
        lock.release()


def _download(url: str, path: Path, progress: bool) -> Path:
    """Download beside the path, going on where an earlier attempt broke off."""
    part = path.with_name(f'{path.name}.part')
    logger.info('downloading %s to %s', url, path)
    attempt = 0
    while True:
        attempt += 1
        try:
            _transfer(url, part, path.with_name(f'{path.name}.etag'), progress)
            return part
        except NETWORK as error:
            refused = isinstance(error, HTTPError) and error.code < 500
            if refused or attempt == ATTEMPTS:
                reason = getattr(error, 'reason', None) or error
                raise ConnectionError(
                    f'{url} could not be downloaded ({reason}): try again, or download it on a '
                    f'machine that can and place it as {path}'
                ) from error
            time.sleep(0.1 * 4**attempt)


def _transfer(url: str, part: Path, etag: Path, progress: bool) -> None:
    """Bring what is missing of a file."""
    headers = {'User-Agent': 'cmid_geo'}
    begun = part.stat().st_size if part.exists() and etag.exists() else 0
    if begun:
        # Only the rest of the very same file; of another the server sends all
        headers |= {'Range': f'bytes={begun}-', 'If-Range': etag.read_text()}
    try:
        request = urllib.request.Request(url, headers=headers)
        answer = urllib.request.urlopen(request, timeout=TIMEOUT)
    except HTTPError as error:
        if error.code != 416:
            raise
        part.unlink()
        raise Broken('the server has nothing after what came before') from error
    with answer:
        rest = answer.headers.get('Content-Range', '')
        resumed = answer.status == 206 and rest.startswith(f'bytes {begun}-')
        if not resumed:
            # In this order: killed in between, no part may stand beside another's tag
            etag.unlink(missing_ok=True)
            part.unlink(missing_ok=True)
            if answer.status == 206:
                raise Broken(f'the server sent {rest!r} instead of the rest')
            begun = 0
            _remember(etag, answer)
        length = answer.headers.get('Content-Length')
        total = begun + int(length) if length else None
        with (
            open(part, 'ab') as file,
            tqdm(total=total, initial=begun, unit='B', unit_scale=True, disable=not progress) as bar,
        ):  # fmt: skip
            while block := answer.read(1 << 20):
                file.write(block)
                bar.update(len(block))
    if total is not None and part.stat().st_size != total:
        raise Broken(f'{part.stat().st_size} of {total} bytes came')


def _remember(etag: Path, answer: Any) -> None:
    """Note what to know the same file by; without that a rest cannot be asked for."""
    tag = answer.headers.get('ETag') or answer.headers.get('Last-Modified')
    if tag and not tag.startswith('W/'):
        etag.write_text(tag)


def _refuse_other(part: Path, url: str) -> None:
    """Refuse what is no checkpoint: shared links like to answer with a page."""
    with open(part, 'rb') as file:
        start = file.read(64)
    if not start.startswith(MAGIC):
        raise ValueError(
            f'{url} answered with something that is no checkpoint (it begins with {start[:32]!r}): '
            'open the address in a browser to see what it says'
        )


def _check_hash(
    file: Path, path: Path, known: str | None, check: Callable[[Path], object] | None
) -> None:
    """Compare a file with what is known of it; where nothing is, check, say and remember it."""
    record = path.with_name(f'{path.name}.sha256')
    pinned = [known] if known else re.findall(r'\w+', os.environ.get(PINNED, ''))
    recorded = record.read_text().split() if record.exists() else []
    with open(file, 'rb') as opened:
        found = hashlib.file_digest(opened, 'sha256').hexdigest()
    if not (expected := [digest.lower() for digest in pinned or recorded]):
        if check is not None:
            check(file)
        warnings.warn(
            f'{path.name} is taken as it is: nobody told its hash, so only its tensors were looked at. '
            f'From now on another content than this is refused; {PINNED}={found} does so elsewhere',
            stacklevel=2,
        )
        # A read-only cache is somebody else's to vouch for
        with contextlib.suppress(PermissionError):
            write_atomically(record, lambda beside: beside.write_text(found))
            logger.info('recorded the hash of %s: %s', path.name, found)
    elif found not in expected:
        which = 'the one known' if known else f'of {PINNED}'
        meant = ''
        if not pinned:
            which = f'the one recorded in {record}'
            meant = f'; delete {record} if the new file is the one you mean'
        raise ValueError(
            f'{path.name} has the SHA-256 {found}, not {" or ".join(expected)}, {which}: '
            + (
                f'the file was changed or damaged, delete {path} to download it again{meant}'
                if file == path
                else f'the server now has another file, which was not kept{meant}'
            )
        )
