# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Tables of scenes and grids in HTML, as notebooks show them, with a small picture."""

import base64
import io
from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from pyproj import CRS
from pyproj.exceptions import CRSError

from ..plots.canvas import blank, display_bands, stretch
from .filenames import printable
from .grids import Grid

if TYPE_CHECKING:
    from .scene import Scene

#: Longest side of a picture, in pixels.
SIDE = 200

#: Most pixels of a file that is decoded whole for a picture, because it has no overviews.
MOST_DECODED = 2**28

#: Most of a list, such as of bands, that is written out.
MOST_LISTED = 16


def html_table(rows: Mapping[str, object], picture: bytes | None = None) -> str:
    """Write a table.

    Args:
        rows: Values by name; lines of texts stay lines, and all signs stand for themselves.
        picture: PNG to show beside it.

    Returns:
        HTML.
    """
    cells = ''.join(
        f'<tr><th style="text-align: left">{_text(name)}</th>'
        f'<td style="text-align: left">{_text(value)}</td></tr>'
        for name, value in rows.items()
    )
    table = f'<table>{cells}</table>'
    if picture is None:
        return table
    source = base64.b64encode(picture).decode('ascii')
    image = f'<img alt="overview" src="data:image/png;base64,{source}">'
    return f'<div style="display: flex; gap: 1em">{table}{image}</div>'


def _text(value: object) -> str:
    """Escape a value, line by line."""
    lines = str(value).split('\n')
    return '<br>'.join(escape(printable(line)) for line in lines)


def list_some(values: object, most: int = MOST_LISTED) -> str:
    """Write a list, of a long one the beginning.

    Args:
        values: A sequence.
        most: Values to write out.

    Returns:
        Such as 'red, green, blue'.
    """
    several = list(map(str, values)) if isinstance(values, list | tuple) else []
    more = f', ... ({len(several)})' if len(several) > most else ''
    return ', '.join(several[:most]) + more


def crs_name(wkt: str) -> str:
    """Name a coordinate reference system.

    Args:
        wkt: In WKT.

    Returns:
        Its code, such as EPSG:32633, and its name.
    """
    try:
        crs = CRS.from_wkt(wkt)
    except CRSError:
        return 'unknown'
    code = crs.to_authority()
    return f'{":".join(code)} ({crs.name})' if code else crs.name


def grid_rows(grid: Grid) -> dict[str, object]:
    """Describe a grid.

    Args:
        grid: To describe.

    Returns:
        Size, CRS, resolution and bounds, by name.
    """
    t = grid.transform
    across, down = np.hypot(t.a, t.d), np.hypot(t.b, t.e)
    turned = '' if grid.is_north_up else ', not north up'
    return {
        'size': f'{grid.width} x {grid.height} pixels',
        'CRS': crs_name(grid.crs),
        'resolution': f'{across:g} x {down:g}{turned}',
        'bounds': ', '.join(f'{side:.10g}' for side in grid.bounds),
    }


def scene_table(
    scene: 'Scene', palette: Mapping[int, tuple[int, ...]] | None = None
) -> str:
    """Write a scene's table, with a picture where its files can be read.

    Args:
        scene: To describe.
        palette: RGBA, from 0 to 255, of each value of the one band.

    Returns:
        HTML.
    """
    from .reader import SceneReader

    declared = {value for raster in scene.rasters for value in raster.nodata}
    nodata = sorted({value for value in (*declared, *scene.fills) if value is not None})
    rows = {
        'path': '\n'.join(scene.files[:MOST_LISTED]),
        **grid_rows(scene.grid),
        'bands': list_some(scene.bands),
        'type': scene.dtype,
        'date': scene.date or 'none',
        'no data': list_some(nodata) or 'no value',
    }
    try:
        image, valid = SceneReader(0).overview(scene, SIDE, MOST_DECODED)
    except ValueError as error:
        return html_table(rows | {'picture': f'none: {error}'})
    if palette is None:
        picture = picture_of(image, valid, scene.bands)
    else:
        table = np.zeros((max(256, *palette) + 1, 4))
        table[list(palette)] = np.array(list(palette.values())) / 255
        colours = table[image[0].astype(int)]
        picture = as_png(np.where(valid[..., None], colours, 0))
    return html_table(rows, picture)


def picture_of(
    image: np.ndarray, valid: np.ndarray, bands: tuple[str, ...] | None = None
) -> bytes:
    """Draw a picture.

    Args:
        image: Values (bands, rows, cols).
        valid: Whether a pixel holds data, (rows, cols).
        bands: Their names.

    Returns:
        PNG, transparent where there is no data.
    """
    shown = display_bands(len(image) if bands is None else bands)
    values = torch.from_numpy(image[shown].astype(np.float32))
    seen = blank(values, torch.from_numpy(valid))
    known = seen[0].isfinite().numpy()[..., None]
    return as_png(np.dstack([stretch(seen), known]))


def as_png(colours: np.ndarray) -> bytes:
    """Write a picture.

    Args:
        colours: RGBA (rows, cols, 4) in [0, 1].

    Returns:
        PNG, of few pixels as squares that can be seen.
    """
    file = io.BytesIO()
    side = max(1, SIDE // max(colours.shape))
    pixels = (255 * colours).round().astype(np.uint8).repeat(side, 0).repeat(side, 1)
    Image.fromarray(pixels).save(file, 'PNG')
    return file.getvalue()
