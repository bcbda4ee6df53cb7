# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""CMID and the methods it is compared with, as a plain loop trains them.

All begin from random weights. Each has its authors' or TorchGeo's constants unless a trial sets
others, its own optimizer, and the same schedule: a warm-up of 5 %, then a cosine.
"""

import copy
import math
from dataclasses import replace
from functools import partial
from typing import Any
from unittest.mock import patch

import timm
import torch
from kornia import augmentation as K
from lightly.loss import DINOLoss
from lightly.models.modules import DINOProjectionHead
from lightly.models.utils import update_momentum
from torch import Tensor, nn
from torchgeo.tasks import BYOL, MAE, MoCo, SimCLR
from torchgeo.tasks.byol import SimCLRAugmentation
from torchgeo.tasks.simclr import LARS, simclr_augmentations

from cmid_geo.callbacks.remember import Remember
from cmid_geo.tasks import CMID
from cmid_geo.tasks.optimization import follow_schedule, make_optimizer
from cmid_geo.tasks.schedules import Horizon
from cmid_geo.transforms.views import TwoViews, View

#: Part of a run over which the rate rises.
WARMUP = 0.05
#: Part over which the temperatures of teachers rise: 50 of the paper's 200 epochs.
TEMPERATURE = 0.25


class DINO(nn.Module):
    """DINO of lightly's parts, with TorchGeo's views and small crops of half their side."""

    def __init__(
        self, model: str, size: int, crops: int = 6, momentum: float = 0.996,
        output_dim: int = 2048, lr: float = 5e-4, weight_decay: float = 0.04,
    ) -> None:  # fmt: skip
        super().__init__()
        self.hparams = {
            'lr': lr, 'weight_decay': weight_decay, 'momentum': momentum, 'crops': crops,
        }  # fmt: skip
        backbone = timm.create_model(model, num_classes=0)
        widths = backbone.num_features, 512, 64, output_dim
        self.backbone, self.head = (
            backbone,
            DINOProjectionHead(*widths, batch_norm=True),
        )
        self.backbone_momentum = copy.deepcopy(backbone).requires_grad_(False)
        # Heads with weight norm cannot be copied
        self.head_momentum = DINOProjectionHead(*widths, batch_norm=True)
        self.head_momentum.load_state_dict(self.head.state_dict())
        self.head_momentum.requires_grad_(False)
        self.criterion = DINOLoss(output_dim, teacher_temp=0.04)
        grey = torch.ones(3)
        self.whole = simclr_augmentations(size, grey)
        self.small = simclr_augmentations(size // 2, grey)
        self.whole[0] = K.RandomResizedCrop((size, size), scale=(0.3, 1.0))
        self.small[0] = K.RandomResizedCrop((size // 2, size // 2), scale=(0.05, 0.3))
        self.trainer: Any = None

    def training_step(self, batch: dict[str, Tensor], _: int) -> Tensor:
        step, total = self.trainer.global_step, self.trainer.max_epochs
        start, image = self.hparams['momentum'], batch['image']
        momentum = 1 - (1 - start) * (math.cos(math.pi * step / total) + 1) / 2
        with torch.no_grad():
            update_momentum(self.backbone, self.backbone_momentum, momentum)
            update_momentum(self.head, self.head_momentum, momentum)
            views = [self.whole(image) for _ in range(2)]
            views += [self.small(image) for _ in range(self.hparams['crops'])]
            known = [self.head_momentum(self.backbone_momentum(v)) for v in views[:2]]
        seen = [self.head(self.backbone(view)) for view in views]
        rise = min(1.0, step / max(1, TEMPERATURE * total))
        return self.criterion(known, seen, teacher_temp=0.04 + 0.03 * rise)


def make(trial: Any, images: Tensor, scale: Any) -> Any:
    """The task of a trial.

    Args:
        trial: ``method``; optionally ``set`` (arguments of the task), ``views`` (of CMID's
            views), ``low`` (side of its views at first, and for which part of the run), ``stride`` (of
            the others' networks, 32 by default), ``open`` (whether residual branches count from the
            start); of CMID also ``projector`` (layers of one with batch norms) and ``offsets`` ('forgotten',
            for positions that do not know where their crop lies).
        images: Bytes (number, 3, height, width), for their mean and standard deviation.
        scale: ``model``, ``vit``, ``size``, ``cell``, ``queue``.
    """
    method, given = trial['method'], dict(trial.get('set', {}))
    stride = {'output_stride': trial['stride']} if 'stride' in trial else {}
    with patch.object(timm, 'create_model', partial(timm.create_model, **stride)):
        task = _make(method, given, trial, images, scale)
    if trial.get('open'):
        # Residual branches count from the start, where timm starts them at 0
        for weight in last_norms(task):
            nn.init.ones_(weight)
    return task


def _make(method: str, given: Any, trial: Any, images: Tensor, scale: Any) -> Any:
    model, size = scale.model, scale.size
    if method == 'simclr':
        # Negatives of the batch alone: the default bank is larger than the data
        return SimCLR(model, size=size, **{'memory_bank_size': 0, 'lr': 0.3} | given)
    if method == 'mocov2':
        constants = {
            'version': 2, 'layers': 2, 'hidden_dim': 2048, 'output_dim': 128, 'lr': 0.03,
            'weight_decay': 1e-4, 'temperature': 0.07, 'memory_bank_size': 4096,
            'moco_momentum': 0.999,
        }  # fmt: skip
        return MoCo(model, size=size, **constants | given)
    if method == 'mocov3':
        constants = {
            'version': 3, 'layers': 3, 'hidden_dim': 4096, 'output_dim': 256, 'lr': 6e-4,
            'weight_decay': 0.1, 'temperature': 1.0, 'memory_bank_size': 0,
            'moco_momentum': 0.99,
        }  # fmt: skip
        return MoCo(model, size=size, **constants | given)
    if method == 'byol':
        task = BYOL(model, **given)
        # Its size is fixed at 224
        task.model.augment = SimCLRAugmentation((size, size))
        return task
    if method == 'mae':
        constants = {'model': scale.vit, 'decoder_dim': 192, 'decoder_num_heads': 3}
        with patch.object(
            timm, 'create_model', partial(timm.create_model, img_size=size)
        ):
            return MAE(size=size, **constants | given)
    if method == 'dino':
        return DINO(model, size, **given)
    pixels = images[:1024].float() / 255
    # The default queue is longer than two epochs of these data, which a fit refuses
    constants = {
        'size': size, 'queue_size': scale.queue, 'cell': scale.cell,
        'mean': pixels.mean((0, 2, 3)).tolist(), 'std': pixels.std((0, 2, 3)).tolist(),
    } | given  # fmt: skip
    task = CMID(model, **constants)
    if 'projector' in trial:
        normalize_projector(task, trial['projector'])
    if 'views' in trial:
        kept = constants['size'], constants.get('mask_ratio', 0.6)
        task.augmentations = TwoViews(*kept, cell=constants['cell'], **trial['views'])
        task.prepare_augmentations()
    if trial.get('offsets') == 'forgotten':
        # Of whichever views the trial has
        task.augmentations.register_forward_hook(
            lambda _, __, drawn: tuple(map(without_corner, drawn))
        )
    return task


def normalize_projector(task: CMID, layers: int) -> None:
    """Give CMID a projector with batch norms, of so many layers, as SimCLR and MoCo v3 have."""
    width, given = task.student.backbone.num_features, task.hparams
    parts: list[nn.Module] = []
    for _ in range(layers - 1):
        norm = nn.BatchNorm1d(given['hidden_dim'])
        linear = nn.Linear(width, given['hidden_dim'], bias=False)
        parts += [linear, norm, nn.ReLU()]
        width = given['hidden_dim']
    last = nn.Linear(width, given['output_dim'], bias=False)
    parts += [last, nn.BatchNorm1d(given['output_dim'], affine=False)]
    task.student.projector.layers = nn.Sequential(*parts)
    task.teacher.projector.layers = copy.deepcopy(task.student.projector.layers)
    task.teacher.requires_grad_(False)


def without_corner(view: View) -> View:
    """Positions from which the place of the crop is gone, as in the code of CMID's authors.

    They add a crop's offset as a fraction of its range to cell sizes in pixels.
    """
    corner = view.positions.amin(1, keepdim=True)
    return replace(view, positions=view.positions - corner)


def resize(task: Any, side: int) -> None:
    """Cut CMID's views at another size."""
    views = task.augmentations
    views.crop.size, views.size = (side, side), side


