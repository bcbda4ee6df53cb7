# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Files of tensors, read without running what is in them."""

import hashlib
import json
import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

#: Bit of the attributes of a folder in an archive.
FOLDER = 0x10

#: Files of torch begin as a zip archive or as a pickle.
MAGIC = (b'PK', b'\x80')

#: Third byte of a file of ONNX: behind its version (8 and a number) come producer, graph or
#: operators, in protobuf's numbers of https://github.com/onnx/onnx/blob/main/onnx/onnx.proto.
ONNX = (b'\x12', b'\x3a', b'\x42')

#: Key of a safetensors file's metadata that holds ours, as JSON.
METADATA = 'cmid_geo'

#: Key of a safetensors file's metadata that holds the hash of all else: that format has none.
HASH = 'cmid_geo_sha256'

#: Names of tensors that may hold any value: states of metrics, and masks that are added to attention.
FREE = re.compile(r'(^|\.)(\w*metrics?|attn_mask)(\.|$)')

#: Where the usual programs put the tensors of a checkpoint; as timm does, averages first.
WRAPPERS = ('state_dict_ema', 'model_ema', 'state_dict', 'model_state_dict', 'model', 'module', 'teacher',
            'student', 'network', 'net', 'backbone')  # fmt: skip


def open_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a file of PyTorch, or of safetensors.

    Args:
        path: A file.

    Returns:
        What was saved. Of safetensors ``state_dict``, and ``hyper_parameters`` where we
        wrote the file.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is a URL, is damaged, holds weights that are not finite or more than
            tensors and plain values, or is a program of ONNX or TorchScript.
    """
    given, path = path, Path(path)
    if not path.is_file():
        refuse_url(given)
        raise FileNotFoundError(
            f'{path} is no file: check the path, or take the name of released weights'
        )
    with open(path, 'rb') as file:
        start = file.read(9)
        check_archive(file)
    # Told by what is in it: files are renamed
    if start[8:9] == b'{':
        return _open_safetensors(path)
    if start[:1] == b'\x08' and start[2:3] in ONNX:
        raise _program(path, 'ONNX', 'onnxruntime')
    try:
        # From an open file: by its name torch, too, would guess
        with open(path, 'rb') as file, warnings.catch_warnings():
            warnings.filterwarnings('ignore', '.*TorchScript archive')
            content = torch.load(file, map_location='cpu', weights_only=True)
    # What torch raises for damage depends on where in the file it is
    except Exception as error:
        if 'TorchScript' in str(error):
            raise _program(path, 'TorchScript', 'torch.jit.load') from error
        # Of an archive all was there, and something in it is not allowed
        if isinstance(error, pickle.UnpicklingError) and start.startswith(MAGIC):
            doubt = '' if start.startswith(b'PK') else ', or is damaged'
            raise ValueError(
                f'{path} was refused: it holds more than tensors and plain values{doubt}, and reading '
                'that could run any program. Where you trust its origin, save its state_dict alone: '
                f'torch.save(model.state_dict(), path). {_first_sentence(error)}'
            ) from error
        raise _damaged(path) from error
    if not isinstance(content, Mapping):
        raise ValueError(  # noqa: TRY004
            f'{path} holds a {type(content).__name__}: a checkpoint is a dictionary of tensors by '
            'name, save model.state_dict()'
        )
    check_finite(content, path)
    return dict(content)


def check_archive(file: Any) -> None:
    """Refuse an archive of torch with damage in it, which torch itself loads without a word.

    Args:
        file: A file open for reading bytes; it stands where it stood afterwards.

    Raises:
        ValueError: If it begins as an archive does, and is no whole one.
    """
    stood = file.seek(0, os.SEEK_CUR)
    file.seek(0)
    if file.read(2) == MAGIC[0]:
        try:
            with zipfile.ZipFile(file) as archive:
                # Of what is marked as a folder torch reads nothing, and takes what is in memory there
                folders = [
                    each.filename
                    for each in archive.infolist()
                    if each.external_attr & FOLDER and not each.is_dir()
                ]
                bad = folders[0] if folders else archive.testzip()
        # What damage raises depends on where it is
        except Exception as error:
            raise _damaged(file) from error
        if bad is not None:
            raise ValueError(
                f'{_name(file)} is damaged: {bad} in it is not what its entry and checksum say; copy or download it again. '
                'Where it was saved under torch.serialization.set_crc32_options(False), save it without that'
            )
    file.seek(stood)


def check_finite(content: Mapping[str, Any], path: object) -> None:
    """Refuse weights of which values are not finite; the states of optimizers and metrics may be so.

    Args:
        content: What was saved.
        path: Where it is, for the message.

    Raises:
        ValueError: If there are any.
    """
    for name, tensor in tensors_in(content).items():
        if tensor.is_floating_point() and not FREE.search(str(name)):
            # Types of a byte know no such test
            wide = tensor.float() if tensor.itemsize == 1 else tensor
            bad = wide.numel() - int(wide.isfinite().sum())
            if bad:
                raise ValueError(
                    f'{path} holds {bad:,} values of {name} that are not finite, with which no network '
                    'computes: copy or download it again if it is damaged; of a run that diverged, take an '
                    'earlier checkpoint'
                )


def refuse_url(path: Any) -> None:
    """Refuse a checkpoint that is not a file here.

    Args:
        path: Where the checkpoint is.

    Raises:
        ValueError: If it is a URL.
    """
    # By the letters that Lightning goes by, so a folder 'http_runs' is refused with them
    if str(path).startswith('http'):
        raise ValueError(
            f'{path} would be read as a URL, but checkpoints are read from files only: download it from '
            'where you trust, and give the path of the file (./ before a name that begins so)'
        )


def _open_safetensors(path: Path) -> dict[str, Any]:
    try:
        with safe_open(path, framework='pt') as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            kept = file.metadata() or {}
        text = kept.get(METADATA, '{}')
        metadata = json.loads(text)
    except (SafetensorError, OSError, ValueError) as error:
        raise _damaged(path) from error
    told = kept.get(HASH)
    # Files of others, and ours of before, tell none
    if told is not None and told != hash_tensors(state, text):
        raise ValueError(
            f'{path} is damaged: its tensors and metadata are not those whose hash is in it; copy or '
            'download it again, or export it anew'
        )
    content = {'hyper_parameters': metadata, 'state_dict': state}
    check_finite(content, path)
    return content


def save_safetensors(
    state: Mapping[str, Tensor], metadata: Mapping[str, Any], path: Path
) -> None:
    """Write a file of safetensors, with the hash of what is in it.

    Args:
        state: Tensors by name.
        metadata: What JSON can hold.
        path: File to write.
    """
    text = json.dumps(metadata)
    save_file(dict(state), path, {METADATA: text, HASH: hash_tensors(state, text)})


def hash_tensors(state: Mapping[str, Tensor], metadata: str = '') -> str:
    """Hash the content of a file of weights.

    Args:
        state: Tensors by name.
        metadata: What goes into the hash beside them.

    Returns:
        SHA-256 over the metadata, and names, types, shapes and bytes of the tensors, in hexadecimal digits.
    """
    found = hashlib.sha256(metadata.encode())
    for name, tensor in sorted(state.items()):
        found.update(f'{name} {tensor.dtype} {tuple(tensor.shape)}'.encode())
        found.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy())
    return found.hexdigest()


def _name(file: Any) -> object:
    """What to call a file in messages."""
    return file if isinstance(file, Path) else getattr(file, 'name', 'the open file')


def _damaged(file: Any) -> ValueError:
    size = file.stat().st_size if isinstance(file, Path) else file.seek(0, os.SEEK_END)
    return ValueError(
        f'{_name(file)} is truncated, damaged or no checkpoint ({size:,} bytes): compare its '
        'size with the original, and copy or download it again'
    )


def _program(path: Path, kind: str, reader: str) -> ValueError:
    return ValueError(
        f'{path} is a program of {kind}, read by {reader}: for its tensors take the checkpoint it was '
        'made of, or export that to a file of weights: cmid-geo export CKPT backbone.ckpt'
    )


def _first_sentence(error: Exception) -> str:
    """Of torch's long message the line that says what was met."""
    lines = [line for line in str(error).splitlines() if 'nsupported' in line]
    return f'({lines[0].strip()[:200]})' if lines else ''


def tensors_in(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """Find the tensors of a checkpoint, wrapped or bare.

    Args:
        content: What :func:`open_checkpoint` gives.

    Returns:
        Tensors by name; none if there are none.
    """
    for wrapper in WRAPPERS:
        inner = content.get(wrapper)
        if isinstance(inner, Mapping) and any(_tensors(inner)):
            return _tensors(inner)
    return _tensors(content)


def _tensors(content: Mapping[str, Any]) -> dict[str, Tensor]:
    return {name: value for name, value in content.items() if isinstance(value, Tensor)}


def under(state_dict: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Take the tensors under a prefix, without it.

    Args:
        state_dict: Tensors by name.
        prefix: Beginning of their names.

    Returns:
        Tensors by the rest of their names.
    """
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in state_dict.items()
        if name.startswith(prefix)
    }
