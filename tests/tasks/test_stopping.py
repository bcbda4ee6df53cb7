# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Runs that are killed, or stopped by signals, in processes of their own."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from runs import differences, run

from cmid_geo.tasks.checkpoint_files import find_checkpoint

PROGRAM = Path(__file__).parent.parent / 'helpers' / 'runs.py'
ROOT = Path(__file__).parent.parent.parent


def start(
    folder: Path, epochs: int = 3, devices: int = 1, **environment: str
) -> 'subprocess.Popen[str]':
    kept = folder / 'kept'
    kept.mkdir(exist_ok=True)
    words = [
        sys.executable,
        str(PROGRAM),
        'pretraining',
        str(folder),
        str(kept),
        str(epochs),
        str(devices),
    ]
    paths = os.pathsep.join([str(ROOT), *sys.path])
    with open(folder / 'errors.txt', 'a') as errors:
        return subprocess.Popen(
            words,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=os.environ | {'PYTHONPATH': paths} | environment,
        )


def wait_for(process: 'subprocess.Popen[str]', batch: int) -> None:
    assert process.stdout
    for line in process.stdout:
        if line.strip() == str(batch):
            return
    pytest.fail(f'the run ended before batch {batch}')


def test_three_kills_change_nothing(tmp_path: Path) -> None:
    for moment in (1, 4, 6):
        process = start(tmp_path)
        wait_for(process, moment)
        process.kill()
        assert process.wait() == -signal.SIGKILL
    assert start(tmp_path).wait() == 0, (tmp_path / 'errors.txt').read_text()
    ended = torch.load(tmp_path / 'kept' / 'ended.pt')
    # Which chips are drawn from one region depends on the workers
    alone = run('pretraining', tmp_path, None, [], 2, max_epochs=3)
    assert not differences(alone, ended)


@pytest.mark.parametrize('name', ['SIGTERM', 'SIGINT', 'SIGUSR1'])
def test_signals_save_and_end_with_their_code(name: str, tmp_path: Path) -> None:
    number = getattr(signal, name)
    process = start(tmp_path, 2000)
    wait_for(process, 2)
    process.send_signal(number)
    process.communicate(timeout=120)
    assert process.returncode == (130 if name == 'SIGINT' else 143)
    assert f'stopped by {name}' in (tmp_path / 'errors.txt').read_text()
    path = find_checkpoint(tmp_path / 'kept')
    assert path.name == 'last.ckpt'
    assert torch.load(path, weights_only=True)['global_step'] >= 2


@pytest.mark.parametrize('fails', [False, True])
def test_slurm_starts_a_job_again(fails: bool, tmp_path: Path) -> None:
    program, asked = tmp_path / 'bin' / 'scontrol', tmp_path / 'asked.txt'
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$*" >> {asked}\nexit {int(fails)}\n')
    program.chmod(0o755)
    names = ('PROCID', 'LOCALID', 'NODEID')
    slurm = {
        'JOB_ID': '42',
        'JOB_NAME': 'pretrain',
        'NTASKS': '1',
        'NODELIST': 'localhost',
    }
    given = {
        f'SLURM_{name}': each
        for name, each in (slurm | dict.fromkeys(names, '0')).items()
    }
    path = os.pathsep.join([str(program.parent), os.environ['PATH']])
    process = start(tmp_path, 2000, PATH=path, **given)
    wait_for(process, 2)
    process.send_signal(signal.SIGUSR1)
    process.communicate(timeout=120)
    assert process.returncode == 143
    assert asked.read_text() == 'requeue 42\n'
    told = 'scontrol requeue 42 failed (1): start the job again yourself'
    assert (told in (tmp_path / 'errors.txt').read_text()) == fails
    # Lightning's own would be taken up by any later job
    assert not list(tmp_path.rglob('hpc_ckpt*'))
    assert find_checkpoint(tmp_path / 'kept').name == 'last.ckpt'


@pytest.mark.parametrize('devices', [2, 4])
def test_a_signal_to_one_of_several_processes_ends_all(
    devices: int, tmp_path: Path
) -> None:
    """And what is resumed ends as if there had been none."""
    alone, stopped = tmp_path / 'alone', tmp_path / 'stopped'
    for folder in (alone, stopped):
        folder.mkdir()
    assert start(alone, 2, devices).wait() == 0, (alone / 'errors.txt').read_text()
    process = start(stopped, 2, devices)
    wait_for(process, 1)
    children = Path(f'/proc/{process.pid}/task/{process.pid}/children').read_text()
    others = [
        int(child)
        for child in children.split()
        if 'runs.py' in Path(f'/proc/{child}/cmdline').read_text()
    ]
    assert len(others) == devices - 1
    os.kill(others[-1], signal.SIGTERM)
    process.communicate(timeout=120)
    assert process.returncode in (128 + signal.SIGTERM, -signal.SIGTERM)
    for other in others:
        status = Path(f'/proc/{other}/status')
        # Nobody may have asked how it ended
        assert not status.exists() or 'State:\tZ' in status.read_text()
    assert find_checkpoint(stopped / 'kept').name == 'last.ckpt'
    assert start(stopped, 2, devices).wait() == 0, (stopped / 'errors.txt').read_text()
    ends = [torch.load(folder / 'kept' / 'ended.pt') for folder in (alone, stopped)]
    assert ends[0]['step'] == ends[1]['step'] == 2 * 3
    # Four resume, but not bit-identical, see benchmarks/results/resuming.md
    if devices == 2:
        assert not differences(*ends)
