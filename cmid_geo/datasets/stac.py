# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""STAC items: their files, and the dates that they state."""

import glob
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import unquote

import pandas as pd

from .filenames import Path, is_remote
from .scene import Scene

if TYPE_CHECKING:
    from pystac import Item, ItemCollection

#: Endings of files that hold an item or several.
ENDINGS = ('.json', '.geojson')

#: Beginnings of the media types of rasters.
RASTERS = ('image/tiff', 'image/vnd.stac.geotiff', 'image/jp2')

#: Roles of assets that are no scene, whatever their type.
OTHERS = {'thumbnail', 'overview', 'metadata', 'visual'}

#: First and last instant of a scene by its file.
Dates = dict[str, tuple[pd.Timestamp, pd.Timestamp]]


def expand_items(
    paths: 'Path | Item | ItemCollection | Iterable[Path | Item | ItemCollection]',
) -> tuple[Any, Dates]:
    """Put the files of STAC items in the place of the items.

    Of an item's assets those with the role 'data' are its files, or without that role those with
    the media type of a GeoTIFF or JPEG 2000.

    Args:
        paths: Paths, and among them items or item collections of pystac or JSON files of these.

    Returns:
        Paths, as they were given if there is no item; and the dates of the items' files.

    Raises:
        ImportError: If pystac is missing.
        ValueError: If a JSON file holds no item, or an item no raster here.
    """
    alone = isinstance(paths, str | os.PathLike) or _is_item(paths)
    several: list[Any] = [paths] if alone else list(cast(Any, paths))
    several = [part for each in several for part in _matches(each)]
    if not any(_is_item(each) or _is_json(each) for each in several):
        # A one-way iterable is used up
        return (paths if alone else several), {}
    files: list[Any] = []
    dates: Dates = {}
    for each in several:
        if not (_is_item(each) or _is_json(each)):
            files.append(each)
            continue
        for item, folder in _items_of(each):
            found = _files_of(item, folder)
            files += found
            dates |= dict.fromkeys(found, _dates_of(item))
    return files, dates


def date_scenes(scenes: Sequence[Scene], dates: Dates) -> list[Scene]:
    """Give scenes the dates of their items.

    Args:
        scenes: As their files' names date them.
        dates: By file.

    Returns:
        The scenes; those without an item, or whose item states no date, as they were.
    """
    found = []
    for scene in scenes:
        start, stop = dates.get(scene.files[0], (pd.Timestamp.min, pd.Timestamp.max))
        known = start != pd.Timestamp.min
        found.append(replace(scene, start=start, stop=stop) if known else scene)
    return found


def _is_item(given: Any) -> bool:
    """Whether something is of pystac; without importing it where nothing is."""
    return type(given).__module__.partition('.')[0].startswith('pystac')


def _matches(given: Any) -> list[Any]:
    """The files of a pattern of items; anything else as it is."""
    if not _is_json(given) or os.path.exists(given):
        return [given]
    return sorted(glob.glob(os.path.expanduser(os.fspath(given)))) or [given]


def _is_json(given: Any) -> bool:
    return isinstance(given, str | os.PathLike) and os.fspath(given).lower().endswith(
        ENDINGS
    )


def _items_of(given: Any) -> list[tuple[Any, str | None]]:
    """Items, and the folder that their relative hrefs begin in."""
    try:
        import pystac
    except ImportError as error:
        raise ImportError('pystac is missing: pip install "cmid-geo[stac]"') from error
    if isinstance(given, pystac.Item):
        return [(given, None)]
    if isinstance(given, pystac.ItemCollection):
        return [(item, None) for item in given]
    if not isinstance(given, str | os.PathLike):
        raise ValueError(  # noqa: TRY004
            f'{given!r} is a {type(given).__name__}: give items or an item collection, such as '
            'pystac.ItemCollection(catalog.get_items(recursive=True))'
        )
    path = os.path.expanduser(os.fspath(given))
    if is_remote(path):
        raise ValueError(f'{path}: items are read from files here, download it first')
    if not os.path.isfile(path):
        raise ValueError(f'no file {path!r}: check the spelling and the current folder')
    folder = os.path.dirname(os.path.abspath(path))
    try:
        with open(path, encoding='utf-8') as file:
            content = json.load(file)
        if content.get('type') == 'Feature':
            return [(pystac.Item.from_dict(content), folder)]
        if content.get('type') == 'FeatureCollection':
            return [(each, folder) for each in pystac.ItemCollection.from_dict(content)]
    # What is off in a foreign file may raise anything
    except Exception as error:
        raise ValueError(
            f'{path} holds no STAC item that can be read ({type(error).__name__}: {error}): write it anew '
            'with pystac, or give the rasters themselves'
        ) from error
    raise ValueError(
        f'{path} holds a {content.get("type")!r}, and no STAC item or item collection: give those, or a '
        'folder of rasters'
    )


def _files_of(item: Any, folder: str | None) -> list[str]:
    """Paths of an item's rasters."""
    rasters = {
        name: asset
        for name, asset in item.assets.items()
        if not OTHERS & set(asset.roles or ())
        and (asset.media_type or RASTERS[0]).lower().startswith(RASTERS)
    }
    data = [each for each in rasters.values() if 'data' in (each.roles or ())]
    typed = [each for each in rasters.values() if each.media_type]
    found = [_local(item, each.href, folder) for each in data or typed]
    if not found:
        raise ValueError(
            f'the STAC item {item.id!r} has no raster among its assets {list(item.assets)}: give one the role '
            "'data', or the media type of a GeoTIFF"
        )
    return found


def _local(item: Any, href: str, folder: str | None) -> str:
    """Path of an asset."""
    path = unquote(href.removeprefix('file://')) if href.startswith('file://') else href
    if is_remote(path):
        raise ValueError(
            f'the STAC item {item.id!r} names {path!r}, which is not here: download it, or give the URL itself '
            'as a path'
        )
    own = item.get_self_href()
    if folder is None and own and not is_remote(own):
        folder = os.path.dirname(os.path.abspath(own))
    if not os.path.isabs(path) and folder is None:
        raise ValueError(
            f'the STAC item {item.id!r} names {path!r} and does not say where it lies itself: set it by '
            'item.set_self_href(path), or make its hrefs absolute'
        )
    path = os.path.normpath(os.path.join(folder or '', path))
    if not os.path.isfile(path):
        raise ValueError(
            f'the STAC item {item.id!r} names {path!r}, where no file is: correct the href, or bring the file '
            'there'
        )
    return path


def _dates_of(item: Any) -> tuple[pd.Timestamp, pd.Timestamp]:
    """First and last instant of an item's days; all of time where it states none."""
    common = item.common_metadata
    start, stop = common.start_datetime, common.end_datetime
    if start is None or stop is None:
        start = stop = item.datetime
    if start is None:
        return pd.Timestamp.min, pd.Timestamp.max
    # As names of files give them: whole days in UTC, without a time zone
    days = [pd.to_datetime(each, utc=True).tz_localize(None) for each in (start, stop)]
    first, last = (day.to_period('D') for day in days)
    return first.start_time.as_unit('us'), last.end_time.as_unit('us')
