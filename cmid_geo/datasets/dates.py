# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Dates that file names state."""

import functools
import re

import pandas as pd
from torchgeo.datasets.utils import disambiguate_timestamp

from .filenames import DEFAULT_DATE_REGEX, compile_regex, stem

#: Names of Sentinel-2 until 2016 begin with when a product was made; when it was sensed follows a V
#: in the name of a product, and is not in those of its files.
_OLD_SENTINEL = re.compile(r'(?i)^S2[A-D]_OPER_')
_SENSED = re.compile(r'(?i)S2[A-D]_OPER_PRD_[^/\\]*_V(\d{8}T\d{6})')

#: The strptime format of a date by its number of digits.
_FORMATS = {
    4: '%Y',
    6: '%Y%m',
    7: '%Y%j',
    8: '%Y%m%d',
    12: '%Y%m%d%H%M',
    14: '%Y%m%d%H%M%S',
}


def parse_dates(path: str, regex: str) -> tuple[pd.Timestamp, pd.Timestamp]:
    """Read the interval of time that a file's name states.

    Args:
        path: A path or URL.
        regex: A regular expression with a group ``date``, searched for in the stem. The group
            holds, apart from separators, YYYY, YYYYMM, YYYYDDD, YYYYMMDD or that and a time.

    Returns:
        First and last instant of the day (month, year). All of time if there is no date. With the
        default *regex*, old names of Sentinel-2, such as S2A_OPER_MSI_L1C_TL_SGS__20151206T...,
        give the day of sensing that the name or that of a folder above states after a V, and
        no date otherwise: that in the name is when the product was made.

    Raises:
        ValueError: If *regex* has no group ``date``.
    """
    pattern, name = compile_regex(regex, 'date'), stem(path)
    if regex == DEFAULT_DATE_REGEX and _OLD_SENTINEL.match(name):
        name = ''.join(_SENSED.findall(path)[-1:])
    for match in pattern.finditer(name):
        digits = re.sub(r'\D', '', match['date'] or '')
        try:
            return _day(digits)
        except (KeyError, ValueError):
            continue  # such as 20190231: digits that only look like a date
    return pd.Timestamp.min, pd.Timestamp.max


@functools.lru_cache(maxsize=2**16)
def _day(digits: str) -> tuple[pd.Timestamp, pd.Timestamp]:
    """Read the interval of digits; many scenes are of one day."""
    return disambiguate_timestamp(digits, _FORMATS[len(digits)])
