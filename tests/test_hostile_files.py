# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""A few of the damaged files of ``benchmarks/hostile_files.py``."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / 'benchmarks' / 'hostile_files.py'


@pytest.mark.parametrize(
    ('kind', 'count', 'good'), [('geotiffs', 60, 'read'), ('weights', 40, 'refused')]
)
def test_no_damaged_file_is_a_fault(kind: str, count: int, good: str) -> None:
    command = [sys.executable, SCRIPT, kind, f'--count={count}', '--seconds=60']
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    told = dict(re.findall(r'([a-z][a-z ]*): (\d+)', done.stdout.splitlines()[-1]))
    # The damage is the same each time: enough of it is noticed, and some is none
    assert sum(map(int, told.values())) == count
    assert int(told['refused']) >= count // 2 and int(told[good]) > 0
