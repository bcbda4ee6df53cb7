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
from ...ops.value_range import ValueRange
from ..backbones import MaskedBackbone, MaskedSwin

#: Largest difference that a program may show, relative to the largest value, in float32.
TOLERANCE = 1e-4


class RawBackbone(nn.Module):
    """A backbone that takes the values of a raster as they are in the file."""

    scale: Tensor
    shift: Tensor

    def __init__(self, backbone: MaskedBackbone, values: ValueRange) -> None:
        """Initialize a new RawBackbone instance.

        Args:
            backbone: Takes normalized images.
            values: What raw values mean.
        """
        super().__init__()
        self.backbone, self.values = backbone, values
        limits = values.low, values.high, values.mean, values.std
        low, high, mean, std = torch.tensor(limits, dtype=torch.float64)
        scale = 1 / ((high - low) * std)
        shift = -(low + mean * (high - low)) * scale
        self.register_buffer('scale', scale.float()[:, None, None])
        self.register_buffer('shift', shift.float()[:, None, None])

    def forward(
        self, image: Float[Tensor, 'batch bands height width']
    ) -> Float[Tensor, 'batch dim rows cols']:
        """Normalize and encode.

        Args:
            image: Raw values.

        Returns:
            Features of each cell of 32x32 pixels.
        """
        return self.backbone(image * self.scale + self.shift)

    def example(self, batch: int, rows: int, cols: int) -> Tensor:
        """Raw values such as the network expects, for images of so many cells."""
        low, high = torch.tensor((self.values.low, self.values.high))[..., None, None]
        generator = torch.Generator().manual_seed(0)
        shape = (batch, len(low), rows * CELL, cols * CELL)
        return torch.rand(shape, generator=generator) * (high - low) + low

    def check(self, run: Callable[[Tensor], Tensor]) -> None:
        """Compare a translated network with PyTorch's, at sizes it was not translated with.

        Args:
            run: Runs the translated network.

        Raises:
            RuntimeError: If it gives something else.
        """
        for batch, rows, cols in ((1, 7, 7), (2, 8, 6), (1, 3, 4)):
            image = self.example(batch, rows, cols)
            with torch.no_grad():
                expected, found = self(image), run(image)
            difference = float((found - expected).abs().max() / expected.abs().max())
            # NaN must not pass
            if not difference < TOLERANCE:
                raise RuntimeError(
                    f'the translated {self.backbone.name} differs from PyTorch by {difference:.1e} of '
                    f'its largest value for images of {tuple(image.shape)}: nothing was written. Other '
                    'versions of torch, onnx and onnxruntime may do better'
                )


def require_onnx() -> tuple[Any, Any]:
    """Import what writes and runs programs of ONNX.

    Returns:
        The modules onnx and onnxruntime.

    Raises:
        ImportError: If onnx, onnxscript or onnxruntime is missing.
    """
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f'{error.name} is missing: pip install "cmid-geo[export]"'
        ) from error
    return onnx, onnxruntime


def write_onnx(raw: RawBackbone, metadata: dict[str, Any], file: Path) -> None:
    """Translate into ONNX, note what is known, and compare in onnxruntime.

    Args:
        raw: To translate, in evaluation mode.
        metadata: Goes into the metadata of the file.
        file: To write.

    Raises:
        ImportError: If onnx, onnxscript or onnxruntime is missing.
        RuntimeError: If the program does not give what PyTorch gives.
    """
    onnx, onnxruntime = require_onnx()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        _translate(raw, file)
    model = onnx.load(file)
    axes = ('batch', None, 'height', 'width'), ('batch', None, 'rows', 'cols')
    for value, names in zip((model.graph.input[0], model.graph.output[0]), axes):
        for dimension, name in zip(value.type.tensor_type.shape.dim, names):
            if name is not None:
                dimension.dim_param = name
    # Metadata of ONNX are strings
    texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in metadata.items()}
    onnx.helper.set_model_props(model, texts)
    onnx.save(model, file)
    session = onnxruntime.InferenceSession(file, providers=['CPUExecutionProvider'])

    def run(image: Tensor) -> Tensor:
        """Features of images (batch, bands, height, width), by ONNX."""
        (features,) = session.run(None, {'image': image.numpy()})
        return torch.from_numpy(np.asarray(features))

    raw.check(run)


def _translate(raw: RawBackbone, file: Path) -> None:
    """Write an ONNX file by the one of torch's two exporters that can."""
    example = (raw.example(2, 7, 8),)
    names: dict[str, Any] = {'input_names': ['image'], 'output_names': ['features']}
    if isinstance(raw.backbone, MaskedSwin):
        # Swin pads to its windows: torch.export reasons about those sizes for minutes, a
        # trace has them in seconds. ViT resamples positions, which only the other can write.
        axes = {'image': {0: 'batch', 2: 'height', 3: 'width'}}
        torch.onnx.export(
            raw, example, str(file), dynamo=False, dynamic_axes=axes, opset_version=18, **names
        )  # fmt: skip
        return
    sizes = ({axis: torch.export.Dim.DYNAMIC for axis in (0, 2, 3)},)
    program = torch.onnx.export(
        raw, example, dynamo=True, verbose=False, dynamic_shapes=sizes, **names
    )
    if program is None:
        raise RuntimeError(f'torch.onnx made no program of {raw.backbone.name}')
    program.save(file)


def write_torchscript(raw: RawBackbone, metadata: dict[str, Any], file: Path) -> None:
    """Trace into TorchScript, note what is known, and compare.

    Args:
        raw: To translate, in evaluation mode.
        metadata: Goes into the extra file ``cmid_geo.json``.
        file: To write.

    Raises:
        RuntimeError: If the program does not give what PyTorch gives.
    """
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        traced = torch.jit.trace(raw, (raw.example(2, 7, 8),), check_trace=False)
        extra = {'cmid_geo.json': json.dumps(metadata)}
        torch.jit.save(traced, file, _extra_files=extra)
        loaded = torch.jit.load(file)
    raw.check(loaded)
