# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""What writing old files and reading them have in common.

Nothing here may name more of the package than its public names: it runs with two versions.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback
from rasterio.transform import from_origin
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.convnext import ConvNeXt
from timm.models.resnet import BasicBlock, ResNet
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from cmid_geo import View, predict_scene

#: Side of images in pixels.
SIDE = 64

default_cfgs = generate_default_cfgs({
    name: {'num_classes': 0, 'first_conv': first, 'classifier': head}
    for name, first, head in (
        ('resnet_old', 'conv1', 'fc'),
        ('vit_old', 'patch_embed.proj', 'head'),
        ('swin_old', 'patch_embed.proj', 'head.fc'),
        ('convnext_old', 'stem.0', 'head.fc'),
    )
})  # fmt: skip


@register_model
def resnet_old(pretrained: bool = False, **options: Any) -> Any:
    """Build a ResNet of 14 thousand parameters; the smallest of timm's has five million."""
    return build_model_with_cfg(
        ResNet, 'resnet_old', pretrained, block=BasicBlock, layers=(1, 1, 1, 1),
        channels=(4, 4, 8, 8), **options,
    )  # fmt: skip


@register_model
def vit_old(pretrained: bool = False, **options: Any) -> Any:
    """Build a ViT of a width of eight."""
    return build_model_with_cfg(
        VisionTransformer, 'vit_old', pretrained, img_size=SIDE, patch_size=16,
        embed_dim=8, depth=1, num_heads=2, mlp_ratio=2, **options,
    )  # fmt: skip


@register_model
def swin_old(pretrained: bool = False, **options: Any) -> Any:
    """Build a Swin that begins with a width of four."""
    return build_model_with_cfg(
        SwinTransformer, 'swin_old', pretrained, img_size=SIDE, window_size=2,
        embed_dim=4, depths=(1, 1, 1, 1), num_heads=(1, 1, 2, 2), mlp_ratio=1,
        feature_cfg={'flatten_sequential': True, 'out_indices': (0, 1, 2, 3)}, **options,
    )  # fmt: skip


@register_model
def convnext_old(pretrained: bool = False, **options: Any) -> Any:
    """Build a ConvNeXt of widths of four and eight."""
    return build_model_with_cfg(
        ConvNeXt, 'convnext_old', pretrained, depths=(1, 1, 1, 1), dims=(4, 4, 8, 8),
        feature_cfg={'out_indices': (0, 1, 2, 3), 'flatten_sequential': True}, **options,
    )  # fmt: skip


def make_image(*batch: int, bands: int = 2) -> Tensor:
    """Compute an image in [0, 1], the same with each version of torch.

    Args:
        *batch: Dimensions before the bands.
        bands: Number of bands.

    Returns:
        Smooth waves.
    """
    shape = (*batch, bands, SIDE, SIDE)
    steps = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
    waves = torch.sin(steps * 0.37) + torch.sin(steps / SIDE * 0.23)
    return (waves / 4 + 0.5).float().view(shape)


def write_scenes(folder: Path, names: tuple[str, ...] = ('red', 'nir')) -> Path:
    """Write a scene of two bands.

    Args:
        folder: For ``a.tif``.
        names: Of the bands; none to leave them without.

    Returns:
        The folder.
    """
    rows, cols = np.mgrid[:128, :128]
    bands = [(rows * a + cols * b + rows * cols) % 4000 for a, b in ((37, 91), (53, 7))]
    write_raster(folder / 'a.tif', np.stack(bands).astype(np.uint16), names)
    return folder


def write_raster(path: Path, array: Any, names: tuple[str, ...] = ()) -> None:
    """Write a GeoTIFF.

    Args:
        path: Of the file; its folder is made.
        array: (bands, rows, cols).
        names: Of the bands.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    count, height, width = array.shape
    with rasterio.open(
        path, 'w', driver='GTiff', count=count, height=height, width=width, dtype=array.dtype,
        crs='EPSG:32633', transform=from_origin(500000, 5000000, 10, 10), photometric='minisblack',
    ) as file:  # fmt: skip
        file.write(array)
        for number, name in enumerate(names, 1):
            file.set_band_description(number, name)


@torch.no_grad()
def look(task: Any) -> dict[str, Tensor]:
    """Compute what a task says of fixed images.

    Args:
        task: In evaluation mode afterwards.

    Returns:
        A few numbers by what they are.
    """
    return {name: each.float() for name, each in _LOOKS[type(task).__name__](task)}


def _look_pretraining(task: Any) -> Any:
    yield 'features', task.eval()(make_image(2))
    # All its parts are in the losses, and so are the queue and the centre
    yield 'losses', task.compare(_make_view(0.0), _make_view(0.5)).losses


def _make_view(shift: float) -> View:
    cells = SIDE // 32
    grid = torch.cartesian_prod(*[torch.arange(cells) * 32.0 + 15.5] * 2).flip(1)
    return View(
        image=(make_image(2) - 0.5) * 4 + shift,
        mask=torch.eye(cells, dtype=torch.bool).expand(2, -1, -1),
        positions=grid.expand(2, -1, -1),
        valid=torch.ones(2, SIDE, SIDE, dtype=torch.bool),
    )


def _look_image(task: Any) -> Any:
    yield 'scores', task.eval()(make_image(2))


def _look_pixels(task: Any) -> Any:
    dates = (2,) if type(task).__name__ == 'ChangeDetection' else ()
    yield 'scores', F.avg_pool2d(task.eval()(make_image(1, *dates)), 16)


def _look_objects(task: Any) -> Any:
    (found,) = task.eval()(make_image(1))
    for name in ('boxes', 'scores', 'labels'):
        yield name, found[name][:5]


_LOOKS: dict[str, Callable[..., Any]] = {
    'CMID': _look_pretraining,
    'ChangeDetection': _look_pixels,
    'Classification': _look_image,
    'ObjectDetection': _look_objects,
    'OrientedDetection': _look_objects,
    'SemanticSegmentation': _look_pixels,
}


def map_scene(checkpoint: Path, scene: Path, out: Path) -> Any:
    """Map a scene.

    Args:
        checkpoint: Of a task that tells classes of pixels.
        scene: To map.
        out: File to write.

    Returns:
        Some of the probabilities, as lists.
    """
    predict_scene(
        checkpoint, scene, out, size=SIDE, device='cpu', output='probabilities'
    )
    with rasterio.open(out) as file:
        return file.read()[:, ::16, ::16].tolist()


class Restored(Callback):
    """Notes what a run begins with: ``step``, ``rate`` and ``sums``."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Note the step, the rate, and sums of parameters with those of what Adan knows of them."""
        (optimizer,) = trainer.optimizers
        groups = optimizer.param_groups
        sums = [
            [each.detach().double().sum().item() for each in (p, *_moments(optimizer.state[p]))]
            for group in groups for p in group['params']
        ]  # fmt: skip
        self.told = {
            'step': trainer.global_step,
            'rate': groups[0]['lr'],
            'sums': sorted(sums),
        }


def _moments(state: Any) -> list[Tensor]:
    """Tensors of an optimizer's state of a parameter, of the parameter's shape."""
    return [state[name] for name in sorted(state) if torch.as_tensor(state[name]).ndim]
