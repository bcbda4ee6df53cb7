# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Scenes as a TorchGeo dataset: folders of georeferenced rasters."""

import gc
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import shapely
import torch
from affine import Affine
from geopandas import GeoDataFrame
from pyproj import CRS
from torchgeo.datasets import DatasetNotFoundError, GeoDataset, IntersectionDataset
from torchgeo.datasets.utils import GeoSlice, Path, Sample

from ..plots.samples import sample_figure
from .chips import Chip, concat_scenes
from .filenames import DEFAULT_BAND_REGEX, DEFAULT_DATE_REGEX, find_rasters
from .grids import Bools, Grid
from .reader import Image, SceneReader
from .scene import Declared, Scene, lay_out, sift_scenes, tell_bad
from .stac import date_scenes, expand_items

if TYPE_CHECKING:
    from pystac import Item, ItemCollection

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Types of pixels that chips may keep: torch can do with these what a loader does.
KEPT = {'uint8', 'uint16', 'int16'}


class SceneDataset(GeoDataset):
    """Georeferenced rasters of any kind, with a mask of where they are valid.

    A scene is a file, or several files that hold a band each and are named alike apart from the
    band. Scenes of another CRS or resolution than the dataset's are interpolated bilinearly; all
    others are read as they are, a window at a time, from files that stay open.

    A sample holds ``image`` (C, H, W) float32, raw values, 0 where not valid, and ``valid`` (H, W)
    bool; with *keep_dtype* chips keep the type of the files. A pixel is not valid outside the file, where its mask or alpha band is 0, where any of the
    selected bands is NaN, Inf or the nodata value that the file declares, and, for a value of 0, with
    *zero_is_nodata*, and for the *nodata* given here, where all of them have it (one band of dark
    water is 0, one of a cloud 255, too).
    """

    def __init__(
        self,
        paths: 'Path | Item | ItemCollection | Iterable[Path | Item | ItemCollection]',
        bands: Sequence[str | int] | None = None,
        crs: CRS | str | None = None,
        res: float | tuple[float, float] | None = None,
        *,
        band_regex: str = DEFAULT_BAND_REGEX,
        date_regex: str = DEFAULT_DATE_REGEX,
        zero_is_nodata: bool = False,
        skip_unreadable: bool = False,
        transforms: Callable[[Sample], Sample] | None = None,
        cache: bool = True,
        nodata: float | None = None,
        file_crs: CRS | str | None = None,
        keep_dtype: bool = False,
    ) -> None:
        """Initialize a new SceneDataset instance.

        Args:
            paths: A folder (searched recursively), a glob, a file, a URL, or several of these; also STAC
                items and item collections of pystac, or JSON files of these, whose assets lie here: dates
                are then the items'.
            bands: Bands in the order wanted, by name (as the file describes them, else B1, B2, ...;
                as the file names tell for one file a band) or position from 1. All by default. An
                alpha band is never one.
            crs: The coordinate reference system (CRS) of the dataset, by default the first
                scene's. Scenes in another are warped to it.
            res: Pixel size, or (x, y) sizes, in units of *crs*. By default the first scene's.
            band_regex: Finds the band in the names of single-band files, in a group ``band``.
            date_regex: Finds the date in file names, in a group ``date``. The default takes
                20120731 and 2018-10-13 anywhere, and 1985 if that is all of the name.
            zero_is_nodata: Whether pixels with 0 in all bands are invalid even if no file says so.
            skip_unreadable: Whether to go on, with a warning, without files that cannot be used, be
                they damaged, without CRS or place, or of other bands; each is then read through
                once, to find damage before training does.
            transforms: Applied to each sample.
            cache: Whether to keep files open between reads.
            nodata: Fill value that files do not declare, such as 255 around a scene: pixels that have
                it in all bands are invalid. Files that declare one keep theirs.
            file_crs: The CRS of files that state none, such as EPSG:32633 (*crs* is what all are
                warped to). Files that state one keep theirs.
            keep_dtype: Whether the images of chips keep the type of the files, where it is uint8, uint16
                or int16 in all of them, and values that are interpolated are rounded: for loaders that move
                a quarter or a half of the bytes to a device, which makes float32 of them there.

        Raises:
            DatasetNotFoundError: If *paths* hold no raster.
            ValueError: If a path does not exist, or files cannot be used, with all their names.
        """
        self.paths: Any = paths
        self.transforms = transforms
        self.cache = cache
        self.keep_dtype = keep_dtype
        given, dates = expand_items(paths)
        files = find_rasters(given)
        if not files:
            raise DatasetNotFoundError(self)
        declared = Declared(zero_is_nodata, nodata, file_crs)
        self._reader = SceneReader(128 if cache else 0, skip_unreadable)
        wanted = None if crs is None else CRS.from_user_input(crs).to_wkt()
        with _nothing_collected():
            found, bad = sift_scenes(
                files, bands, band_regex, date_regex, declared, thorough=skip_unreadable
            )
            self._place(date_scenes(found, dates), wanted, res, bad, skip_unreadable)

    def _place(
        self,
        scenes: Sequence[Scene],
        crs: str | None,
        res: float | tuple[float, float] | None,
        bad: Mapping[str, str],
        skip: bool | None = None,
    ) -> None:
        """Bring all scenes to the dataset's CRS and resolution and build the index."""
        sizes = (float(res), float(res)) if isinstance(res, int | float) else res
        if sizes is not None and min(sizes) <= 0:
            raise ValueError(
                f'res={res} is not a pixel size: give units of the CRS above 0'
            )
        laid, wkt, sizes, misplaced = lay_out(scenes, crs, sizes)
        tell_bad({**bad, **misplaced}, skip)
        if not laid:
            raise ValueError(
                f'none of the rasters in paths={self.paths!r} can be used (see the warning): at least one '
                'scene must be whole; replace the files'
            )
        self.bands = laid[0].bands
        self._res = (float(sizes[0]), float(sizes[1]))
        self.scenes = tuple(laid)
        # Asking GeoPandas what is where costs more than reading it: x, y and t (ns) of all scenes
        corners = [(*s.bounds, s.start.value, s.stop.value) for s in self.scenes]
        corners = np.array(corners, float)
        self._lows, self._highs = corners[:, [0, 1, 4]], corners[:, [2, 3, 5]]
        dates = [(scene.start, scene.stop) for scene in self.scenes]
        self.index = GeoDataFrame(
            {'filepath': [scene.files[0] for scene in self.scenes]},
            index=pd.IntervalIndex.from_tuples(dates, closed='both', name='datetime'),
            geometry=shapely.box(*corners[:, :4].T),
            crs=wkt,
        )
        self._wkt, self._crs = wkt, CRS.from_wkt(wkt)
        # NumPy's of the same name, once: asking all scenes takes longer than a read
        self._chip_dtype = np.dtype(str(self.dtype).removeprefix('torch.'))
        self._bounds = super().bounds

    @property
    def bounds(self) -> tuple[slice, slice, slice]:
        """Bounds of the index in x, y and t."""
        return self._bounds

    @property
    def crs(self) -> CRS:
        """The coordinate reference system (CRS) of the dataset."""
        return self._crs

    @crs.setter
    def crs(self, new_crs: CRS) -> None:
        """Warp all scenes to another CRS, as composing with another dataset does."""
        if new_crs != self.crs:
            self._place(self.scenes, new_crs.to_wkt(), None, {})

    @property
    def res(self) -> tuple[float, float]:
        """Pixel size (x, y) in units of the CRS."""
        return self._res

    @res.setter
    def res(self, new_res: float | tuple[float, float]) -> None:
        """Resample all scenes, as composing with another dataset does."""
        if new_res not in (self._res, self._res[0]):
            self._place(self.scenes, self._wkt, new_res, {})

    @property
    def files(self) -> list[str]:
        """All files that are read."""
        return sorted(path for scene in self.scenes for path in scene.files)

    @property
    def dtype(self) -> torch.dtype:
        """The type of ``image``, of chips."""
        types = {scene.dtype for scene in self.scenes} if self.keep_dtype else set()
        kept = len(types) == 1 and types <= KEPT
        return getattr(torch, types.pop()) if kept else torch.float32

    def __and__(self, other: GeoDataset) -> IntersectionDataset:
        """Intersect with another dataset, combining ``valid`` of both.

        Args:
            other: Another dataset.

        Returns:
            A dataset of what is in both.
        """
        return IntersectionDataset(self, other, collate_fn=concat_scenes)

    def __getitem__(self, index: GeoSlice | Chip) -> Sample:
        """Read a sample.

        Args:
            index: Either [xmin:xmax:xres, ymin:ymax:yres, tmin:tmax:tres] in units of the CRS,
                where all scenes there and then are merged, the first valid pixel in the order of
                the files winning; or a :class:`Chip`.

        Returns:
            ``image`` and ``valid``. With a slice also TorchGeo's ``bounds`` and ``transform``
            (float32: never georeference by them). With a chip also ``scene``, its scenes, and
            ``window`` (col, row, width, height), both long; a chip of several dates has ``image``
            (T, C, H, W), ``valid`` (T, H, W) and ``scene`` (T).

        Raises:
            IndexError: If no scene is at *index*.
            ValueError: If a file cannot be read any more.
        """
        sample = self._chip(index) if isinstance(index, Chip) else self._slice(index)
        return sample if self.transforms is None else self.transforms(sample)

    def plot(
        self,
        sample: Sample,
        show_titles: bool = True,
        suptitle: str | None = None,
        **options: Any,
    ) -> 'Figure':
        """Draw a sample, and what was predicted of it.

        Args:
            sample: As of this dataset, raw or in [0, 1]; with ``prediction`` (H, W) this is drawn beside.
            show_titles: Whether to say which is which.
            suptitle: Title of all.
            **options: Of :func:`~cmid_geo.plots.samples.sample_figure`, such as ``names`` of classes.

        Returns:
            The figure.
        """
        which = torch.atleast_1d(torch.as_tensor(sample.get('scene', []))).tolist()
        dates = [self.scenes[n].date for n in which if n < len(self.scenes)]
        known: dict[str, Any] = {
            'bands': self.bands,
            'dates': dates if all(dates) else None,
        }
        return sample_figure(sample, show_titles, suptitle, **(known | options))

    def validity(self, scene: int, cells: int = 512) -> Bools | None:
        """Map roughly where a scene is valid, from a decimated read.

        Args:
            scene: Index of the scene.
            cells: At most so many cells on a side.

        Returns:
            Bool (rows, cols) over all of the scene; None if no pixel in it can be invalid.

        Raises:
            ValueError: If a file cannot be read any more.
        """
        return self._reader.validity(self.scenes[scene], cells)

    def close(self) -> None:
        """Close the files that this process keeps open; they are opened again when needed."""
        self._reader.close()

    def _chip(self, chip: Chip) -> Sample:
        """Read a window, at one date or several."""
        scenes = [self.scenes[i] for i in chip.scenes]
        target = scenes[0].grid.window(*chip.window)
        read = (self._reader.read(scene, target, self._chip_dtype) for scene in scenes)
        images, valids = zip(*read)
        several = len(scenes) > 1
        return {
            'image': torch.from_numpy(np.stack(images) if several else images[0]),
            'valid': torch.from_numpy(np.stack(valids) if several else valids[0]),
            'scene': torch.tensor(chip.scenes if several else chip.scenes[0]),
            'window': torch.tensor(chip.window),
        }

    def _slice(self, index: GeoSlice) -> Sample:
        """Read a box of ground and time."""
        x, y, t = self._disambiguate_slice(index)
        width, height = (round((s.stop - s.start) / s.step) for s in (x, y))
        if min(width, height) < 1:
            raise ValueError(
                f'index {index} is narrower than a pixel: use slices start < stop'
            )
        hits = self._overlapping(x, y, t)
        if not len(hits):
            raise IndexError(
                f'index: {index} not found in dataset with bounds: {self.bounds}'
            )
        # TorchGeo's _slice_to_tensor and rasterio's from_origin take a tenth of the time of a read
        transform = (x.step, 0.0, x.start, 0.0, -y.step, y.stop, 0.0, 0.0, 1.0)
        grid = Grid(self._wkt, Affine(*transform[:6]), width, height)
        image, valid = self._mosaic(hits, grid)
        times = (t.start.timestamp(), t.stop.timestamp(), t.step)
        box = (x.start, x.stop, x.step, y.start, y.stop, y.step, *times)
        return {
            'bounds': torch.from_numpy(np.array(box, np.float32)),
            'transform': torch.from_numpy(np.array(transform, np.float32)),
            'image': torch.from_numpy(image),
            'valid': torch.from_numpy(valid),
        }

    def _overlapping(self, x: slice, y: slice, t: slice) -> np.ndarray:
        """Return the indices of the scenes in a box of ground and time."""
        start, stop = (float(pd.Timestamp(each).value) for each in (t.start, t.stop))
        # As pd.Interval(tmin, tmax), open at its start, overlaps the closed intervals of the index
        before = self._lows < (x.stop, y.stop, np.nextafter(stop, np.inf))
        inside = before & (self._highs > (x.start, y.start, start))
        if t.step == 1:
            return np.flatnonzero(inside.all(1))
        then = np.flatnonzero(inside[:, 2])[:: t.step]
        return then[inside[then].all(1)]

    def _mosaic(self, hits: np.ndarray, target: Grid) -> tuple[Image, Bools]:
        """Merge scenes, the first valid pixel winning, until the target is full."""
        image, valid = self._reader.read(self.scenes[hits[0]], target)
        for hit in hits[1:]:
            if valid.all():
                break
            more, also_valid = self._reader.read(self.scenes[hit], target)
            gained = also_valid & ~valid
            image[:, gained] = more[:, gained]
            valid |= gained
        return image, valid


@contextmanager
def _nothing_collected() -> Generator[None]:
    """Keep the garbage collector off: of a million new objects all stay, and it takes a third of the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
