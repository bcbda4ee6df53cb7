# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""GDAL's options: its caches, and how it reads by URL.

Those for URLs are of https://github.com/pangeo-data/cog-best-practices.
"""

import os
from collections.abc import Generator
from contextlib import contextmanager

import rasterio

#: For all that the command does, as environment variables.
COMMAND = {
    'GDAL_MAX_RAW_BLOCK_CACHE_SIZE': '200000000',
    'GDAL_SWATH_SIZE': '200000000',
    'VSI_CURL_CACHE_SIZE': '200000000',
}

#: To open a file by URL: its folder is not listed, which takes long. Beside a local file lie its masks.
OPENING_REMOTE = {'GDAL_DISABLE_READDIR_ON_OPEN': 'EMPTY_DIR'}

#: To describe a file: TorchGeo reads CRS as WKT2, too. Beside each file GDAL would list its whole
#: folder, where it needs to know of a few names.
DESCRIBING = {'OSR_WKT_FORMAT': 'WKT2_2018', 'GDAL_DISABLE_READDIR_ON_OPEN': 'TRUE'}

#: For maps: the block cache in bytes, whose default is a twentieth of all memory.
MAPS = {'GDAL_CACHEMAX': 2**27}

#: For maps of scenes that are read by URL.
REMOTE_MAPS = {
    'GDAL_INGESTED_BYTES_AT_OPEN': '32768',
    'GDAL_HTTP_MERGE_CONSECUTIVE_RANGES': 'YES',
    'GDAL_HTTP_MULTIPLEX': 'YES',
    'GDAL_HTTP_VERSION': '2',
    'GDAL_HTTP_MAX_RETRY': '4',
    'GDAL_HTTP_RETRY_DELAY': '1',
    'VSI_CACHE': 'TRUE',
    'VSI_CACHE_SIZE': '5000000',
}


@contextmanager
def gdal_settings(remote: bool = False) -> Generator[None]:
    """Bound GDAL's cache and, for URLs, read as its documentation recommends.

    Args:
        remote: Whether a scene is read by URL.

    Yields:
        Nothing. What the user set is kept.
    """
    wanted = {**MAPS, **(REMOTE_MAPS if remote else {})}
    given = {*os.environ, *(rasterio.env.getenv() if rasterio.env.hasenv() else ())}
    with rasterio.Env(**{k: v for k, v in wanted.items() if k not in given}):
        yield


def bound_cache(size: int, worker: int = 0) -> None:
    """Bound the block cache of this process for good, unless the user did.

    By default it takes a twentieth of all memory, in each worker of a loader.

    Args:
        size: In bytes.
        worker: Number of the worker, which a loader tells.
    """
    if 'GDAL_CACHEMAX' not in os.environ:
        # Left on purpose: each environment within hands this one back
        rasterio.Env(GDAL_CACHEMAX=size).__enter__()
