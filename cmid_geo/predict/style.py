# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""QGIS styles of maps of classes: a colour and a name for each value."""

import contextlib
from pathlib import Path
from xml.etree import ElementTree

from ..datasets.filenames import printable
from .outputs import Layer

#: Ending of a style that QGIS finds by itself, beside a map of the same stem.
ENDING = '.qml'

#: Attribute by which styles of ours are told from those that a user saved over them.
MARK = 'cmid_geo'


def write_style(path: Path, layer: Layer) -> list[Path]:
    """Write the style of a map of classes.

    The file is QGIS's own (https://docs.qgis.org, "QML - The QGIS Style File Format"): a paletted
    renderer of the only band.

    Args:
        path: The map, to be written beside.
        layer: What it holds.

    Returns:
        The style; nothing for a map without classes, or with a band for each of several labels.
    """
    if not layer.classes or layer.count > 1:
        return []
    root = ElementTree.Element('qgis', version='3.22', styleCategories='Symbology')
    root.set(MARK, '1')
    pipe = ElementTree.SubElement(root, 'pipe')
    renderer = ElementTree.SubElement(
        pipe, 'rasterrenderer', type='paletted', band='1', opacity='1', alphaBand='-1'
    )
    palette = ElementTree.SubElement(renderer, 'colorPalette')
    for value, (name, colour) in enumerate(zip(layer.classes, layer.colours)):
        ElementTree.SubElement(
            palette, 'paletteEntry', value=str(value), label=printable(name),
            color='#{:02x}{:02x}{:02x}'.format(*colour), alpha='255',
        )  # fmt: skip
    ElementTree.SubElement(root, 'blendMode').text = '0'
    ElementTree.indent(root)
    style = path.with_suffix(ENDING)
    ElementTree.ElementTree(root).write(style, 'utf-8')
    return [style]


def is_own_style(path: Path) -> bool:
    """Tell whether a style is as we wrote it.

    Args:
        path: The style.

    Returns:
        False where there is none, or QGIS saved another over it.
    """
    with contextlib.suppress(OSError, ElementTree.ParseError):
        return MARK in ElementTree.parse(path).getroot().attrib
    return False
