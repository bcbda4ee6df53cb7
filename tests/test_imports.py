# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""What is imported, and when: public names on first use, the command's help without torch."""

import ast
import pickle
import re
import subprocess
import sys
import tomllib
from importlib import import_module
from importlib.metadata import packages_distributions
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import cmid_geo

ROOT = Path(__file__).parent.parent
PACKAGES = ('', 'losses', 'transforms', 'models', 'models.weights', 'datasets', 'datamodules', 'callbacks', 'tasks', 'predict', 'plots')  # fmt: skip
HEAVY = {'lightning', 'torchgeo', 'segmentation_models_pytorch', 'matplotlib'}
#: In a fresh process: the libraries of *sought* that were imported, and the seconds it took.
LOOK = """
import sys, time
start = time.perf_counter()
{code}
print(f'{{time.perf_counter() - start:.2f}} s', *sorted(set({sought}) & set(sys.modules)), file=sys.stderr)
"""


@pytest.mark.parametrize(
    ('code', 'sought'),
    [
        (
            'import cmid_geo, cmid_geo.models, cmid_geo.tasks, cmid_geo.predict',
            {*HEAVY, 'torch', 'numpy'},
        ),
        (
            'from cmid_geo.losses import *\nfrom cmid_geo.transforms import *\nfrom cmid_geo import TwoViews\nimport cmid_geo.metrics.collapse',
            {*HEAVY, 'timm'},
        ),
        (
            'from cmid_geo.models import Encoder, MaskedBackbone\nfrom cmid_geo import create_backbone',
            HEAVY - {'matplotlib'},
        ),
    ],
)
def test_a_name_loads_what_it_needs(code: str, sought: set[str]) -> None:
    assert not look(code, sought)


@pytest.mark.parametrize(
    'command',
    [
        '--help',
        '--version',
        'map --help',
        'similar --help',
        'demo --help',
        'evaluate --help',
        'export --help',
        'prepare --help',
    ],
)
def test_the_command_tells_of_itself_without_torch(command: str) -> None:
    code = f'try: main({command.split()})\nexcept SystemExit: pass'
    code = f'from cmid_geo.__main__ import main\n{code}'
    assert not look(code, {*HEAVY, 'torch'})


def look(code: str, sought: set[str]) -> list[str]:
    done = subprocess.run(
        [sys.executable, '-c', LOOK.format(code=code, sought=sought)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    seconds, _, found = done.stderr.splitlines()[-1].partition(' s')
    print(f'{code}: {seconds} s')
    return found.split()


@pytest.mark.parametrize('name', PACKAGES)
def test_public_names(name: str) -> None:
    package = import_module(f'cmid_geo.{name}'.rstrip('.'))
    everything: dict[str, Any] = {}
    exec(f'from {package.__name__} import *', everything)  # noqa: S102
    assert set(package.__all__) <= set(everything)
    assert set(package.__all__) <= set(dir(package))
    with pytest.raises(AttributeError, match="attribute '?nothing"):
        package.nothing  # noqa: B018
    # Modules are there without an import of their own
    assert package.__name__ != 'cmid_geo' or cmid_geo.tasks.cmid.CMID is cmid_geo.CMID


def test_public_names_pickle() -> None:
    for name in cmid_geo.__all__:
        thing = getattr(cmid_geo, name)
        if isinstance(thing, ModuleType):
            continue
        assert pickle.loads(pickle.dumps(thing)) == thing


def distributions(*folders: str) -> set[str]:
    """The distributions that files import, beside Python's own and ours."""
    paths = [path for folder in folders for path in (ROOT / folder).rglob('*.py')]
    ours = {path.stem for path in paths} | {'cmid_geo'} | sys.stdlib_module_names
    names = {
        name.split('.')[0]
        for path in paths
        for node in ast.walk(ast.parse(path.read_text()))
        for name in imported_by(node)
    }
    known = packages_distributions()
    # Of the parts of one library that which is called as it is
    return {
        next((d for d in map(normal, known[name]) if d == normal(name)), normal(known[name][0]))
        for name in names - ours
    }  # fmt: skip


def imported_by(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    absolute = isinstance(node, ast.ImportFrom) and not node.level
    return [str(node.module)] if absolute else []


def normal(requirement: str) -> str:
    name = re.match(r'[\w.-]+', requirement)
    return re.sub(r'[-_.]+', '-', name.group()).lower() if name else ''


def test_dependencies_are_those_that_are_imported() -> None:
    project = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
    extras = project['optional-dependencies']
    needed = {normal(one) for one in project['dependencies']}
    optional = {
        normal(one) for name in ('bench', 'export', 'stac') for one in extras[name]
    }
    tests = {normal(one) for one in extras['tests']}
    # Lightning's default logger; torch's exporter; what a test skips without; plug-ins, programs and a kernel
    unseen = {'tensorboard', 'onnxscript', 'stac-model', 'pytest-socket', 'pytest-xdist', 'nbmake', 'ipykernel', 'ruff', 'ty', 'cmid-geo'}  # fmt: skip
    assert distributions('cmid_geo') - unseen == (needed | optional) - unseen
    beside = distributions('tests', 'benchmarks') - needed - optional
    assert beside - unseen == tests - unseen
