# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""The run-time type checker of the tests: beartype, for which an int may stand for a float."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
