# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Backbones as programs that run without this package: ONNX and TorchScript."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from ...ops.cells import CELL
from ..backbones import MaskedBackbone, MaskedSwin

#: What a file says of how to bring raw values to the network.
VALUES = ('low', 'high', 'mean', 'std')

#: Largest difference that a program may show, relative to the largest value, in float32.
TOLERANCE = 1e-4


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


def write_onnx(raw: RawBackbone, about: dict[str, Any], file: Path) -> None:
    """Translate into ONNX, note what is known, and compare in onnxruntime.

    Args:
        raw: To translate, in evaluation mode.
        about: Goes into the metadata.
        file: To write.

    Raises:
        ImportError: If onnx, onnxscript or onnxruntime is missing.
        RuntimeError: If the program does not give what PyTorch gives.
    """
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f'{error.name} is missing: pip install "cmid-geo[export]"'
        ) from error
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        # Swin pads to its windows: torch.export reasons about those sizes for minutes, a
        # trace has them in seconds. ViT resamples positions, which only the other can write.
        by_trace = isinstance(raw.backbone, MaskedSwin)
        (_trace_onnx if by_trace else _export_onnx)(raw, _example(about, 2, 7, 8), file)
    model = onnx.load(file)
    axes = ('batch', None, 'height', 'width'), ('batch', None, 'rows', 'cols')
    for value, names in zip((model.graph.input[0], model.graph.output[0]), axes):
        for dimension, name in zip(value.type.tensor_type.shape.dim, names):
            if name is not None:
                dimension.dim_param = name
    # Metadata of ONNX are strings
    texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in about.items()}
    onnx.helper.set_model_props(model, texts)
    onnx.save(model, file)
    session = onnxruntime.InferenceSession(file, providers=['CPUExecutionProvider'])

    def run(image: Tensor) -> Tensor:
        (features,) = session.run(None, {'image': image.numpy()})
        return torch.from_numpy(np.asarray(features))

    _check(raw, about, run)


def _export_onnx(raw: RawBackbone, example: Tensor, file: Path) -> None:
    dynamic = torch.export.Dim.DYNAMIC
    program = torch.onnx.export(
        raw, (example,), dynamo=True, verbose=False, input_names=['image'],
        output_names=['features'], dynamic_shapes=({0: dynamic, 2: dynamic, 3: dynamic},),
    )  # fmt: skip
    if program is None:
        raise RuntimeError(f'torch.onnx made no program of {raw.backbone.name}')
    program.save(file)


def _trace_onnx(raw: RawBackbone, example: Tensor, file: Path) -> None:
    axes = {0: 'batch', 2: 'height', 3: 'width'}
    torch.onnx.export(
        raw, (example,), str(file), dynamo=False, input_names=['image'],
        output_names=['features'], dynamic_axes={'image': axes}, opset_version=18,
    )  # fmt: skip


def write_torchscript(raw: RawBackbone, about: dict[str, Any], file: Path) -> None:
    """Trace into TorchScript, note what is known, and compare.

    Args:
        raw: To translate, in evaluation mode.
        about: Goes into the extra file ``cmid_geo.json``.
        file: To write.

    Raises:
        RuntimeError: If the program does not give what PyTorch gives.
    """
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        traced = torch.jit.trace(raw, (_example(about, 2, 7, 8),), check_trace=False)
        extra = {'cmid_geo.json': json.dumps(about)}
        torch.jit.save(traced, file, _extra_files=extra)
        loaded = torch.jit.load(file)
    with torch.no_grad():
        _check(raw, about, loaded)
