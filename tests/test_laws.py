# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""The laws of the house: what may import what, and how long a thing may be."""

import ast
import io
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / 'cmid_geo'
FILES = sorted(PACKAGE.rglob('*.py'))
TESTS = sorted((ROOT / 'tests').rglob('test_*.py'))
TREES = {path.relative_to(PACKAGE): ast.parse(path.read_text()) for path in FILES}

#: Figures of samples and predictions, which datasets and tasks draw: these know tensors only.
DRAWN = (
    'plots/canvas',
    'plots/predictions',
    'plots/boxes',
    'plots/loggers',
    'plots/samples',
)

#: The floors of the package, lowest first: a part knows its own files and the floors below.
FLOORS = (
    ('ops', 'version', 'options', 'atomic_files', 'downloads'),
    ('metrics', *DRAWN),
    ('losses', 'transforms'),
    ('models', 'datasets'),
    ('datamodules', 'callbacks'),
    ('tasks',),
    ('predict', 'plots'),
    ('demo', 'cli', 'evaluate', 'bench'),
    ('__main__', '__init__'),
)

#: Library: the parts that alone may import it.
HOMES = {
    'filelock': ('downloads', 'callbacks', 'predict'),
    'geopandas': ('datasets', 'predict/vectors'),
    'huggingface_hub': ('models/weights/hub',),
    'jsonargparse': ('tasks/restoring', '__main__'),
    'kornia': ('transforms',),
    'lightning': (
        'datamodules',
        'callbacks',
        'tasks',
        'predict',
        'demo',
        'cli',
        '__main__',
    ),
    'matplotlib': ('plots', 'predict/outputs'),
    'pandas': ('datasets',),
    'pyogrio': ('predict',),
    # Scenes are found by STAC items here, and nowhere else
    'pystac': ('datasets/stac',),
    'pyproj': ('datasets', 'predict'),
    'rasterio': ('datasets', 'predict'),
    'safetensors': ('models/weights',),
    'segmentation_models_pytorch': ('models/segmentation',),
    'shapely': ('datasets', 'predict'),
    'timm': ('models', 'tasks/optimization'),
    'torch.distributed': ('callbacks',),
    'torchgeo': (
        'models/weights/registry',
        'models/weights/sources',
        'datasets',
        'datamodules',
        'tasks',
        'predict',
        'cli',
        'evaluate',
    ),
    'torchgeo_bench': ('bench',),
    'torchmetrics': ('metrics', 'tasks'),
    'torchvision': ('models', 'tasks', 'transforms', 'datamodules'),
    'tqdm': ('downloads', 'datasets', 'predict', 'demo'),
}


def floor_of(module: str) -> int:
    """Number of the floor on which a module lies, by the longest name that it begins with."""
    found = {
        part: number
        for number, parts in enumerate(FLOORS)
        for part in parts
        if starts(module, part, '/')
    }
    return found[max(found, key=len)]


def target_of(path: Path, name: str) -> str | None:
    """The part of the package that a relative import names; None for other libraries."""
    level = len(name) - len(name.lstrip('.'))
    if not level:
        inner = name.removeprefix('cmid_geo.')
        return inner.replace('.', '/') if inner != name else None
    base = path.parts[: len(path.parts) - level]
    return '/'.join((*base, *filter(None, name[level:].split('.'))))


def imports(tree: ast.AST) -> set[str]:
    """Names of imported modules; those of the package itself with their leading dots."""
    found = set()
    # What only a type checker imports ties nothing together
    typing = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == 'TYPE_CHECKING'
        for inner in ast.walk(node)
    }
    for node in set(ast.walk(tree)) - typing:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add('.' * node.level + (node.module or ''))
    return found


def starts(name: str, whole: str, separator: str = '.') -> bool:
    return name == whole or name.startswith(f'{whole}{separator}')


@pytest.mark.parametrize('path', TREES, ids=str)
def test_imports_point_one_way(path: Path) -> None:
    module = path.with_suffix('').as_posix()
    for name in imports(TREES[path]):
        target = target_of(path, name)
        for library, homes in HOMES.items() if target is None else ():
            if starts(name, library):
                assert any(starts(module, home, '/') for home in homes), name
        if target and target.split('/')[0] != path.parts[0]:
            assert floor_of(target) < floor_of(module), name


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
OWN = ('predict/cog.py',)


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


#: In a fresh process: the heavy libraries that are there once the modules of some folders are.
LOOK = """
import importlib, sys
for name in {names}:
    importlib.import_module(name)
print(sorted({heavy} & set(sys.modules)))
"""


