# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Sample scenes: real aerial and satellite imagery of several dates, downloaded at first use."""

import hashlib
import os
from pathlib import Path

from ..downloads import download as download_file
from ..downloads import forget_tag, one_at_a_time

#: Where the files lie, as they are named here.
URL = 'https://raw.githubusercontent.com/opengeos/data/main/'

#: SHA-256 of each file.
HASHES = {
    'naip/m_4709963_se_14_1_20090818.tif': '568f0d3dc3118d6df63510361db6c627b81541ad4c65122caf54e18030fc7100',
    'naip/m_4709963_se_14_1_20100629.tif': '9d9033eb670025c10c0ce3deff5112aa08aad64b56c5a28f99649cefccf9899b',
    'naip/m_4709963_se_14_1_20120731.tif': '695ff3bef666f84b9d8bee8292c21be1edf5fbd52b0db839a40a949403799dc4',
    'naip/m_4709963_se_14_1_20140720.tif': 'cbb65d34c3f8ad566800677d1f0ba15b221305e46b9873ddb20b5fc922ab6104',
    'naip/m_4709963_se_14_1_20150926.tif': 'e2f4898eaada52f53a0cf7920836a4ff42e41a05357c0f082cfbfcb048b21b9d',
    'naip/m_4709963_se_14_1_20160816.tif': '6e60094af5a5b605178277831a0bb5e28650ef4729cb5eb91ac94ec5643462b4',
    'naip/m_4709963_se_14_1_20170827.tif': 'd1138bef2d496ed4ff731f48def08e0695e326aeb55dc291ebb9b415e7bda2f8',
    'naip/m_4709963_se_14_1_20180716.tif': '599bb9bb7f78e9a1f3e0e712290e6423e2f513c69afc00a18ff586a6fcd4aba7',
    'naip/m_4709963_se_14_1_20190904.tif': 'bfa915b54ad6e4e4fe60ad6afdd9115ff5d00c363d4d1ccfaaa33ebb3cad2df2',
    'naip/m_4709963_se_14_1_20200831.tif': 'e8eb18475678d16a98a44f28b1c777fd0b2c56e9c8afed302a5e071e2e237f90',
    'landsat/1985.tif': '32676315c2a365776fac49e549377ea3f36345b645dacfab074ca51c4bdce13a',
    'landsat/1990.tif': '7d09817f9124affc7ab3d6ba0bb2d28761f324dd8308e660f89608a5e2b184c0',
    'landsat/1995.tif': 'f7f4cdf6148f721eefc8075b8061974833c309292b20cc23700a61adf90e827d',
    'landsat/2000.tif': '63a35f6f01c37b01831b9cf01c919ce03b1410bdce7526aabdfbfd26be960a8d',
    'landsat/2005.tif': '8f001015fa89aa3da952e293234e9f6cd6042799425ddb8980a69489b86ead16',
    'landsat/2010.tif': '987f401ab4708cb3ed2c70d6e39ec0a859df112a35f9df04663a80106f74cebc',
    'landsat/2015.tif': '974f1865cc07b9012bc9dfbde3ba9282aa4f9611ee8c683269e2c5066f655c2a',
    'landsat/2020.tif': '47d49b578bf64701f4b23fbe48096ae148e3b5f9e2e6e1e7e55354b0348faeab',
}


class SampleScenes:
    """Two small series of real scenes, to try things on.

    * ``naip``: aerial imagery of one place in North Dakota, USA, 10 dates from 2009 to 2020, 25 MB.
      Bands red, green, blue and near infrared as uint8, 934 x 723 pixels of 5 m, EPSG:26914, fill value 0.
      National Agriculture Imagery Program of the U.S. Department of Agriculture, public domain.
    * ``landsat``: satellite imagery of Pucallpa, Peru, 8 dates from 1985 to 2020, 7 MB. Bands short-wave
      infrared 1, near infrared, red and green as uint8, 697 x 377 pixels, EPSG:4326, fill value 0.
      U.S. Geological Survey, public domain.

    Both come from https://github.com/opengeos/data, which is under the MIT licence. The series have
    other places and grids, so each is a list of paths of its own, which all datasets and datamodules
    of scenes take:

    .. code-block:: python

        datamodule = SceneDataModule(SampleScenes('data').naip, patch_size=224)
        dataset = SceneDataset(SampleScenes('data').landsat, zero_is_nodata=True)

    Files are known by their SHA-256: those that are there and whole are used without a network, others
    are downloaded, also in place of broken ones. Processes that start together download once.

    Attributes:
        root: The folder.
        naip: Paths of the aerial images, in the order of their dates.
        landsat: Paths of the satellite images, in the order of their dates.
    """

    url = URL
    hashes = HASHES

    def __init__(
        self, root: str | Path = 'data', download: bool = True, progress: bool = True
    ) -> None:
        """Find the files, and download those that are missing or broken.

        Args:
            root: Folder of the folders ``naip`` and ``landsat``.
            download: Whether to download what is missing or broken.
            progress: Whether to show a progress bar for each download.

        Raises:
            ConnectionError: If a download fails: names the file to place by hand, and where.
            FileNotFoundError: If files are missing or broken and *download* is False.
            OSError: If the folder cannot be written.
            ValueError: If the server has other files.
        """
        self.root = Path(root).expanduser()
        missing = [name for name in self.hashes if not self._is_whole(self.root / name)]
        if missing and not download:
            raise FileNotFoundError(
                f'{self.root} lacks {len(missing)} of {len(self.hashes)} sample scenes or has broken ones, '
                f'the first {self.root / missing[0]}: give download=True, or download '
                f'{self.url}{missing[0]} and so on and place them there'
            )
        for name in missing:
            self._fetch(name, progress)
        self.naip = self._paths('naip')
        self.landsat = self._paths('landsat')

    def __len__(self) -> int:
        """Return the number of files."""
        return len(self.hashes)

    def _paths(self, series: str) -> list[str]:
        """Paths of a series, in the order of the dates that the names hold."""
        names = sorted(name for name in self.hashes if name.startswith(f'{series}/'))
        return [str(self.root / name) for name in names]

    def _fetch(self, name: str, progress: bool) -> None:
        """Download a file, if no other process did so meanwhile."""
        path, url = self.root / name, f'{self.url}{name}'
        with one_at_a_time(path, 'give another root='):
            if self._is_whole(path):
                return
            part = download_file(url, path, progress)
            if (found := _hash(part)) != self.hashes[name]:
                part.unlink()
                forget_tag(path)
                raise ValueError(
                    f'{url} has the SHA-256 {found}, not {self.hashes[name]}: the server has another file '
                    f'now, which was not kept; place the one meant as {path}'
                )
            os.replace(part, path)
            forget_tag(path)

    def _is_whole(self, path: Path) -> bool:
        """Whether a file is there with the content that is known."""
        name = path.relative_to(self.root).as_posix()
        return path.is_file() and _hash(path) == self.hashes[name]


def _hash(path: Path) -> str:
    """SHA-256 of a file's content."""
    with open(path, 'rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()
