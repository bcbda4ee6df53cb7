# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Weights on the Hugging Face hub."""

from pathlib import Path
from typing import Any

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
    """Upload a file to the hub, with the model card that lies beside it.

    Args:
        path: File to upload; a ``MODEL_CARD.md`` in its folder becomes the repository's page.
        repo: ``USER/REPO``; it is made if it is not there.
        private: Whether a new repository is private.

    Returns:
        The address by which :func:`~cmid_geo.models.load_backbone` takes it.

    Raises:
        ValueError: If *repo* is not a name, or the hub refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    files = {path.name: path, 'README.md': path.with_name('MODEL_CARD.md')}
    api = HfApi()
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        for name, file in files.items():
            if file.is_file():
                api.upload_file(path_or_fileobj=file, path_in_repo=name, repo_id=repo)
    except (HFValidationError, HfHubHTTPError) as error:
        words = str(error).strip().splitlines()[0]
        raise ValueError(
            f'{path} was not pushed to {repo} ({words}): give --push USER/REPO of yours, after "hf auth login"'
        ) from error
    return f'{PREFIX}{repo}/{path.name}'
