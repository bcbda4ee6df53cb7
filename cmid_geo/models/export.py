# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Backbones for use elsewhere, with what they expect in the file."""

import json
import os
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor, nn

from .backbones import CELL, MaskedBackbone, create_backbone
from .files import ABOUT, write_atomically
from .loading import load_backbone
from .sources import Source, read_source

Side = Literal['teacher', 'student']
Format = Literal['ckpt', 'safetensors', 'onnx', 'torchscript']

#: Formats by the ending of a file's name.
ENDINGS: dict[str, Format] = {
    '.ckpt': 'ckpt',
    '.pth': 'ckpt',
    '.safetensors': 'safetensors',
    '.onnx': 'onnx',
    '.torchscript': 'torchscript',
    '.ts': 'torchscript',
}

#: What a file says of how to bring raw values to the network.
VALUES = ('low', 'high', 'mean', 'std')

#: Largest relative difference that a translated network may show, in float32.
TOLERANCE = 1e-4


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
    safetensors   timm's tensors by timm's names; the rest as JSON under ``cmid_geo``
    onnx          takes **raw** values (batch, bands, height, width), gives features (batch,
                  dim, rows, cols), any batch and any sides that are multiples of 32; the
                  rest in the metadata
    torchscript   the same as a program of PyTorch; the rest in the extra file
                  ``cmid_geo.json``
    ============= =====================================================================

    The rest is timm's name as ``model``, ``in_channels``, the names of the ``bands``, for
    each band the raw values ``low`` and ``high`` that stand for 0 and 1, and ``mean`` and
    ``std`` of the scaled values, and where it all came from. The network proper is fed
    ``((raw - low) / (high - low) - mean) / std``; the last two formats do that themselves.

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
    kind = _format(path, format)
    found, about = _describe(task_or_checkpoint, source)
    backbone = create_backbone(about['model'], about['in_channels'])
    load_backbone(backbone, found)
    backbone.eval()
    state = dict(backbone.network.state_dict())
    writers: dict[str, Callable[[Path], object]] = {
        'ckpt': lambda file: torch.save(
            {
                'hyper_parameters': about,
                'state_dict': {f'model.{k}': v for k, v in state.items()},
            },
            file,
        ),
        'safetensors': lambda file: save_file(state, file, {ABOUT: json.dumps(about)}),
        'onnx': lambda file: _write_onnx(RawBackbone(backbone, about), about, file),
        'torchscript': lambda file: _write_torchscript(
            RawBackbone(backbone, about), about, file
        ),
    }
    write_atomically(path, writers[kind])
    return path


class RawBackbone(nn.Module):
    """A backbone that takes the values of a raster as they are in the file."""

    scale: Tensor
    shift: Tensor

    def __init__(self, backbone: MaskedBackbone, about: dict[str, Any]) -> None:
        """Initialize a new RawBackbone instance.

        Args:
            backbone: Takes standardised images.
            about: With ``low``, ``high``, ``mean`` and ``std`` of each band.
        """
        super().__init__()
        self.backbone = backbone
        low, high, mean, std = (
            torch.tensor(about[name], dtype=torch.float64) for name in VALUES
        )
        scale = 1 / ((high - low) * std)
        shift = -(low + mean * (high - low)) * scale
        self.register_buffer('scale', scale.float()[:, None, None])
        self.register_buffer('shift', shift.float()[:, None, None])

    def forward(
        self, image: Float[Tensor, 'batch bands height width']
    ) -> Float[Tensor, 'batch dim rows cols']:
        """Standardise and encode.

        Args:
            image: Raw values.

        Returns:
            Features of each cell of 32x32 pixels.
        """
        return self.backbone(image * self.scale + self.shift)


def _format(path: Path, format: str | None) -> str:
    if format is None:
        format = ENDINGS.get(path.suffix)
    if format is None or format not in ENDINGS.values():
        raise ValueError(
            f'format={format!r} of {path.name}: end the name in one of {", ".join(ENDINGS)}, or choose '
            'a format of ckpt, safetensors, onnx and torchscript'
        )
    return format


