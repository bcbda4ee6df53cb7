# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Names of bands: the same band under several names."""

import re
from collections.abc import Sequence

#: Names for the same band; numbers of sensors' bands are left as they are.
ALIASES = {'r': 'red', 'g': 'green', 'b': 'blue', 'n': 'nir', 'nearinfrared': 'nir', 'swir1': 'swir16',
           'swir2': 'swir22', 'coastalaerosol': 'coastal'}  # fmt: skip

#: Sentinel-2's bands that other sensors have too, by the common names, written plainly; of numbers that Landsat 8 and
#: the harmonised products of both give to other bands (5, 6, 7, 9, 11) nothing is said.
SENTINEL2 = {'b1': 'coastal', 'b2': 'blue', 'b3': 'green', 'b4': 'red', 'b8': 'nir', 'b8a': 'nir8',
             'b12': 'swir22'}  # fmt: skip


def plain_band(name: str) -> str:
    """Write a band's name in one way.

    Args:
        name: As it is in some file or enum.

    Returns:
        In lower case, without signs and leading zeros.
    """
    plain = re.sub(r'[^a-z0-9]', '', name.lower())
    plain = re.sub(r'(?<![0-9])0+(?=[0-9])', '', plain)
    return ALIASES.get(plain, plain)


def common_names(names: Sequence[str]) -> list[str]:
    """Write bands' names in one way, those of Sentinel-2 as other sensors' are.

    Numbers alone tell no sensor: B2 is blue to Sentinel-2 and green to Landsat 7. Sentinel-2 is
    told by its zeros (B02), by B8A, or by B8 beside none but visible bands.

    Args:
        names: Of all bands of an image.

    Returns:
        Such as 'red', 'green', 'blue', 'nir'; others as :func:`plain_band` writes them.
    """
    plain = [plain_band(name) for name in names]
    zeros = any(re.fullmatch(r'b0\d', name.lower()) for name in names)
    visible = {'b8'} <= set(plain) <= {'b2', 'b3', 'b4', 'b8'}
    known = SENTINEL2 if zeros or visible or 'b8a' in plain else {}
    return [known.get(name, name) for name in plain]


def find_bands(wanted: Sequence[str], given: Sequence[str]) -> list[int | None]:
    """Find bands by name.

    Args:
        wanted: Names of the bands to find: 'R' is 'red', 'B04' is 'B4', and of Sentinel-2 'red'.
        given: Names of the bands that there are.

    Returns:
        Place of each wanted band among the given ones, from 0; None where it is not there.
    """
    ways = list, _plain_names, common_names
    known = [{name: i for i, name in enumerate(way(given))} for way in ways]
    return [
        next((places[n] for places, n in zip(known, each) if n in places), None)
        for each in zip(*(way(wanted) for way in ways), strict=True)
    ]


def names_of(bands: object) -> list[str]:
    """The names in what is known of bands.

    Args:
        bands: Names; positions in files that do not name theirs; or None.

    Returns:
        The names; none if it holds none.
    """
    several = list(bands) if isinstance(bands, list | tuple) else []
    return several if all(isinstance(band, str) for band in several) else []


def _plain_names(names: Sequence[str]) -> list[str]:
    return [plain_band(name) for name in names]
