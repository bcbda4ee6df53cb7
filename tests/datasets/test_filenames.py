# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

import pandas as pd
import pytest

from cmid_geo.datasets.dates import parse_dates
from cmid_geo.datasets.filenames import (
    DEFAULT_BAND_REGEX,
    DEFAULT_DATE_REGEX,
    group_bands,
)

#: An old name of a band of Sentinel-2.
MADE = 'S2A_OPER_MSI_L1C_TL_SGS__20160102T121005_A002380_T33UVR_B02.jp2'


@pytest.mark.parametrize(
    ('name', 'start', 'stop'),
    [
        ('m_4709963_se_14_1_20120731.tif', '2012-07-31', '2012-07-31'),
        ('2018-10-13, Sentinel-2B L1C, B01.tiff', '2018-10-13', '2018-10-13'),
        ('S2B_MSIL1C_20181013T153059_T18SUE.jp2', '2018-10-13', '2018-10-13'),
        ('1985.tif', '1985-01-01', '1985-12-31'),
        # Made in 2016, sensed in 2015
        (
            'S2A_OPER_PRD_MSIL1C_PDMC_20160102T142543_R108_V20151231T100408_20151231T100409.tif',
            '2015-12-31',
            '2015-12-31',
        ),
        (
            'S2A_OPER_PRD_MSIL1C_PDMC_20160102T142543_R108_V20151231T100408.SAFE/'
            + MADE,
            '2015-12-31',
            '2015-12-31',
        ),
    ],
)
def test_dates(name: str, start: str, stop: str) -> None:
    first, last = parse_dates('folder/' + name, DEFAULT_DATE_REGEX)
    assert (str(first.date()), str(last.date())) == (start, stop)


@pytest.mark.parametrize(
    'name',
    [
        'm_4709963_se.tif',
        'scene_1985.tif',
        '20190231.tif',
        '120120731.tif',
        # Tells when it was made, not when it was sensed
        MADE,
    ],
)
def test_no_date(name: str) -> None:
    assert parse_dates(name, DEFAULT_DATE_REGEX)[0] == pd.Timestamp.min


def test_own_date_regex() -> None:
    start, stop = parse_dates('x_2019_067.tif', r'(?P<date>\d{4}_\d{3})')
    assert str(start.date()) == str(stop.date()) == '2019-03-08'
    assert str(parse_dates(MADE, r'_(?P<date>\d{8})T')[0].date()) == '2016-01-02'
    with pytest.raises(ValueError, match=r'write the date as \(\?P<date>'):
        parse_dates('x.tif', r'\d{8}')


def test_groups_of_bands() -> None:
    files = [f'a/2018, L1C, {band}.tif' for band in ('B02', 'B08', 'B09', 'B8A')]
    groups = group_bands(['a/other.tif', *files], DEFAULT_BAND_REGEX)
    assert [list(group) for group in groups] == [[''], ['B02', 'B08', 'B8A', 'B09']]
    with pytest.raises(ValueError, match=r'write the band as \(\?P<band>'):
        group_bands(files, r'B\d\d')