def _describe(weights: Any, side: Side | None) -> tuple[Source, dict[str, Any]]:
    """Read the weights, and collect what a file is to say of them."""
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
            'epoch': getattr(trainer, 'current_epoch', None),
        }
    found = read_source(weights, side)
    known = found.about
    if not found.model or any(name not in known for name in VALUES):
        raise ValueError(
            f'{found.name} does not say which network it holds and what values it takes: pass a CMID '
            'task, its checkpoint, an exported file or the name of released weights'
        )
    if side is not None and known.get('source') != side:
        raise ValueError(
            f'{found.name} holds no backbone of the {side}, leave out source=...'
        )
    first = next(tensor for tensor in found.tensors.values() if tensor.ndim == 4)
    provenance = {
        'from': Path(origin).name,
        'cmid_geo': version('cmid-geo'),
        **{
            name: known[name]
            for name in ('steps', 'epochs', 'dataset', 'publication', 'license')
            if known.get(name) is not None
        },
    }
    about = {
        'model': found.model,
        'in_channels': first.shape[1],
        'size': known.get('size', 224),
        'bands': list(known.get('bands') or ()),
        'source': known.get('source', 'student'),
        'ssl_method': 'CMID',
        'provenance': known.get('provenance', provenance),
    }
    return found, about | {name: list(known[name]) for name in VALUES}


def _example(about: dict[str, Any], batch: int, rows: int, cols: int) -> Tensor:
    """Raw values such as the network expects."""
    low, high = (torch.tensor(about[name])[:, None, None] for name in ('low', 'high'))
    generator = torch.Generator().manual_seed(0)
    shape = (batch, len(low), rows * CELL, cols * CELL)
    return torch.rand(shape, generator=generator) * (high - low) + low


def _check(
    raw: nn.Module, about: dict[str, Any], run: Callable[[Tensor], Tensor]
) -> None:
    """Compare a translated network with PyTorch's, at sizes it was not translated with."""
    for batch, rows, cols in ((1, 7, 7), (2, 8, 6), (1, 3, 4)):
        image = _example(about, batch, rows, cols)
        with torch.no_grad():
            expected = raw(image)
        difference = float((run(image) - expected).abs().max() / expected.abs().max())
        # NaN must not pass
        if not difference < TOLERANCE:
            raise RuntimeError(
                f'the translated {about["model"]} differs from PyTorch by {difference:.1e} of its '
                f'largest value for images of {tuple(image.shape)}: nothing was written. Other '
                'versions of torch, onnx and onnxruntime may do better'
            )


def _write_onnx(raw: RawBackbone, about: dict[str, Any], file: Path) -> None:
    """Translate by torch.export, note what is known, and compare in onnxruntime."""
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f'{error.name} is missing: pip install "cmid-geo[export]"'
        ) from error
    dynamic = torch.export.Dim.DYNAMIC
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        program = torch.onnx.export(
            raw, (_example(about, 2, 7, 8),), dynamo=True, verbose=False,
            input_names=['image'], output_names=['features'],
            dynamic_shapes=({0: dynamic, 2: dynamic, 3: dynamic},),
        )  # fmt: skip
    if program is None:
        raise RuntimeError(f'torch.onnx gave no program of {about["model"]}')
    model = program.model_proto
    axes = ('batch', None, 'height', 'width'), ('batch', None, 'rows', 'cols')
    for value, names in zip((model.graph.input[0], model.graph.output[0]), axes):
        for dimension, name in zip(value.type.tensor_type.shape.dim, names):
            if name is not None:
                dimension.dim_param = name
    onnx.helper.set_model_props(model, _metadata(about))
    onnx.save(model, file)
    session = onnxruntime.InferenceSession(file, providers=['CPUExecutionProvider'])

    def run(image: Tensor) -> Tensor:
        (features,) = session.run(None, {'image': image.numpy()})
        return torch.from_numpy(np.asarray(features))

    _check(raw, about, run)


def _write_torchscript(raw: RawBackbone, about: dict[str, Any], file: Path) -> None:
    """Trace, note what is known, and compare."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        traced = torch.jit.trace(raw, (_example(about, 2, 7, 8),), check_trace=False)
        extra = {'cmid_geo.json': json.dumps(about)}
        torch.jit.save(traced, file, _extra_files=extra)
        loaded = torch.jit.load(file)
    with torch.no_grad():
        _check(raw, about, loaded)


def _metadata(about: dict[str, Any]) -> dict[str, str]:
    """Metadata of ONNX are strings."""
    return {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in about.items()
    }
