# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""What all tests share."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Processes that share the cores may not each take all of them
if 'PYTEST_XDIST_WORKER' in os.environ:
    os.environ.setdefault('OMP_NUM_THREADS', '1')

import matplotlib
import pytest
import torch
from chips import SMALL

# Before the package is imported: its shape annotations are checked in the tests only
from jaxtyping import install_import_hook

install_import_hook('cmid_geo', 'checker.check')
matplotlib.use('Agg')


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def make_task() -> Callable[..., Any]:
    from cmid_geo.tasks import CMID

    def make(**options: Any) -> CMID:
        torch.manual_seed(0)
        return CMID(**(SMALL | options))

    return make


@pytest.fixture
def real_data() -> Path:
    folder = os.environ.get('CMID_GEO_DATA')
    if not folder:
        pytest.skip('set CMID_GEO_DATA to a folder of real imagery to run this test')
    return Path(folder)


@pytest.fixture
def unused_port() -> int:
    # Asking the system for a free one would need a socket, which tests may not open
    return 20000 + os.getpid() % 20000