def load(folders: tuple[str, ...], heavy: set[str]) -> str:
    """Heavy libraries that come with all modules of some folders."""
    names = [
        '.'.join(('cmid_geo', *path.with_suffix('').parts)).removesuffix('.__init__')
        for path in TREES
        if path.parts[0] in folders
    ]
    code = LOOK.format(names=names, heavy=heavy)
    done = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.mark.parametrize(
    ('folders', 'heavy'),
    [
        (('ops', 'losses', 'transforms', 'models'), {'matplotlib'}),
        # torchmetrics imports matplotlib where it is installed
        (('metrics',), set()),
    ],
)
def test_lower_floors_are_light(folders: tuple[str, ...], heavy: set[str]) -> None:
    others = {'lightning', 'torchgeo', 'segmentation_models_pytorch', 'pandas'}
    assert load(folders, heavy | others) == '[]'


@pytest.mark.parametrize('path', TREES, ids=str)
def test_prose(path: Path) -> None:
    first = (ast.get_docstring(TREES[path]) or '').split(maxsplit=1)
    # A noun phrase in the field's words, no riddle
    assert first and first[0] not in ('What', 'How', 'Where', 'Which', 'When', 'Who')
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            assert 'Likewise.' not in (ast.get_docstring(node) or ''), node.name


#: Arguments that are something else in each class, though called alike.
OTHERWISE = {
    # Of the networks and datasets of each
    'model', 'backbone', 'task', 'num_classes', 'num_labels', 'labels', 'loss', 'pos_weight', 'class_weights',
    'root', 'train', 'val', 'test', 'images', 'masks', 'annotations', 'size', 'patch_size', 'length', 'batch_size',
    'scale', 'seed', 'low', 'high', 'bands', 'augment', 'min_valid', 'date_regex', 'kwargs', 'fusion', 'in_channels', 'ignore_index',
    # Of torchvision's detectors and of ours for rotated boxes
    'anchor_sizes', 'score_thresh', 'nms_thresh', 'detections_per_img',
}  # fmt: skip


def argument_texts(docstring: str) -> dict[str, str]:
    """Names of a docstring's arguments, and their texts in one line."""
    part = docstring.partition('Args:\n')[2].partition('\n\n')[0]
    found: dict[str, str] = {}
    name = ''
    for line in part.splitlines():
        if line.startswith(' ' * 4) and not line.startswith(' ' * 5) and ':' in line:
            name, _, text = line.strip().partition(':')
            found[name] = text.strip()
        elif name:
            found[name] += f' {line.strip()}'
    return found


@pytest.mark.parametrize('part', ['tasks', 'datamodules'])
def test_an_argument_has_one_text(part: str) -> None:
    texts: dict[str, dict[str, str]] = {}
    for path, tree in TREES.items():
        # Pretraining has recipes of its own
        own = path.parts[0] == part and path.name != 'cmid.py'
        for node in ast.walk(tree) if own else ():
            if isinstance(node, ast.FunctionDef) and node.name == '__init__':
                for name, text in argument_texts(ast.get_docstring(node) or '').items():
                    texts.setdefault(name.strip('*'), {})[text] = str(path)
    differ = {name: each for name, each in texts.items() if len(each) > 1}
    assert not set(differ) - OTHERWISE, differ


def test_the_architecture_lists_every_file_with_its_docstring() -> None:
    text = (ROOT / 'docs' / 'architecture.md').read_text()
    for path, tree in TREES.items():
        if path.name != '__init__.py':
            opening = (
                (ast.get_docstring(tree) or '').split('\n\n')[0].replace('\n', ' ')
            )
            assert f'| `{path.name}` | {opening} |' in text, path


def test_the_laws_have_teeth() -> None:
    assert reads(ast.parse('rasterio.open(path)')) == [1]
    assert not reads(ast.parse("rasterio.open(path, 'w', driver='GTiff')"))
    tree = ast.parse(
        'import kornia.augmentation\nfrom ..tasks import CMID\nfrom . import x'
    )
    assert imports(tree) == {'kornia.augmentation', '..tasks', '.'}
    assert len(TREES) > 30
    assert target_of(Path('tasks/cmid.py'), '..ops.cells') == 'ops/cells'
    assert (
        floor_of('plots/boxes') < floor_of('tasks/cmid') < floor_of('plots/model_card')
    )
    text = '''"""A module."""\n\n# Why\ndef f(\n    x: int,\n) -> int:\n    """Say."""\n    return x\n'''
    assert code_lines(text) == 1


def checks(function: ast.AST, beside: dict[str, ast.AST]) -> bool:
    """Whether a test asserts something, itself or by a function beside it."""
    for node in ast.walk(function):
        if isinstance(node, ast.Assert):
            return True
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func).split('.')[-1]
            others = {other: f for other, f in beside.items() if other != name}
            known = name in beside and checks(beside[name], others)
            if known or name in ('raises', 'warns') or name.startswith('assert_'):
                return True
    return False


@pytest.mark.parametrize('path', TESTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_tests_assert(path: Path) -> None:
    tree = ast.parse(path.read_text())
    functions: dict[str, ast.AST] = {
        n.name: n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)
    }
    for name, function in functions.items():
        assert not name.startswith('test') or checks(function, functions), name
