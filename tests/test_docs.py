# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""The pages: what is public has a place in the reference, and what is written there is true."""

import re
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
DOCS = ROOT / 'docs'
#: Packages with public names, each on a page of its own or on those of others.
PACKAGES = ('', 'losses', 'transforms', 'models', 'models.weights', 'datasets', 'datamodules', 'tasks', 'predict')  # fmt: skip


def described() -> list[Any]:
    """The objects that pages of the reference describe."""
    found = []
    for page in sorted((DOCS / 'api').glob('*.rst')):
        module = ''
        for kind, name in re.findall(
            r'^\.\. (\w+):: (\S+)$', page.read_text(), re.MULTILINE
        ):
            if kind == 'currentmodule':
                module = name
            elif kind in ('autoclass', 'autofunction'):
                whole = name if '.' in name else f'{module}.{name}'
                parent, _, last = whole.rpartition('.')
                found.append(getattr(import_module(parent), last))
    return found


@pytest.mark.parametrize('name', PACKAGES)
def test_public_names_are_in_the_reference(name: str) -> None:
    package = import_module(f'cmid_geo.{name}'.rstrip('.'))
    public = {each: getattr(package, each) for each in package.__all__}
    known = described()
    missing = [
        each
        for each, thing in public.items()
        if not isinstance(thing, ModuleType | str)
        and not any(thing is one for one in known)
    ]
    assert missing == []


def test_each_page_of_the_reference_is_listed() -> None:
    index = (DOCS / 'api' / 'index.md').read_text().splitlines()
    for page in (DOCS / 'api').glob('*.rst'):
        assert page.stem in index
