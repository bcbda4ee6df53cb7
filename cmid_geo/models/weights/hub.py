# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Weights on the Hugging Face hub."""

import hashlib
import re
import warnings
from pathlib import Path
from typing import Any

from .checkpoint import hash_tensors, open_checkpoint, tensors_in

#: Ends the name of the STAC item beside a file.
ITEM = '.stac.json'

#: Where a card tells the hash of the tensors that it is of.
TENSORS = 'cmid_geo_tensors'

#: Where a card on the hub tells the hash of its text as it was pushed.
PUSHED = 'cmid_geo_pushed'

#: Begins the address of a file on the hub.
PREFIX = 'hf://'

#: Files that are looked for where an address names none, the first that is there.
USUAL = ('backbone.safetensors', 'backbone.ckpt')


def is_on_hub(weights: Any) -> bool:
    """Tell whether weights are named by an address of the hub.

    Args:
        weights: What names weights.

    Returns:
        Whether so.
    """
    return isinstance(weights, str) and weights.startswith(PREFIX)


def fetch_from_hub(address: str) -> Path:
    """Download a file from the hub, or find it in the hub's cache.

    What was downloaded once is used without a network.

    Args:
        address: ``hf://USER/REPO``, which means its ``backbone.safetensors`` or ``backbone.ckpt``, or
            ``hf://USER/REPO/FILE``.

    Returns:
        The file in the cache.

    Raises:
        FileNotFoundError: If there is no such repository or file, or it cannot be reached and is not in
            the cache.
        ValueError: If the address is not one.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HfHubHTTPError,
        HFValidationError,
    )

    user, _, rest = address.removeprefix(PREFIX).partition('/')
    repo, _, file = rest.partition('/')
    if not (user and repo):
        raise ValueError(f'{address}: give hf://USER/REPO, or hf://USER/REPO/FILE')
    why: Exception | None = None
    for name in (file,) if file else USUAL:
        try:
            return Path(hf_hub_download(f'{user}/{repo}', name))
        except HFValidationError as error:
            raise ValueError(
                f'{address}: {error}. Give hf://USER/REPO, or hf://USER/REPO/FILE'
            ) from error
        except EntryNotFoundError as error:
            why = why or error
        except HfHubHTTPError as error:
            why = error
            break
    words = str(why).strip().splitlines()[0]
    raise FileNotFoundError(
        f'{address} was not found on the hub nor in its cache ({words}): check the name and the network, log in by '
        f'"hf auth login" where it is private, or name the file in it: hf://{user}/{repo}/FILE'
    ) from why


def push_to_hub(path: Path, repo: str, private: bool = False) -> str:
    """Upload a file to the hub, with the STAC item and the model card that lie beside it.

    A ``MODEL_CARD.md`` in the file's folder becomes the repository's page if it is the card that this
    package wrote of that file: it names it, and holds the hash of its tensors. What else it says may have
    been changed. A page that the repository has stays, unless it is one that was pushed from here and has
    not been changed since.

    Args:
        path: File to upload.
        repo: ``USER/REPO``; it is made if it is not there.
        private: Whether a new repository is private.

    Returns:
        The address by which :func:`~cmid_geo.models.load_backbone` takes it.

    Raises:
        ConnectionError: If the hub cannot be reached.
        ValueError: If *repo* is not a name, or the hub refuses.

    Warns:
        UserWarning: If a card is not pushed.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    api, item = HfApi(), path.with_name(f'{path.name}{ITEM}')
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        for file in (path, item):
            if file.is_file():
                api.upload_file(path_or_fileobj=file, path_in_repo=file.name, repo_id=repo)  # fmt: skip
        _push_card(api, path, repo)
    except (HFValidationError, HfHubHTTPError) as error:
        words = str(error).strip().splitlines()[0]
        raise ValueError(
            f'{path} was not pushed to {repo} ({words}): give --push USER/REPO of yours, after "hf auth login"'
        ) from error
    except Exception as error:
        # The client passes on errors of the library that it speaks HTTP by, which its versions choose
        foreign = type(error).__module__.startswith(('httpx', 'httpcore', 'requests'))
        if not foreign and not isinstance(error, OSError):
            raise
        raise ConnectionError(
            f'{path} was not pushed to {repo}, as the hub was not reached ({type(error).__name__}: {error}): the file '
            f'is written; with a network, and HF_HUB_OFFLINE unset, run "hf upload {repo} {path}" or the same '
            'command again'
        ) from error
    return f'{PREFIX}{repo}/{path.name}'


def _push_card(api: Any, path: Path, repo: str) -> None:
    """Make the card beside a file the page of a repository, if both are ours."""
    card = path.with_name('MODEL_CARD.md')
    if not card.is_file():
        return
    text = card.read_text(encoding='utf-8')
    if not _is_card_of(text, path):
        warnings.warn(
            f'{card} is not the card of {path.name}, and was not pushed: write the page on the hub, or push the file '
            'that the card was written for',
            stacklevel=3,
        )
        return
    if api.file_exists(repo, 'README.md'):
        there = Path(api.hf_hub_download(repo, 'README.md')).read_text(encoding='utf-8')
        if PUSHED not in there or there != _seal(there):
            warnings.warn(
                f'{repo} has a README.md that was not pushed from here, or was changed since, and it stays: delete '
                f'it on the hub to have {card} in its place',
                stacklevel=3,
            )
            return
    sealed = _seal(text).encode()
    api.upload_file(path_or_fileobj=sealed, path_in_repo='README.md', repo_id=repo)


def _is_card_of(text: str, path: Path) -> bool:
    """Whether a text is the card that was written of a file: of its name, and of the tensors in it."""
    told = re.search(rf'^{TENSORS}: (\w+)$', text, re.MULTILINE)
    if told is None or f'| file | `{path.name}`' not in text:
        return False
    try:
        tensors = tensors_in(open_checkpoint(path))
    except ValueError:
        # A program, of which no cards are written
        return False
    return hash_tensors(tensors) == told[1]


def _seal(text: str) -> str:
    """Note in a card's header the hash of the rest: what was changed since does not agree with it."""
    bare = re.sub(rf'^{PUSHED}: \w*\n', '', text, flags=re.MULTILINE)
    found = hashlib.sha256(bare.encode()).hexdigest()
    return bare.replace('---\n', f'---\n{PUSHED}: {found}\n', 1)
