# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Files that are refused."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from cmid_geo.models import load_backbone


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
