# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""The pages: what is public has a place in the reference, and what is written there is true."""

import ast
import re
import tomllib
from importlib import import_module
from inspect import signature
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from lightning.pytorch import Trainer

from cmid_geo import datamodules, tasks
from cmid_geo.__main__ import demonstrate, evaluate_folder, export, prepare
from cmid_geo.predict import find_similar, map_scenes

ROOT = Path(__file__).parent.parent
DOCS = ROOT / 'docs'
#: Packages with public names, each on a page of its own or on those of others.
PACKAGES = ('', 'losses', 'transforms', 'models', 'models.weights', 'datasets', 'datamodules', 'callbacks', 'tasks', 'predict', 'plots')  # fmt: skip


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


#: Pages of prose, and those that are the repository's.
PAGES = sorted(
    [ROOT / 'README.md', *DOCS.glob('*.md'), *(DOCS / 'how_to').glob('*.md')]
)
#: Options of other programs: uv, SLURM, torchrun, sphinx-build and TensorBoard.
FOREIGN = {'extra', 'signal', 'requeue', 'open-mode', 'nnodes', 'nproc-per-node', 'keep-going', 'logdir'}  # fmt: skip


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf'```{language}\n(.*?)```', page.read_text(), re.DOTALL)


def missing(code: str) -> list[str]:
    """Names that a piece of code imports and that are not there; it has to compile."""
    compile(code, 'page', 'exec')
    nodes = [
        node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.ImportFrom)
    ]
    return [
        alias.name
        for node in nodes
        for alias in node.names
        if not hasattr(import_module(str(node.module)), alias.name)
    ]


def options() -> set[str]:
    """The options of all commands, as their parsers read them from signatures."""
    own = (map_scenes, demonstrate, export, prepare, evaluate_folder, find_similar)
    found = {name for command in own for name in signature(command).parameters}
    parts = {
        'model': [getattr(tasks, name) for name in tasks.__all__],
        'data': [getattr(datamodules, name) for name in datamodules.__all__],
        'trainer': [Trainer],
    }
    for part, kinds in parts.items():
        for kind in kinds:
            found |= {f'{part}.{name}' for name in signature(kind).parameters}
    return found | {
        'config',
        'resume',
        'dry-run',
        'ckpt_path',
        'auto_precision',
        'model.help',
        'data.help',
    }


def unknown(text: str, known: set[str]) -> list[str]:
    """The options in code of a page that no command has."""
    code = re.findall(r'```sh\n.*?```|`[^`\n]+`', text, re.DOTALL)
    named = re.findall(r'(?<![\w-])--([a-z][\w.-]*)', '\n'.join(code))
    return [name for name in named if name not in known | FOREIGN]


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.stem)
def test_what_pages_write_is_there(page: Path) -> None:
    assert [missing(code) for code in blocks(page, 'python') if missing(code)] == []
    assert unknown(page.read_text(), options()) == []
    configs = re.findall(r'configs/\w+\.yaml', page.read_text())
    assert [name for name in configs if not (ROOT / name).is_file()] == []


def test_the_pages_are_read() -> None:
    assert missing('from cmid_geo import CMID, Nothing') == ['Nothing']
    with pytest.raises(SyntaxError):
        missing('from cmid_geo import')
    assert unknown('`cmid-geo map --overlapp 3 --overlap 3`', options()) == ['overlapp']
    assert unknown('```sh\ncmid-geo fit --data.path X\n```', options()) == ['data.path']
    assert sum(len(blocks(page, 'python')) for page in PAGES) > 10


def test_the_changelog_begins_with_the_version() -> None:
    project = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
    text = (ROOT / 'CHANGELOG.md').read_text()
    versions = re.findall(
        r'^## \[(\S+)\] - (?:Unreleased|\d{4}-\d\d-\d\d)$', text, re.MULTILINE
    )
    assert versions[0] == project['version']
    # Every heading of a version, and every kind of change, is in the form
    assert len(versions) == text.count('\n## ')
    kinds = {'Added', 'Changed', 'Deprecated', 'Removed', 'Fixed', 'Security'}
    assert set(re.findall(r'^### (.+)$', text, re.MULTILINE)) <= kinds
    assert f'cmid_geo {versions[0]} |' in (ROOT / 'README.md').read_text()
