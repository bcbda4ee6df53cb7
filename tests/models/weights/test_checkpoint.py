# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Files that are refused."""

import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from cmid_geo.models import load_backbone
from cmid_geo.models.weights.checkpoint import open_checkpoint, save_safetensors


class Evil:
    """Writes a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


@pytest.fixture(scope='module')
def network() -> torch.nn.Module:
    return timm.create_model('resnet18')


@pytest.mark.parametrize('how', ['torch', 'old torch', 'bare pickle', 'inside'])
def test_a_malicious_pickle_is_refused_and_not_run(
    how: str, network: torch.nn.Module, tmp_path: Path
) -> None:
    file, done = tmp_path / 'evil.pth', tmp_path / 'done'
    content = {'conv1.weight': torch.zeros(2), 'evil': Evil(done)}
    if how == 'torch':
        torch.save(content, file)
    elif how == 'old torch':
        torch.save(content, file, _use_new_zipfile_serialization=False)
    elif how == 'bare pickle':
        file.write_bytes(pickle.dumps(content))
    else:
        torch.save(
            {
                'hyper_parameters': {'augmentation': Evil(done)},
                'state_dict': network.state_dict(),
            },
            file,
        )
    with pytest.raises(
        ValueError,
        match=r'evil.pth was refused: it holds more than tensors.*state_dict',
    ):
        load_backbone(network, file)
    assert not done.exists()
    # What it would have done
    torch.load(file, weights_only=False) if how != 'bare pickle' else pickle.loads(
        file.read_bytes()
    )
    assert done.exists()


@pytest.mark.parametrize('kept', [0, 1, 100, 0.5, 0.999])
@pytest.mark.parametrize('kind', ['pth', 'old.pth', 'safetensors'])
def test_a_truncated_file_says_so(
    kind: str, kept: float, network: torch.nn.Module, tmp_path: Path
) -> None:
    file = tmp_path / f'backbone.{kind}'
    if kind == 'safetensors':
        save_file(network.state_dict(), file)
    else:
        torch.save(
            network.state_dict(), file, _use_new_zipfile_serialization=kind == 'pth'
        )
    whole = file.read_bytes()
    file.write_bytes(
        whole[: int(kept * len(whole)) if isinstance(kept, float) else kept]
    )
    with pytest.raises(
        ValueError,
        match=r'backbone.*is truncated, damaged or no checkpoint \([\d,]+ bytes\)',
    ):
        load_backbone(network, file)


def flip(file: Path, place: int) -> None:
    """Change one bit of a file."""
    data = bytearray(file.read_bytes())
    data[place] ^= 1
    file.write_bytes(data)


def test_a_changed_bit_of_an_archive_is_noticed(
    network: torch.nn.Module, tmp_path: Path
) -> None:
    file = tmp_path / 'a.pth'
    torch.save(network.state_dict(), file)
    with zipfile.ZipFile(file) as archive:
        largest = max(archive.infolist(), key=lambda each: each.file_size)
    flip(file, largest.header_offset + largest.file_size // 2)
    # Torch itself does not look
    torch.load(file, weights_only=True)
    with pytest.raises(
        ValueError, match='a.pth is damaged: .* checksum say; copy or download it'
    ):
        load_backbone(network, file)


def test_tensors_marked_as_folders_are_noticed(tmp_path: Path) -> None:
    file = tmp_path / 'a.pth'
    torch.save({'weight': torch.ones(300)}, file)
    # Its last entry in the directory at the end; the attributes lie before the offset and the name
    name = b'a/data/0'
    place = file.read_bytes().rindex(name) - 8
    data = bytearray(file.read_bytes())
    data[place] |= 0x10
    file.write_bytes(data)
    with zipfile.ZipFile(file) as archive:
        assert archive.getinfo(name.decode()).external_attr == 0x10
        assert archive.testzip() is None
    with pytest.raises(ValueError, match='a.pth is damaged: a/data/0 .* entry'):
        open_checkpoint(file)


@pytest.mark.parametrize('changed', [b'red', b'cmid_geo"', b'half', None], ids=str)
def test_what_was_changed_in_our_safetensors_is_noticed(
    changed: bytes | None, tmp_path: Path
) -> None:
    file = tmp_path / 'a.safetensors'
    state = {'weight': torch.ones(3), 'one': torch.tensor(1), 'half': torch.ones(2, 2).bfloat16()}  # fmt: skip
    save_safetensors(state, {'bands': ['red']}, file)
    content = open_checkpoint(file)
    assert content['hyper_parameters'] == {'bands': ['red']}
    torch.testing.assert_close(content['state_dict'], state)
    whole = file.read_bytes()
    flip(file, len(whole) - 1 if changed is None else whole.index(changed))
    with pytest.raises(
        ValueError, match='a.safetensors is damaged: .*hash.*export it anew'
    ):
        open_checkpoint(file)


def test_safetensors_without_our_hash_are_read(tmp_path: Path) -> None:
    state = {'weight': torch.arange(3.0)}
    save_file(state, tmp_path / 'theirs.safetensors', {'cmid_geo': '{"size": 64}'})
    content = open_checkpoint(tmp_path / 'theirs.safetensors')
    assert content['hyper_parameters'] == {'size': 64}
    torch.testing.assert_close(content['state_dict'], state)


@pytest.mark.parametrize('bad', [float('nan'), float('inf')])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.float8_e5m2])
def test_weights_that_are_not_finite_are_refused(
    bad: float, dtype: torch.dtype, tmp_path: Path
) -> None:
    file = tmp_path / 'a.pth'
    weight = torch.tensor([1.0, bad, bad]).to(dtype)
    free = {
        'optimizer_states': [{'state': {0: {'exp_avg': torch.tensor(bad)}}}],
        'epoch': 3,
    }
    others = {'val_metrics.best.value': weight, 'text.attn_mask': weight}
    torch.save(free | {'state_dict': others | {'a': torch.ones(1)}}, file)
    assert open_checkpoint(file)['epoch'] == 3
    torch.save(free | {'state_dict': others | {'a.weight': weight}}, file)
    with pytest.raises(
        ValueError, match='holds 2 values of a.weight that are not finite.*earlier'
    ):
        open_checkpoint(file)


def test_safetensors_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    save_file({'a': torch.tensor([torch.nan])}, tmp_path / 'a.safetensors')
    with pytest.raises(ValueError, match='holds 1 values of a that are not finite'):
        open_checkpoint(tmp_path / 'a.safetensors')


def test_large_doubles_are_finite(tmp_path: Path) -> None:
    torch.save({'a': torch.tensor([1e300], dtype=torch.float64)}, tmp_path / 'a.pth')
    assert open_checkpoint(tmp_path / 'a.pth')['a'].item() == 1e300


def test_files_are_told_by_what_is_in_them(
    network: torch.nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv('HOME', str(tmp_path))
    save_file(network.state_dict(), tmp_path / 'renamed.bin')
    torch.save(network.state_dict(), tmp_path / 'renamed.safetensors')
    torch.save(network.state_dict(), tmp_path / 'my_Weights.pth')
    monkeypatch.chdir(tmp_path)
    for name in ('renamed.bin', '~/renamed.safetensors', 'my_Weights.pth'):
        assert len(load_backbone(network, name).loaded) == 120


def test_other_files(network: torch.nn.Module, tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match='nowhere.pth is no file: check the path'
    ):
        load_backbone(network, tmp_path / 'nowhere.pth')
    with pytest.raises(FileNotFoundError, match='is no file'):
        load_backbone(network, tmp_path)
    (tmp_path / 'page.pth').write_text('<!DOCTYPE html>')
    with pytest.raises(
        ValueError, match='page.pth is truncated, damaged or no checkpoint'
    ):
        load_backbone(network, tmp_path / 'page.pth')
    torch.jit.save(torch.jit.script(torch.nn.ReLU()), tmp_path / 'program.ts')
    with pytest.raises(
        ValueError, match='program of TorchScript, read by torch.jit.load'
    ):
        load_backbone(network, tmp_path / 'program.ts')
    torch.save(torch.zeros(3), tmp_path / 'one.pth')
    with pytest.raises(ValueError, match='one.pth holds a Tensor: .*model.state_dict'):
        load_backbone(network, tmp_path / 'one.pth')
    torch.save({'epoch': 3}, tmp_path / 'empty.pth')
    with pytest.raises(ValueError, match='empty.pth holds no tensors'):
        load_backbone(network, tmp_path / 'empty.pth')
    with pytest.raises(
        ValueError,
        match=r"'ResNet50_Weights.NOTHING' is the name of no weights.*list_weights",
    ):
        load_backbone(network, 'ResNet50_Weights.NOTHING')
