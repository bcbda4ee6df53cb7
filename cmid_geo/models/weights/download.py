# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""The cache of downloaded checkpoints."""

import contextlib
import hashlib
import logging
import os
import re
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

from ...atomic_files import write_atomically
from ...downloads import download, forget_tag, one_at_a_time
from .checkpoint import MAGIC

#: How to choose another folder for the cache.
ELSEWHERE = 'set TORCH_HOME to a folder that can'

#: Environment variable that holds one or more hashes: files of other content are refused.
PINNED = 'CMID_GEO_SHA256'

logger = logging.getLogger(__name__)


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
    with one_at_a_time(path, ELSEWHERE):
        if path.exists():
            _check_hash(path, path, sha256, check)
            return path
        part = download(url, path, progress)
        try:
            _refuse_other(part, url)
            _check_hash(part, path, sha256, check)
        except ValueError:
            part.unlink()
            raise
        os.replace(part, path)
        forget_tag(path)
    return path


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
