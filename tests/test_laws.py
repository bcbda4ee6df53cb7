# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""The laws of the house: what may import what, and how long a thing may be."""

import ast
import io
import tokenize
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / 'cmid_geo'
FILES = sorted(PACKAGE.rglob('*.py'))
TREES = {path.relative_to(PACKAGE): ast.parse(path.read_text()) for path in FILES}

#: Folder or file: what it may not import.
FOREIGN = {
    'losses': ('lightning', 'torchgeo', 'kornia', 'timm', 'rasterio', 'cmid_geo'),
    'transforms': ('lightning', 'torchgeo', 'timm', 'rasterio'),
    'models': ('lightning', 'torchgeo', 'kornia', 'rasterio'),
    'datasets': ('lightning', 'kornia', 'timm'),
    'tasks': ('kornia', 'rasterio'),
}

#: TorchGeo's weights by name, and ours for TorchGeo: these two files know of both.
EXCEPTIONS = {'models/sources.py': ('torchgeo',), 'models/builders.py': ('torchgeo',)}

#: Library: where alone it may be imported.
HOMES = {
    'kornia': ('transforms',),
    'timm': (
        'models/backbones.py',
        'models/adapting.py',
        'models/builders.py',
        'models/networks.py',
        'models/pyramid.py',
        'tasks/pretraining.py',
        'tasks/recipe.py',
    ),
    'segmentation_models_pytorch': ('models/segmentation.py',),
    'rasterio': ('datasets', 'predict'),
    'torch.distributed': (),
}

#: Parts of the package: what of the package they may not know.
ABOVE = {
    'losses': ('transforms', 'models', 'tasks', 'datasets', 'datamodules'),
    'transforms': ('losses', 'models', 'tasks', 'datasets', 'datamodules'),
    'models': ('losses', 'tasks', 'datasets', 'datamodules'),
    'datasets': ('losses', 'transforms', 'models', 'tasks', 'datamodules'),
    # Augmentations of labelled images run on the device, behind the loader
    'datamodules': ('losses', 'models', 'tasks'),
    'tasks': ('datasets', 'datamodules'),
}


def imports(tree: ast.AST) -> set[str]:
    """Names of imported modules; those of the package itself with their leading dots."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add('.' * node.level + (node.module or ''))
    return found


def starts(name: str, library: str) -> bool:
    return name == library or name.startswith(f'{library}.')


@pytest.mark.parametrize('path', TREES, ids=str)
def test_imports_point_one_way(path: Path) -> None:
    names, part = imports(TREES[path]), path.parts[0]
    spared = EXCEPTIONS.get(path.as_posix(), ())
    for library in set(FOREIGN.get(part, ())) - set(spared):
        assert not [name for name in names if starts(name, library)], library
    for library, homes in HOMES.items():
        if not any(path.as_posix().startswith(home) for home in homes):
            assert not [name for name in names if starts(name, library)], library
    for other in ABOVE.get(part, ()):
        assert not [
            name
            for name in names
            if starts(name.lstrip('.'), other) and name[:2] == '..'
        ]


#: Tokens that are no code.
SILENT = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT,
          tokenize.ENCODING, tokenize.ENDMARKER)  # fmt: skip


def code_lines(text: str) -> int:
    """Lines that hold code: no docstrings, comments, blanks or signatures."""
    explained: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            first = node.body[0] if node.body else None
            if first is not None and ast.get_docstring(node) is not None:
                explained |= set(range(first.lineno, (first.end_lineno or 0) + 1))
            if first is not None and isinstance(node, ast.FunctionDef):
                explained |= set(range(node.lineno, first.lineno))
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    lines = [
        range(token.start[0], token.end[0] + 1)
        for token in tokens
        if token.type not in SILENT
    ]
    return len({number for each in lines for number in each} - explained)


@pytest.mark.parametrize('path', TREES, ids=str)
def test_length(path: Path) -> None:
    # A file never pays for explaining itself
    assert code_lines((PACKAGE / path).read_text()) <= 300
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) is not None else node.body
            lines = (node.end_lineno or 0) - body[0].lineno + 1 if body else 0
            assert lines <= (30 if node.name == 'training_step' else 40), node.name


@pytest.mark.parametrize('path', TREES, ids=str)
def test_no_asserts_and_no_missing_docstrings(path: Path) -> None:
    for node in ast.walk(TREES[path]):
        assert not isinstance(node, ast.Assert)
        if isinstance(node, ast.FunctionDef) and not node.name.startswith('_'):
            inner = any(node in ast.walk(f) for f in ast.walk(TREES[path])
                        if isinstance(f, ast.FunctionDef) and f is not node)  # fmt: skip
            assert inner or ast.get_docstring(node), node.name


#: Files that read back what they wrote themselves, under a name of their own.
OWN = ('predict/rasters.py',)


def reads(tree: ast.AST) -> list[int]:
    """Lines that open a raster to read it, other than by the opener that knows what is safe."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            mode = [a.value for a in node.args[1:2] if isinstance(a, ast.Constant)]
            if name.endswith('DatasetReader') or (
                name == 'rasterio.open' and mode != ['w']
            ):
                found.append(node.lineno)
    return found


@pytest.mark.parametrize('path', TREES, ids=str)
def test_rasters_are_opened_in_one_place(path: Path) -> None:
    if path.as_posix() not in (*OWN, 'datasets/rasters.py'):
        assert not reads(TREES[path])
        assert 'rasterio_loader' not in (PACKAGE / path).read_text()


def test_the_laws_have_teeth() -> None:
    assert reads(ast.parse('rasterio.open(path)')) == [1]
    assert not reads(ast.parse("rasterio.open(path, 'w', driver='GTiff')"))
    tree = ast.parse(
        'import kornia.augmentation\nfrom ..tasks import CMID\nfrom . import x'
    )
    assert imports(tree) == {'kornia.augmentation', '..tasks', '.'}
    assert len(TREES) > 30
    text = '''"""A module."""\n\n# Why\ndef f(\n    x: int,\n) -> int:\n    """Say."""\n    return x\n'''
    assert code_lines(text) == 1
