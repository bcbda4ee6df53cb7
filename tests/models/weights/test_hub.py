# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""The Hugging Face hub: its own client on a cache, and uploads to a stand-in."""

import shutil
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import huggingface_hub
import networks  # noqa: F401
import pytest
import torch
from huggingface_hub.errors import RepositoryNotFoundError

from cmid_geo.__main__ import main
from cmid_geo.models import create_backbone, load_backbone
from cmid_geo.models.weights.hub import fetch_from_hub, push_to_hub


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no network."""
    folder = tmp_path / 'cache'
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_CACHE', str(folder))
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)
    return folder


@pytest.fixture
def backbone(tmp_path: Path) -> Path:
    torch.manual_seed(1)
    network = create_backbone('resnet_test', in_channels=2)
    raw = tmp_path / 'raw.pt'
    torch.save(network.network.state_dict(), raw)
    return raw


def place(cache: Path, repo: str, name: str, file: Path) -> None:
    """Leave a file in the cache, as a download does."""
    folder = cache / f'models--{repo.replace("/", "--")}'
    target = folder / 'snapshots' / 'abc' / name
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(file, target)
    (folder / 'refs').mkdir(exist_ok=True)
    (folder / 'refs' / 'main').write_text('abc')


@pytest.mark.parametrize(
    ('name', 'address'),
    [
        ('backbone.safetensors', 'hf://me/mine'),
        ('backbone.ckpt', 'hf://me/mine'),
        ('runs/other.ckpt', 'hf://me/mine/runs/other.ckpt'),
    ],
)
def test_what_was_downloaded_is_loaded_without_a_network(
    cache: Path, backbone: Path, name: str, address: str
) -> None:
    place(cache, 'me/mine', name, backbone)
    network = create_backbone('resnet_test', in_channels=2)
    load_backbone(network, address)
    expected = torch.load(backbone)
    found = network.network.state_dict()
    assert all(torch.equal(found[key], value) for key, value in expected.items())


@pytest.mark.parametrize(
    ('address', 'error', 'cure'),
    [
        ('hf://me', ValueError, 'give hf://USER/REPO'),
        ('hf://me/a b', ValueError, 'Give hf://USER/REPO'),
        ('hf://me/none', FileNotFoundError, 'hf://me/none/FILE'),
        ('hf://me/mine/none.ckpt', FileNotFoundError, 'check the name'),
    ],
)
def test_what_is_not_there_is_told(
    cache: Path, address: str, error: type[Exception], cure: str
) -> None:
    with pytest.raises(error, match=cure):
        fetch_from_hub(address)


class Hub:
    """Takes uploads as the hub's client does."""

    def __init__(self, files: dict[str, bytes], made: list[Any]) -> None:
        self.files, self.made = files, made

    def create_repo(self, repo: str, private: bool, exist_ok: bool) -> None:
        if not repo.startswith('me/'):
            answer = Mock(headers={})
            raise RepositoryNotFoundError('403: not yours', response=answer)
        self.made.append((repo, private, exist_ok))

    def upload_file(self, path_or_fileobj: Path, path_in_repo: str, repo_id: str) -> None:  # fmt: skip
        self.files[f'{repo_id}/{path_in_repo}'] = path_or_fileobj.read_bytes()


def test_an_export_is_pushed_with_its_card(
    tmp_path: Path, backbone: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], make_task: Any, make_trainer: Any,
) -> None:  # fmt: skip
    files: dict[str, bytes] = {}
    made: list[Any] = []
    monkeypatch.setattr(huggingface_hub, 'HfApi', lambda: Hub(files, made))
    task = make_task()
    trainer = make_trainer()
    trainer.strategy.connect(task)
    checkpoint, out = tmp_path / 'task.ckpt', tmp_path / 'out' / 'backbone.safetensors'
    trainer.save_checkpoint(checkpoint)
    out.parent.mkdir()
    (out.parent / 'MODEL_CARD.md').write_text('what it is')
    main(['export', str(checkpoint), str(out), '--push', 'me/mine', '--private', 'true'])  # fmt: skip
    assert made == [('me/mine', True, True)]
    assert files == {
        'me/mine/backbone.safetensors': out.read_bytes(),
        'me/mine/README.md': b'what it is',
    }
    assert 'pushed it: hf://me/mine/backbone.safetensors' in capsys.readouterr().out  # fmt: skip
    with pytest.raises(ValueError, match='--push USER/REPO of yours'):
        push_to_hub(out, 'you/yours')
