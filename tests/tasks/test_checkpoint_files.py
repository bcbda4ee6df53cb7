# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Checkpoints of runs as files."""

import errno
import os
from pathlib import Path
from typing import Any, Self

import pytest
import torch

from cmid_geo.models import export_backbone
from cmid_geo.tasks import CMID
from cmid_geo.tasks.checkpoint_files import CheckpointFiles, find_checkpoint

CONTENT = {'loops': {}, 'state_dict': {'a': torch.arange(6.0)}}


def test_a_checkpoint_is_written_beside_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    replace = os.replace

    def watched(source: Any, target: Any) -> None:
        seen.extend(path.name for path in Path(source).parent.iterdir())
        assert torch.load(source)['state_dict']['a'].tolist() == [0, 1, 2, 3, 4, 5]
        replace(source, target)

    monkeypatch.setattr(os, 'replace', watched)
    CheckpointFiles().save_checkpoint(CONTENT, tmp_path / 'new' / 'a.ckpt')
    assert len(seen) == 1 and seen[0].endswith('.a.ckpt')
    assert [path.name for path in (tmp_path / 'new').iterdir()] == ['a.ckpt']


def test_a_full_disk_leaves_the_checkpoint_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, files = tmp_path / 'a.ckpt', CheckpointFiles()
    files.save_checkpoint(CONTENT, path)
    before = path.read_bytes()

    class Full:
        """A file on a disk that is full after a hundred bytes."""

        def __init__(self, path: Any) -> None:
            self.file, self.left = open(path, 'wb'), 100  # noqa: SIM115

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *args: object) -> None:
            self.file.close()

        def write(self, data: Any) -> int:
            self.left -= len(data)
            if self.left < 0:
                raise OSError(errno.ENOSPC, 'No space left on device')
            return self.file.write(data)

        def flush(self) -> None:
            self.file.flush()

    monkeypatch.setattr(
        'cmid_geo.tasks.checkpoint_files.open',
        lambda path, mode: Full(path),
        raising=False,
    )
    with pytest.raises(
        OSError, match='a.ckpt could not be saved .No space left.*is whole'
    ):
        files.save_checkpoint(CONTENT | {'more': torch.zeros(1000)}, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_the_newest_whole_checkpoint_is_found(tmp_path: Path) -> None:
    for number, name in enumerate(('old', 'new', 'cut', 'empty')):
        path = tmp_path / 'run' / f'{name}.ckpt'
        CheckpointFiles().save_checkpoint(CONTENT, path)
        if name in ('cut', 'empty'):
            os.truncate(path, 300 if name == 'cut' else 0)
        os.utime(path, (number, number))
    # What a fit ends with is no checkpoint to resume from
    export_backbone(
        CMID('resnet_test', size=64, queue_size=8), tmp_path / 'backbone.ckpt'
    )
    with pytest.warns(
        UserWarning, match='passed over: .*(cut|empty).ckpt is truncated'
    ):
        assert find_checkpoint(tmp_path).name == 'new.ckpt'


def test_nothing_to_resume_from_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match='holds no whole checkpoint of a run'):
        find_checkpoint(tmp_path)
    with pytest.raises(FileNotFoundError, match='nowhere'):
        find_checkpoint(tmp_path / 'nowhere')
