# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Cloud-optimised GeoTIFFs, written piece by piece and compressed at the end."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import rasterio
from rasterio import shutil  # ty: ignore

from ..datasets.filenames import printable
from ..datasets.grids import Grid
from ..datasets.rasters import FAILURES, open_raster
from .outputs import Layer
from .style import write_style

#: Most bytes of a block, all bands of it.
BLOCK = 2**22

#: Name of the tag that tells how a map was made.
NOTES = 'cmid_geo'


class RasterFile:
    """One layer of one map, being written."""

    def __init__(self, folder: Path, name: str, layer: Layer, grid: Grid) -> None:
        """Initialize a new RasterFile instance.

        Args:
            folder: To write in.
            name: Of the file.
            layer: What it holds.
            grid: Its pixels.
        """
        self.layer, self.grid = layer, grid
        self.path, self._raw = folder / name, folder / f'raw_{name}'
        self.block = block_side(layer.count, layer.dtype)
        # Blocks that are written twice would leave holes in a compressed file
        self._file = rasterio.open(
            self._raw, 'w', driver='GTiff', width=grid.width, height=grid.height, count=layer.count,
            dtype=layer.dtype, nodata=layer.nodata, transform=grid.transform, crs=grid.crs,
            tiled=True, blockxsize=self.block, blockysize=self.block, bigtiff='if_safer',
            sparse_ok=True, photometric='minisblack', interleave='pixel',
        )  # fmt: skip

    def write(self, corner: tuple[int, int], bands: np.ndarray) -> None:
        """Write a part.

        Args:
            corner: Its first row and column.
            bands: What :meth:`Layer.finish` gives.
        """
        (row, col), (height, width) = corner, bands.shape[1:]
        window = (row, row + height), (col, col + width)
        self._file.write(bands[: self.layer.count], window=window)
        if self.layer.masked:
            with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
                self._file.write_mask(bands[-1] > 0, window=window)

    def close(self, notes: dict[str, Any] | None = None) -> list[Path]:
        """Compress, with overviews unless it is float16; only then is there a file of the right name.

        Args:
            notes: How the map was made.

        Returns:
            The file, still in that folder; before it what names its classes and shows them in QGIS, if
            it has any.
        """
        self._describe(notes)
        self._file.close()
        classes = bool(self.layer.classes)
        whole = np.issubdtype(self.layer.dtype, np.integer)
        # GDAL 3.12 can neither predict float16 nor make overviews of it
        half = self.layer.dtype == 'float16'
        shutil.copy(
            self._raw, self.path, driver='COG', blocksize=self.block, compress='DEFLATE',
            predictor='NO' if classes or half else 'YES',
            overview_resampling='NEAREST' if whole and not self.layer.steps else 'AVERAGE', overviews='NONE' if half else 'AUTO',
            bigtiff='IF_SAFER', num_threads='ALL_CPUS',
        )  # fmt: skip
        self._raw.unlink()
        names = [_write_names(self.path, self.layer)] if classes else []
        return [*names, *write_style(self.path, self.layer), self.path]

    def blocks(self) -> Iterator[tuple[tuple[int, int], np.ndarray]]:
        """Read back what was written, after which nothing more can be.

        Yields:
            First row and column of each block, and the bands there.
        """
        self._file.close()
        with rasterio.open(self._raw) as file:
            for _, window in file.block_windows(1):
                yield (window.row_off, window.col_off), file.read(window=window)

    def drop(self) -> None:
        """Take what was written away."""
        self._file.close()
        self._raw.unlink(missing_ok=True)

    def _describe(self, notes: dict[str, Any] | None) -> None:
        layer, file = self.layer, self._file
        for band, name in enumerate(layer.names, 1):
            file.set_band_description(band, printable(name))
        if notes is not None:
            file.update_tags(**{NOTES: json.dumps(notes, sort_keys=True)})
        if layer.steps:
            # By which QGIS and others show what the whole numbers stand for
            file.scales = [1 / layer.steps] * layer.count
            file.offsets = [0.0] * layer.count
        named = {f'class_{i}': printable(name) for i, name in enumerate(layer.classes)}
        for band in range(1, layer.count + 1 if named else 1):
            file.update_tags(band, **named)
        if layer.count == 1 and layer.colours and layer.dtype == 'uint8':
            table = {i: (*colour, 255) for i, colour in enumerate(layer.colours)}
            file.write_colormap(1, table | {int(layer.nodata or 255): (0, 0, 0, 0)})


def block_side(count: int, dtype: str) -> int:
    """Choose the side of a map's blocks.

    Args:
        count: Number of bands.
        dtype: Their type.

    Returns:
        A power of two from 16 to 512, such that a block of all bands stays small.
    """
    side = 512
    while side > 16 and side * side * count * np.dtype(dtype).itemsize > BLOCK:
        side //= 2
    return side


def read_raster_notes(path: Path | str) -> str | None:
    """Read how a map was made.

    Args:
        path: A finished map, or its URL.

    Returns:
        What was written of it, as JSON; None if it is not one of ours, or is damaged.
    """
    with contextlib.suppress(*FAILURES), open_raster(str(path)) as file:
        return file.tags().get(NOTES)
    return None


def is_cut_off(path: Path) -> bool:
    """Tell whether a map lost its end, where a cloud-optimised GeoTIFF has its last block.

    Args:
        path: A map, of which the beginning can be read.

    Returns:
        Whether the last block cannot.
    """
    with contextlib.suppress(*FAILURES), open_raster(str(path)) as file:
        last = (file.height - 1, file.height), (file.width - 1, file.width)
        file.read(window=last, masked=True)
        return False
    return True


def _write_names(path: Path, layer: Layer) -> Path:
    """Name the classes where GDAL and QGIS look for names: GeoTIFF itself has no place for them."""
    root = ElementTree.Element('PAMDataset')
    for band in range(1, layer.count + 1):
        element = ElementTree.SubElement(root, 'PAMRasterBand', band=str(band))
        names = ElementTree.SubElement(element, 'CategoryNames')
        for name in layer.classes:
            ElementTree.SubElement(names, 'Category').text = printable(name)
    beside = path.with_name(f'{path.name}.aux.xml')
    # GDAL reads nothing where the file begins with a declaration
    ElementTree.ElementTree(root).write(beside, 'utf-8', xml_declaration=False)
    return beside
