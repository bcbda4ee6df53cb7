# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""File names: rasters of folders, and bands of one scene."""

import glob
import os
import re
import warnings
from collections.abc import Iterable

#: TorchGeo's of the same name, whose import takes seconds.
Path = str | os.PathLike[str]

#: Extensions that a folder is searched for, lower case.
EXTENSIONS = ('.tif', '.tiff', '.gtiff', '.jp2', '.img')

#: Extensions of files that read others: only a path, URL or glob that ends so means them.
VIRTUAL = '.vrt'

#: Extensions of pictures, which lie nowhere on Earth.
PICTURES = ('.png', '.jpg', '.jpeg', '.bmp', '.webp')

#: A day such as 20120731 or 2018-10-13 anywhere in the stem, or a year that is the whole stem.
#: The digits must stand alone: the 4709963 of NAIP's ``m_4709963_se_14_1_20120731`` is no date.
DEFAULT_DATE_REGEX = (
    r'(?P<date>(?<!\d)(?:19|20)\d{2}(?P<sep>[-_]?)(?:0[1-9]|1[0-2])(?P=sep)'
    r'(?:0[1-9]|[12]\d|3[01])(?!\d)|^(?:19|20)\d{2}$)'
)

#: A band token that stands alone: B02, B8A, b4, or a radar polarisation.
DEFAULT_BAND_REGEX = r'(?i)(?<![a-z0-9])(?P<band>B\d{1,2}A?|VV|VH|HH|HV)(?![a-z0-9])'


def is_remote(path: str) -> bool:
    """Tell whether a path is for GDAL alone to resolve.

    Args:
        path: A path or URL.

    Returns:
        True for URLs (``https://``, ``s3://``) and GDAL's virtual file systems (``/vsicurl/``).
    """
    return '://' in path or path.startswith('/vsi')


def find_rasters(paths: Path | Iterable[Path]) -> list[str]:
    """List the rasters of folders, globs, files and URLs.

    Args:
        paths: A folder (searched recursively), a glob, a file, a URL, or several of these.

    Returns:
        Distinct paths, sorted, so that every process sees one order. VRTs, which may read any file
        or URL, are among them only where a path ends in ``.vrt``; those in folders are left out
        with a warning.

    Raises:
        ValueError: If a path is neither found nor remote, or a folder holds only pictures.
    """
    several = [paths] if isinstance(paths, str | os.PathLike) else paths
    found: set[str] = set()
    for path in (str(os.fspath(path)) for path in several):
        listed = is_remote(path) or os.path.exists(path)
        expanded = os.path.expanduser(path)
        matches = [path] if listed else glob.glob(expanded, recursive=True)
        if not matches:
            raise ValueError(
                f'no file matches {path!r}: paths must be an existing folder, file or glob, or '
                'a URL; check the spelling and the current folder'
            )
        named = listed or path.lower().endswith(VIRTUAL)
        for match in matches:
            is_folder = os.path.isdir(match)
            for file in _walk(match) if is_folder else [match]:
                if file.lower().endswith(VIRTUAL) and (is_folder or not named):
                    warnings.warn(
                        f'left out {file!r}: a VRT may read any other file or URL; if you trust it, name it '
                        'in paths',
                        stacklevel=2,
                    )
                else:
                    found.add(file)
    return sorted(found)


def _walk(folder: str) -> list[str]:
    """List the rasters and VRTs below a folder, hidden files excepted."""
    files = [
        os.path.join(root, name)
        for root, _, names in os.walk(folder)
        for name in names
        if not name.startswith('.')
    ]
    rasters, pictures, virtual = (
        [path for path in files if path.lower().endswith(ending)]
        for ending in (EXTENSIONS, PICTURES, VIRTUAL)
    )
    if pictures and not rasters:
        raise ValueError(
            f'{folder!r} holds {len(pictures)} pictures such as {pictures[0]!r} and no raster with a place on '
            f'Earth ({", ".join(EXTENSIONS)}): scenes, masks and dates are matched by where they lie; write '
            'each to a GeoTIFF with a place, an image and its mask with the same: gdal_translate -a_srs '
            'EPSG:<code> -a_ullr <left> <top> <right> <bottom> IN OUT.tif'
        )
    return rasters + virtual


def stem(path: str) -> str:
    """Return a file's name without folder, extension and URL query.

    Args:
        path: A path or URL.

    Returns:
        The stem, such as ``1985`` for ``landsat/1985.tif``.
    """
    return os.path.splitext(os.path.basename(without_query(path)))[0]


def without_query(path: str) -> str:
    """Return a path, of a URL without its query.

    Args:
        path: A path or URL.

    Returns:
        The part that may end like a file's name.
    """
    return path.split('?')[0] if '://' in path else path


def group_bands(files: Iterable[str], regex: str) -> list[dict[str, str]]:
    """Group the files whose names are equal apart from the band's token.

    Args:
        files: Paths, sorted.
        regex: A regular expression with a group ``band``, searched for in the stem. All it
            matches is disregarded when names are compared, so it may span ``_B02_10m``.

    Returns:
        One mapping a candidate scene, from band name to path in the order of the bands; a single
        entry with the name '' for a file that stands alone.

    Raises:
        ValueError: If *regex* has no group ``band``.
    """
    pattern = compile_regex(regex, 'band')
    groups: dict[tuple[str, ...], dict[str, str]] = {}
    for path in files:
        key, band, name = (path,), '', stem(path)
        folder, ending = os.path.dirname(path), os.path.splitext(path)[1]
        # The last match counts
        for match in pattern.finditer(name):
            # B02.tif beside B02.jp2 is a second copy of a band, not a second band
            key = (folder, name[: match.start()], name[match.end() :], ending)
            band = match['band']
        groups.setdefault(key, {})[band] = path
    return [
        {band: group[band] for band in sorted(group, key=_band_order)}
        if len(group) > 1
        else {'': next(iter(group.values()))}
        for group in groups.values()
    ]


def compile_regex(regex: str, group: str) -> re.Pattern[str]:
    """Compile the expression that finds the date or the band.

    Args:
        regex: The expression.
        group: Name of the group that must hold what is found: date or band.

    Returns:
        The compiled expression.

    Raises:
        ValueError: If there is no such group.
    """
    pattern = re.compile(regex)
    if group not in pattern.groupindex:
        raise ValueError(
            f'{group}_regex={regex!r} has no group named {group}: write the {group} as (?P<{group}>...)'
        )
    return pattern


def _band_order(band: str) -> tuple[int, str]:
    """Order bands as their sensor does: B8A between B08 and B09."""
    digits = re.search(r'\d+', band)
    return (int(digits.group()) if digits else 0, re.sub(r'\d', '', band))


def printable(name: str) -> str:
    """Make a name fit for a line of text: what cannot be printed is written as its escape.

    Args:
        name: Of a band, class or file, whatever is in it.

    Returns:
        The name with, say, backslash and n in the place of a line break.
    """
    return ''.join(
        character if character.isprintable() else repr(character)[1:-1]
        for character in name
    )