def backbones(task: Any) -> dict[str, Any]:
    """Networks of a task that could be exported."""
    if isinstance(task, CMID):
        return {'student': task.student.backbone, 'teacher': task.teacher.backbone}
    if isinstance(task, BYOL):
        found = task.model.backbone.model, task.model.target.model
        return dict(zip(('student', 'teacher'), found))
    if isinstance(task, MAE):
        return {'student': task.backbone.vit}
    both = {'student': task.backbone}
    if hasattr(task, 'backbone_momentum'):
        both['teacher'] = task.backbone_momentum
    return both


def last_norms(task: Any) -> list[Tensor]:
    """Weights of the last batch norms of the residual branches of all networks."""
    return [
        getattr(block, 'bn3', getattr(block, 'bn2', None)).weight
        for network in backbones(task).values()
        for block in network.modules()
        if type(block).__name__ in ('BasicBlock', 'Bottleneck')
    ]


def optimize(task: Any, total: int, batch: int, chips: int) -> tuple[Any, Any]:
    """Optimizer and schedule of a task."""
    given, warmup = task.hparams, max(1, round(total * WARMUP))
    end = 0.0
    if isinstance(task, CMID):
        task.horizon = Horizon(total, warmup, round(total * TEMPERATURE), batch, chips)
        rate = given['lr'] * batch / given['lr_batch_size']
        optimizer = make_optimizer(
            task, 'adan', rate, given['weight_decay'], betas=given['betas']
        )
        end = given['lr_end'] / rate
    elif isinstance(task, SimCLR) or (isinstance(task, MoCo) and given['version'] == 2):
        kind: Any = LARS if isinstance(task, SimCLR) else torch.optim.SGD
        learned = [p for p in task.parameters() if p.requires_grad]
        decay, momentum = given['weight_decay'], given['momentum']
        optimizer = kind(learned, lr=given['lr'], momentum=momentum, weight_decay=decay)
    else:
        # As TorchGeo and DINO's authors do
        optimizer = make_optimizer(
            task, 'adamw', given['lr'], given.get('weight_decay', 0.0)
        )
    found: Any = follow_schedule(optimizer, 'cosine', total, warmup, end)
    return optimizer, found['lr_scheduler']['scheduler']


class Memory:
    """What a Trainer would do after a step."""

    def __init__(self) -> None:
        self.remember = Remember()

    def __call__(self, loop: Any, task: Any, outputs: Any) -> None:
        if isinstance(task, CMID):
            self.remember.on_train_batch_end(loop, task, outputs, None, 0)
