# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Backbones for use elsewhere, with what they expect in the file."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...atomic_files import write_atomically
from ...ops.value_range import ValueRange
from ...options import Format, Side
from ...version import __version__
from ..backbones import create_backbone
from .checkpoint import save_safetensors
from .export_onnx import RawBackbone, write_onnx, write_torchscript
from .loading import load_backbone
from .sources import TRAINING, VERSION, Source, read_source

#: Formats by the ending of a file's name.
ENDINGS: dict[str, Format] = {
    '.ckpt': 'ckpt',
    '.pth': 'ckpt',
    '.safetensors': 'safetensors',
    '.onnx': 'onnx',
    '.torchscript': 'torchscript',
    '.ts': 'torchscript',
}


def export_backbone(
    task_or_checkpoint: nn.Module | str | os.PathLike[str],
    path: str | os.PathLike[str],
    source: Side | None = None,
    format: Format | None = None,
) -> Path:
    """Write the backbone of a task for use elsewhere.

    ============= =====================================================================
    ckpt          TorchGeo's tasks load it by ``weights=<path>``: timm's tensors under
                  ``state_dict`` with the prefix ``model.``, the rest under
                  ``hyper_parameters``
    safetensors   timm's tensors by timm's names; the rest as JSON under ``cmid_geo``, and a
                  hash of it all under ``cmid_geo_sha256``
    onnx          takes **raw** values (batch, bands, height, width), gives features (batch,
                  dim, rows, cols), any batch and any sides that are multiples of 32; the
                  rest in the metadata
    torchscript   the same as a program of PyTorch, for the CPU in float32: a trace keeps
                  the device it was made on; the rest in the extra file ``cmid_geo.json``
    ============= =====================================================================

    The rest is timm's name as ``model``, its ``global_pool`` (the mean of all cells; of a ViT's patch
    tokens, as its class token is not trained), ``in_channels``, the names of the ``bands``, for
    each band the raw values ``low`` and ``high`` that stand for 0 and 1, and ``mean`` and
    ``std`` of the scaled values, and where it all came from. The network proper is fed
    ``((raw - low) / (high - low) - mean) / std``; the last two formats do that themselves.
    A ResNet's vector of a cell sees what is around the cell's upper left corner, not its centre
    (:attr:`~cmid_geo.models.MaskedBackbone.field_offset`); our own maps allow for that.

    Args:
        task_or_checkpoint: A :class:`~cmid_geo.tasks.CMID`, the path of its checkpoint or
            of an exported file, or the name of released weights.
        path: File to write; its folder is made.
        source: Whose backbone to take, the teacher's or the student's; by default that
            which the task says, or the only one there is.
        format: Told by the ending of *path* by default.

    Returns:
        The path.

    Raises:
        FileNotFoundError: If there is no such checkpoint.
        ImportError: If onnx, onnxscript or onnxruntime is missing.
        RuntimeError: If a translated network does not give what PyTorch gives.
        ValueError: If *source* or *format* is not one of these, or there is no backbone to
            export.
    """
    path = Path(path)
    kind = format_of(path, format)
    found, values, metadata = _describe(task_or_checkpoint, source)
    backbone = create_backbone(metadata['model'], metadata['in_channels'])
    load_backbone(backbone, found)
    raw = RawBackbone(backbone, values).eval()
    state = dict(backbone.network.state_dict())
    writers: dict[str, Callable[[Path], object]] = {
        'ckpt': lambda file: torch.save(
            {
                'hyper_parameters': metadata,
                'state_dict': {f'model.{k}': v for k, v in state.items()},
            },
            file,
        ),
        'safetensors': lambda file: save_safetensors(state, metadata, file),
        'onnx': lambda file: write_onnx(raw, metadata, file),
        'torchscript': lambda file: write_torchscript(raw, metadata, file),
    }
    write_atomically(path, writers[kind])
    return path


def format_of(path: Path, format: str | None) -> str:
    """Tell in which format a file is written.

    Args:
        path: Of the file.
        format: What was asked for; told by the ending of *path* where nothing was.

    Returns:
        'ckpt', 'safetensors', 'onnx' or 'torchscript'.

    Raises:
        ValueError: If it is none of these.
    """
    if format is None:
        format = ENDINGS.get(path.suffix)
    if format is None or format not in ENDINGS.values():
        raise ValueError(
            f'format={format!r} of {path.name}: end the name in one of {", ".join(ENDINGS)}, or choose '
            'a format of ckpt, safetensors, onnx and torchscript'
        )
    return format


def _describe(
    weights: Any, side: Side | None
) -> tuple[Source, ValueRange, dict[str, Any]]:
    """Read the weights, and collect the metadata of a file of them."""
    if side not in ('teacher', 'student', None):
        raise ValueError(
            f"source={side!r}: a backbone is the 'teacher''s or the 'student''s"
        )
    origin = str(weights)
    if isinstance(weights, nn.Module):
        trainer = getattr(weights, '_trainer', None)
        origin = type(weights).__name__
        weights = {
            'state_dict': weights.state_dict(),
            'hyper_parameters': dict(getattr(weights, 'hparams', {})),
            'global_step': getattr(trainer, 'global_step', None),
            VERSION: __version__,
            TRAINING: getattr(weights, 'training_data', None),
        }
    found = read_source(weights, side)
    known, values = found.metadata, found.value_range
    if not (found.model and values and values.mean and values.std):
        raise ValueError(
            f'{found.name} does not say which network it holds and what values it takes: pass a CMID '
            'task, its checkpoint, an exported file or the name of released weights'
        )
    if side is not None and known.get('source') != side:
        raise ValueError(
            f'{found.name} holds no backbone of the {side}, leave out source=...'
        )
    metadata = {
        'model': found.model,
        # Not by the first convolution: of files that sort names it may be one in the depth
        'in_channels': len(values.low),
        'size': known.get('size', 224),
        'source': known.get('source', 'student'),
        'ssl_method': 'CMID',
        'global_pool': 'avg',
        'provenance': known.get('provenance') or _provenance(Path(origin).name, known),
    }
    return found, values, metadata | values.to_metadata()


def _provenance(origin: str, known: dict[str, Any]) -> dict[str, Any]:
    """Collect where weights come from; it stays with them from file to file."""
    kept = ('steps', 'dataset', 'publication', 'license', 'training_data')
    provenance = {'from': origin, 'cmid_geo': __version__}
    return provenance | {k: known[k] for k in kept if known.get(k) is not None}
