# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Sphinx's configuration: pages in Markdown, the reference from docstrings, no network."""

import re
import shutil
import sys
from pathlib import Path

from sphinx.application import Sphinx

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from cmid_geo import __version__

project = 'cmid_geo'
author = 'The cmid_geo contributors'
copyright = author
version = release = __version__

extensions = [
    # Markdown, and notebooks
    'myst_nb',
    'sphinx.ext.autodoc',
    'sphinx.ext.napoleon',
    'sphinx.ext.viewcode',
]
# Notebooks are shown with the outputs that they were saved with
nb_execution_mode = 'off'
# Headings can be linked to by the names that GitHub gives them
myst_heading_anchors = 3

# Class and constructor have a docstring each; types stand in signatures alone
autoclass_content = 'both'
autodoc_default_options = {'members': True, 'show-inheritance': True}
autodoc_member_order = 'bysource'
autodoc_typehints = 'description'
autodoc_typehints_description_target = 'documented'
autodoc_preserve_defaults = True
# Fields of dataclasses are described where the class is
napoleon_use_ivar = True

nitpicky = True
#: Other projects, whose inventories only a network has.
OTHERS = (
    'abc', 'affine', 'collections', 'concurrent', 'contextlib', 'enum', 'filelock', 'geopandas', 'jaxtyping',
    'kornia', 'lightning', 'matplotlib', 'numpy', 'os', 'pandas', 'pathlib', 'pyproj', 'rasterio', 'shapely',
    'timm', 'torch', 'torchgeo', 'torchmetrics', 'torchvision', 'typing',
)  # fmt: skip
#: Parts of ours that programs get and pass on, but do not make: the architecture tells of them.
PARTS = (
    'datasets.chips.HasScenes', 'datasets.dota.DOTALabels', 'models.weights.sources', 'predict.inputs',
    'predict.job', 'predict.listing', 'predict.outputs', 'tasks.restoring', 'tasks.resuming', 'tasks.schedules',
    'tasks.types', 'datasets.scene.Declared',
)  # fmt: skip
nitpick_ignore_regex = [
    ('py:.*', rf'({"|".join(OTHERS)})\..*'),
    # Theirs too, as annotations and docstrings write them
    ('py:.*', r'Tensor|nn\.Module|ndarray|Figure|DatasetNotFoundError'),
    # Axes of a tensor, which jaxtyping writes as a string
    ('py:class', r".*'.*"),
    ('py:.*', rf'cmid_geo\.({"|".join(PARTS)})(\..*)?'),
    # Bases that have no use of their own
    ('py:class', r'cmid_geo\..*\._\w+'),
    # A path or several, an alias that only a type checker imports
    ('py:class', 'SceneFiles'),
]

# Sphinx knows no pages outside its folder; a copy keeps the times by which it sees what changed
for folder in (ROOT / 'benchmarks' / 'results', ROOT / 'notebooks'):
    shutil.copytree(
        folder,
        Path(__file__).parent / folder.name,
        dirs_exist_ok=True,
        # What running them leaves
        ignore=shutil.ignore_patterns('output', '*.py', '__pycache__', '.*'),
    )

html_theme = 'pydata_sphinx_theme'
html_title = 'cmid_geo'
html_show_sourcelink = False
html_static_path = ['_static']
html_css_files = ['wide.css']
html_theme_options = {'show_prev_next': False}


def _place_pages(app: Sphinx, docname: str, source: list[str]) -> None:
    """Make the README the front page, and its links and others' lead to pages of the site."""
    if docname == 'index':
        readme = (ROOT / 'README.md').read_text().replace('](docs/', '](')
        source[0] = f'{readme}\n{source[0]}'
    if docname.startswith('notebooks/'):
        source[0] = source[0].replace('](../docs/', '](../')
    source[0] = re.sub(r'\]\((\.\./)*benchmarks/results/', '](/results/', source[0])


def setup(app: Sphinx) -> None:
    """Connect what is done to pages before they are parsed."""
    app.connect('source-read', _place_pages)
