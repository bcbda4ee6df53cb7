# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Runs that are killed at random moments and resumed, against one that was left alone.

The words after ``--`` are those of ``cmid-geo fit``. The same run is started again and again in
a folder of its own, killed with SIGKILL after a random time, and resumed by ``--resume`` from the
newest whole checkpoint, or started anew where there is none yet. When it has come to its end, its
last checkpoint must equal that of the undisturbed run in every tensor and number, with tolerance
0. Compared are weights and memory, optimizer, schedules and step.

    python benchmarks/kill_runs.py --kills 20 -- --config configs/pretrain_tiny.yaml \
        --data.paths /data/scenes --model.in_channels 4
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

#: Every third step a checkpoint; the configuration's own callbacks stay.
SAVING = (
    '--trainer.callbacks+=lightning.pytorch.callbacks.ModelCheckpoint',
    '--trainer.callbacks.dirpath=kept',
    '--trainer.callbacks.every_n_train_steps=3',
    '--trainer.callbacks.save_last=true',
    '--trainer.logger=false',
    '--trainer.enable_progress_bar=false',
)


def start(words: list[str], folder: Path) -> subprocess.Popen[bytes]:
    """Start a run in a folder, or resume the one in it."""
    resume = ['--resume', '.'] if any(folder.rglob('*.ckpt')) else []
    command = [sys.executable, '-m', 'cmid_geo', 'fit', *words, *SAVING, *resume]
    with open(folder / 'log.txt', 'ab') as log:
        log.write(f'\n===== {" ".join(resume) or "anew"}\n'.encode())
        log.flush()
        return subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)


def differences(first: Any, second: Any, name: str = '') -> list[str]:
    """Names of what differs between two checkpoints."""
    if isinstance(first, dict) and isinstance(second, dict):
        found = [] if first.keys() == second.keys() else [f'{name}: names']
        for key in first.keys() & second.keys():
            found += differences(first[key], second[key], f'{name}/{key}')
        return found
    if isinstance(first, list | tuple) and len(first) == len(second):
        pairs = enumerate(zip(first, second, strict=True))
        return [d for n, pair in pairs for d in differences(*pair, f'{name}/{n}')]
    if isinstance(first, torch.Tensor):
        return [] if torch.equal(first, second) else [name]
    return [] if first == second else [f'{name}: {first} and {second}']


def ended(folder: Path) -> dict[str, Any]:
    """What the last checkpoint of a run holds, without clocks and paths."""
    files = sorted((folder / 'kept').glob('*.ckpt'), key=lambda p: p.stat().st_mtime_ns)
    content = torch.load(files[-1], map_location='cpu', weights_only=True)
    kept = ('state_dict', 'optimizer_states', 'lr_schedulers', 'global_step')
    return {name: content[name] for name in kept}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--kills', type=int, default=20)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--out', type=Path, default=Path('output/kill_runs'))
    parser.add_argument('words', nargs='+')
    given = parser.parse_args()
    # Runs have folders of their own
    words = [
        os.path.abspath(word) if os.path.exists(word) else word for word in given.words
    ]
    shutil.rmtree(given.out, ignore_errors=True)
    alone = given.out / 'alone'
    alone.mkdir(parents=True)
    began = time.monotonic()
    if start(words, alone).wait():
        sys.exit(f'the undisturbed run failed: see {alone / "log.txt"}')
    seconds = time.monotonic() - began
    expected = ended(alone)
    print(f'undisturbed: {seconds:.0f} s, {expected["global_step"]} steps', flush=True)

    draw, kills, runs, equal = random.Random(given.seed), 0, 0, 0
    while kills < given.kills:
        folder = given.out / f'run{runs}'
        folder.mkdir()
        runs += 1
        while True:
            process = start(words, folder)
            moment = draw.uniform(0, seconds) if kills < given.kills else None
            try:
                code = process.wait(moment)
                break
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
                kills += 1
                print(f'run {runs}: kill {kills} after {moment:.1f} s', flush=True)
        if code:
            sys.exit(f'run {runs} ended with {code}: see {folder / "log.txt"}')
        found = differences(expected, ended(folder))
        equal += not found
        print(f'run {runs}: {found[:3] or "equal, tolerance 0"}', flush=True)
        shutil.rmtree(folder)
    print(f'{equal} of {runs} runs equal the undisturbed one after {kills} kills')
    sys.exit(equal < runs)


if __name__ == '__main__':
    main()
