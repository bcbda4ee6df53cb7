# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Downloads of files: one process at a time, taken up where they broke off."""

import contextlib
import logging
import time
import urllib.request
from collections.abc import Generator
from http.client import HTTPException
from pathlib import Path
from ssl import SSLError
from typing import Any
from urllib.error import HTTPError, URLError

from filelock import FileLock
from tqdm.auto import tqdm

#: Times that a download is tried, each going on where the last one broke off.
ATTEMPTS = 3
#: Seconds without a byte after which a connection counts as broken.
TIMEOUT = 60.0

logger = logging.getLogger(__name__)


class Broken(OSError):
    """A transfer ended before the file did."""


#: What trying again may help against; a full disk is not among them.
NETWORK = (URLError, HTTPException, Broken, ConnectionError, TimeoutError, SSLError)


@contextlib.contextmanager
def one_at_a_time(path: Path, elsewhere: str) -> Generator[None]:
    """Let one process at a time make a file; where it is in a folder that is read-only, all may read it.

    Args:
        path: The file; its folder is made.
        elsewhere: How to choose another folder, for the message of an error.

    Raises:
        OSError: If the folder cannot be written, and the file is not there.
    """
    lock = FileLock(path.with_name(f'{path.name}.lock'))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        if not path.exists():
            raise OSError(
                f'the folder {path.parent} cannot be written ({error.strerror}): {elsewhere}, or '
                f'place {path.name} there'
            ) from error
    try:
        yield
    finally:
        lock.release()


def download(url: str, path: Path, progress: bool = True) -> Path:
    """Download beside a path, going on where an earlier attempt broke off.

    A download that is killed leaves a ``NAME.part``, and in ``NAME.etag`` what the server knows the
    file by: the next one asks for the rest of that very file.

    Args:
        url: Where to download from.
        path: The file's own place, at which nothing is written.
        progress: Whether to show a progress bar.

    Returns:
        Path of the whole ``NAME.part``, to be looked at and renamed.

    Raises:
        ConnectionError: If the download fails: names the file to place by hand, and where.
    """
    part = path.with_name(f'{path.name}.part')
    logger.info('downloading %s to %s', url, path)
    attempt = 0
    while True:
        attempt += 1
        try:
            _transfer(url, part, _tag_of(path), progress)
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


def forget_tag(path: Path) -> None:
    """Remove what a download needed to go on, once the file has its name.

    Args:
        path: The file's own place.
    """
    _tag_of(path).unlink(missing_ok=True)


def _tag_of(path: Path) -> Path:
    """File of what the server knows the same file by."""
    return path.with_name(f'{path.name}.etag')


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
