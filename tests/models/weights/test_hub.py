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
from cmid_geo.models import create_backbone, export_backbone, load_backbone
from cmid_geo.models.weights.hub import fetch_from_hub, push_to_hub
from cmid_geo.plots.model_card import model_card


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

    def __init__(self, files: dict[str, bytes], made: list[Any], folder: Path) -> None:
        self.files, self.made, self.folder = files, made, folder

    def create_repo(self, repo: str, private: bool, exist_ok: bool) -> None:
        if not repo.startswith('me/'):
            answer = Mock(headers={})
            raise RepositoryNotFoundError('403: not yours', response=answer)
        self.made.append((repo, private, exist_ok))

    def upload_file(self, path_or_fileobj: Any, path_in_repo: str, repo_id: str) -> None:  # fmt: skip
        given = path_or_fileobj
        content = given if isinstance(given, bytes) else given.read_bytes()
        self.files[f'{repo_id}/{path_in_repo}'] = content

    def file_exists(self, repo_id: str, filename: str) -> bool:
        return f'{repo_id}/{filename}' in self.files

    def hf_hub_download(self, repo_id: str, filename: str) -> str:
        path = self.folder / 'downloaded.md'
        path.write_bytes(self.files[f'{repo_id}/{filename}'])
        return str(path)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    hub = Hub({}, [], tmp_path)
    monkeypatch.setattr(huggingface_hub, 'HfApi', lambda: hub)
    return hub


@pytest.fixture
def exported(tmp_path: Path, make_task: Any) -> Path:
    """An export with its card beside it."""
    task, out = make_task(), tmp_path / 'out' / 'backbone.ckpt'
    export_backbone(task, out)
    (tmp_path / 'metrics.csv').write_text('train_loss\n')
    card = model_card(out, task, 'chips', tmp_path / 'metrics.csv', 4)
    out.with_name('MODEL_CARD.md').write_text(card)
    return out


def test_an_export_is_pushed_with_its_item(
    tmp_path: Path, hub: Hub, capsys: pytest.CaptureFixture[str], make_task: Any, make_trainer: Any
) -> None:  # fmt: skip
    task = make_task()
    trainer = make_trainer()
    trainer.strategy.connect(task)
    checkpoint, out = tmp_path / 'task.ckpt', tmp_path / 'out' / 'backbone.safetensors'
    trainer.save_checkpoint(checkpoint)
    main(['export', str(checkpoint), str(out), '--push', 'me/mine', '--private', 'true'])  # fmt: skip
    assert hub.made == [('me/mine', True, True)]
    item = out.with_name('backbone.safetensors.stac.json')
    assert hub.files == {
        'me/mine/backbone.safetensors': out.read_bytes(),
        'me/mine/backbone.safetensors.stac.json': item.read_bytes(),
    }
    assert 'pushed it: hf://me/mine/backbone.safetensors' in capsys.readouterr().out  # fmt: skip
    with pytest.raises(ValueError, match='--push USER/REPO of yours'):
        push_to_hub(out, 'you/yours')


def test_the_card_of_a_file_becomes_the_page_until_that_is_changed(
    exported: Path, hub: Hub
) -> None:
    push_to_hub(exported, 'me/mine')
    page = hub.files['me/mine/README.md'].decode()
    card = exported.with_name('MODEL_CARD.md')
    own = card.read_text()
    assert [line for line in page.splitlines() if line not in own.splitlines()] == [page.splitlines()[1]]  # fmt: skip
    # Edited here, it goes in place of what was pushed before
    card.write_text(own.replace('## Limits', '## The licence is CC-BY'))
    push_to_hub(exported, 'me/mine')
    page = hub.files['me/mine/README.md'].decode()
    assert 'The licence is CC-BY' in page
    # Edited there, or written there, it stays
    for theirs in (page.replace('CC-BY', 'CC0'), '# My model\n', own):
        hub.files['me/mine/README.md'] = theirs.encode()
        with pytest.warns(UserWarning, match='it stays'):
            push_to_hub(exported, 'me/mine')
        assert hub.files['me/mine/README.md'] == theirs.encode()


@pytest.mark.parametrize('change', ['foreign', 'tensors', 'name', 'program'])
def test_another_card_is_not_pushed(
    change: str, exported: Path, hub: Hub, make_task: Any
) -> None:
    path = exported
    if change == 'foreign':
        path.with_name('MODEL_CARD.md').write_text('# Of something else\n')
    elif change == 'tensors':
        other = make_task()
        with torch.no_grad():
            next(other.student.backbone.network.parameters()).add_(1)
        export_backbone(other, path)
    elif change == 'name':
        path = path.rename(path.with_name('other.ckpt'))
    else:
        path.write_bytes(b'no tensors')
    with pytest.warns(UserWarning, match='is not the card of'):
        push_to_hub(path, 'me/mine')
    assert set(hub.files) == {f'me/mine/{path.name}'}


def test_without_a_network_it_is_told_what_to_do(
    exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    http = type('ConnectError', (Exception,), {'__module__': 'httpx'})
    for error in (OSError('Network is unreachable'), http('no address for the name')):

        def fail(*args: Any, error: Exception = error, **options: Any) -> None:
            raise error

        monkeypatch.setattr(Hub, 'create_repo', fail)
        monkeypatch.setattr(huggingface_hub, 'HfApi', lambda: Hub({}, [], exported.parent))  # fmt: skip
        with pytest.raises(ConnectionError, match='hf upload me/mine'):
            push_to_hub(exported, 'me/mine')

    def fail_otherwise(*args: Any, **options: Any) -> None:
        raise TypeError('a defect')

    monkeypatch.setattr(Hub, 'create_repo', fail_otherwise)
    with pytest.raises(TypeError, match='a defect'):
        push_to_hub(exported, 'me/mine')


def test_the_command_ends_with_a_sentence_where_no_network_is(
    exported: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The hub's own client, which then makes no request
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)
    out = exported.with_name('again.ckpt')
    with pytest.raises(SystemExit) as error:
        main(['export', str(exported), str(out), '--push', 'me/mine'])
    assert 'was not pushed to me/mine' in str(error.value)
    assert out.is_file()
