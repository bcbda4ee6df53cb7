# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Released files, as small ones of other networks that stand in for them."""

import hashlib
from pathlib import Path
from typing import Any

import torch


def place(path: Path, content: Any) -> None:
    """Write a file into the cache, with its hash: it is taken for what its name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    path.with_name(f'{path.name}.sha256').write_text(digest)
