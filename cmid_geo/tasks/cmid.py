# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Contrastive Mask Image Distillation (CMID)."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchvision.models import WeightsEnum

from ..losses import (
    PrototypeLoss,
    ReconstructionLoss,
    info_nce,
    nearest_cells,
    take_cells,
)
from ..models.backbones import create_backbone
from ..models.encoder import Encoder, Encoding
from ..models.heads import PixelDecoder, Projector, PrototypeHead
from ..models.teacher import KeyQueue, make_teacher
from ..ops.cells import hide_cells
from ..transforms.views import TwoViews, View, check_size
from .pretraining import Comparison, Pretraining
from .types import Batch, StepOutput
from .warm_start import start_from

#: Smallest and largest area of a small view, as fractions of the chip's (SwAV, arXiv 2006.09882).
LOCAL_SCALE = (0.05, 0.3)

#: Arguments for a few thousand small chips, see :meth:`CMID.small_data`.
SMALL_DATA: dict[str, Any] = {
    'size': 64, 'cell': 16, 'queue_size': 4096, 'mask_ratio': 0.3, 'local_views': 4, 'momentum': 0.99,
    'lr': 3e-3, 'warmup_epochs': 5, 'teacher_temp_epochs': 25,
}  # fmt: skip


class CMID(Pretraining):
    """CMID: contrast, masked reconstruction and local distillation at once.

    One chip gives two located views. Both go masked through the student, and whole through
    the teacher, a moving average of the student. The student rebuilds the hidden pixels,
    its vector of a view picks out the teacher's vector of the other view among those of
    older images, and its cells match the prototypes of the teacher's cells at the same
    place on the ground in the other view.

    Batches are dictionaries with ``image``, chips in [0, 1] of shape (batch, bands, height,
    width), or (batch, dates, bands, height, width), and optionally ``valid``, True where a
    pixel holds data.

    If you use this task in your research, please cite the following paper:

    * https://doi.org/10.1109/TGRS.2023.3268232
    """

    def __init__(
        self,
        model: str = 'resnet50',
        weights: WeightsEnum | str | bool | None = None,
        in_channels: int = 3,
        size: int = 224,
        queue_size: int = 65536,
        mask_ratio: float = 0.6,
        matches: int | None = None,
        hidden_dim: int = 2048,
        output_dim: int = 256,
        num_prototypes: int = 2048,
        temperature: float = 0.2,
        student_temp: float = 0.1,
        teacher_temp_start: float = 0.04,
        teacher_temp: float = 0.07,
        teacher_temp_epochs: float = 50.0,
        teacher_temp_steps: int | None = None,
        momentum: float = 0.996,
        momentum_end: float = 1.0,
        center_momentum: float = 0.9,
        alpha: float = 0.2,
        gamma: float = 1.0,
        spectral_weight: float = 1.0,
        visible_weight: float = 0.001,
        reconstruction_weight: float = 1.0,
        global_weight: float = 1.0,
        local_weight: float = 1.0,
        lr: float = 1e-3,
        lr_end: float = 1e-6,
        lr_batch_size: int = 64,
        weight_decay: float = 0.02,
        betas: tuple[float, float, float] = (0.98, 0.92, 0.99),
        warmup_epochs: float = 10.0,
        warmup_steps: int | None = None,
        bands: Sequence[str | int] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        export_source: Literal['teacher', 'student'] = 'student',
        augmentations: nn.Module | None = None,
        compiled: bool = False,
        cell: int = 32,
        local_views: int = 0,
    ) -> None:
        """Initialize a new CMID instance.

        The defaults are the constants that the paper prints. What else differs from its authors'
        training:

        * Views are flipped vertically and turned by quarters too (``TwoViews(turns=False)`` does
          not), and blurred with a kernel of 7 pixels, not of 3 to 7.
        * Cells are matched by the true positions of their receptive fields; the authors' positions
          hardly depend on where a crop lies, and are those of the cells' centres.
        * The decoder starts at 0, and so from the mean image; prototypes start from a truncated
          normal distribution (0.02). The paper prints neither.
        * The queue starts empty and only its filled part counts; the authors' is full of random
          vectors.
        * Each process has batch norms of its own; the authors synchronise them over processes, as
          ``Trainer(sync_batchnorm=True)`` does.
        * Queue and centre move once a batch, so with accumulated gradients several times a step;
          the authors' centre moves once a direction, twice a batch.

        Args:
            model: timm's name of a ResNet, Swin, ViT or ConvNeXt.
            weights: Where to start from, see :func:`~cmid_geo.tasks.warm_start.start_from`: a
                weights enum or its name, the path of a file, True for timm's ImageNet
                weights, or None for random ones.
            in_channels: Number of bands.
            size: Side of the views in pixels, a multiple of *cell*.
            queue_size: Number of older keys to contrast with, at most twice the chips of
                an epoch: a longer queue would hold a chip's own old keys.
            mask_ratio: Fraction of the cells to hide from the student.
            matches: Cells to match in each image and direction; by default 20 of 49 (the
                paper's, of views of 224 pixels), and as large a part of fewer or more cells.
            hidden_dim: Units of the heads' hidden layers.
            output_dim: Length of embeddings and prototypes.
            num_prototypes: Number of prototypes.
            temperature: Of the global loss.
            student_temp: Of the student's assignments.
            teacher_temp_start: Of the teacher's assignments, at the first step.
            teacher_temp: Of the teacher's assignments, after the rise.
            teacher_temp_epochs: Epochs of the rise.
            teacher_temp_steps: Steps of the rise, instead of epochs.
            momentum: Weight of the old teacher in the new one, at the first step.
            momentum_end: The same at the end.
            center_momentum: Weight of the old centre of the assignments in the new one.
            alpha: See :func:`~cmid_geo.losses.focal_l1`.
            gamma: See :func:`~cmid_geo.losses.focal_l1`.
            spectral_weight: See :class:`~cmid_geo.losses.ReconstructionLoss`.
            visible_weight: See :class:`~cmid_geo.losses.ReconstructionLoss`.
            reconstruction_weight: Weight of the first loss.
            global_weight: Weight of the second loss.
            local_weight: Weight of the third loss.
            lr: Learning rate for a global batch of *lr_batch_size*; scaled in proportion.
            lr_end: Learning rate at the end.
            lr_batch_size: Images that *lr* is meant for.
            weight_decay: On all parameters but biases and norms.
            betas: Of the Adan optimizer.
            warmup_epochs: Epochs over which the learning rate rises.
            warmup_steps: Steps of that rise, instead of epochs.
            bands: Names of the bands; taken from the datamodule where it has them.
            mean: Mean of each band in [0, 1]; taken from the datamodule where it has them,
                else the authors' for RGB.
            std: Standard deviation of each band in [0, 1]; from where *mean* comes by default.
            export_source: Whose backbone the fit ends with. The student's made better
                neighbours in our runs, see ``benchmarks/results/weights.md``.
            augmentations: Module called with chips and valid that gives two
                :class:`~cmid_geo.transforms.View`; ``TwoViews(size)`` by default.
            compiled: Whether fits compile both backbones, which takes a minute at first: on an H100 a
                step of a ResNet-50 then costs 159 ms instead of 225.
            cell: Side of a cell in pixels: 32 as in the paper, or 16, which leaves chips of 64 to 128
                pixels cells enough to hide and to match. A step then costs more: the last stage works
                on four times as many places. Exported backbones are the same.
            local_views: Further crops of each chip for the student alone, of half the side, of 5 to
                30 % of the chip's area and with nothing hidden: each has to pick out the teacher's
                vectors of both whole views, as in SwAV and DINO. Each costs the student a quarter of
                a view and the teacher nothing. The paper has none.

        Raises:
            ValueError: If *size* is no multiple of *cell*, *local_views* is negative, or *model* is
                not supported or has no cells of that size.
        """
        check_size(size, cell)
        if local_views < 0:
            raise ValueError(
                f'local_views={local_views}: give the number of small crops of each chip, 0 for none'
            )
        self.weights = weights
        super().__init__()
        # By this LightningCLI knows the class of a checkpoint
        self.hparams.setdefault('_class_path', 'cmid_geo.tasks.CMID')
        if not (weights is None or isinstance(weights, bool)):
            self.report = start_from(self, weights)
        if augmentations is not None:
            self.augmentations = augmentations
            self.prepare_augmentations()

    @classmethod
    def small_data(cls, model: str = 'resnet18', **changes: Any) -> 'CMID':
        """CMID for a few thousand small chips, by what was measured on such (``docs/small_data.md``).

        The paper's constants are for a million chips of 224 pixels on several GPUs. These are for
        chips of 64 to 128 pixels, one device and runs of minutes to hours; ``SMALL_DATA`` holds
        them, ``configs/pretrain_small.yaml`` is the same as a configuration.

        Args:
            model: timm's name of a network.
            **changes: Other arguments of :class:`CMID`, or other values than these.

        Returns:
            The task.
        """
        given: dict[str, Any] = SMALL_DATA | {'model': model} | changes
        return cls(**given)

    def configure_models(self) -> None:
        """Build student, teacher, decoder, queue and augmentations."""
        given, bands = self.hparams, self.hparams['in_channels']
        backbone = create_backbone(
            given['model'], bands, self.weights is True, given['cell']
        )
        widths = backbone.num_features, given['hidden_dim'], given['output_dim']
        projector = Projector(*widths)
        prototypes = PrototypeHead(
            *widths, given['num_prototypes'], backbone.convolutional
        )
        self.student = Encoder(backbone, projector, prototypes)
        self.teacher = make_teacher(self.student)
        self.decoder = PixelDecoder(backbone.num_features, bands, backbone.cell)
        self.queue = KeyQueue(given['queue_size'], given['output_dim'])

        self.augmentations = TwoViews(
            given['size'], given['mask_ratio'], cell=backbone.cell
        )
        self.local_augmentations = None
        if given['local_views']:
            half = max(given['size'] // backbone.cell // 2, 1) * backbone.cell
            self.local_augmentations = TwoViews(
                half, 0.0, LOCAL_SCALE, cell=backbone.cell
            )
        self.configure_values()

    def configure_losses(self) -> None:
        """Build the losses that have constants or memory."""
        given = self.hparams
        constants = ('alpha', 'gamma', 'spectral_weight', 'visible_weight')
        self.rebuild = ReconstructionLoss(*(given[name] for name in constants))
        constants = ('num_prototypes', 'student_temp', 'center_momentum')
        self.assign = PrototypeLoss(*(given[name] for name in constants))

    def training_step(self, batch: Batch, batch_idx: int) -> StepOutput:
        """Compute the losses of a batch, after which the callback ``Remember`` moves the memory.

        Args:
            batch: ``image`` and optionally ``valid``, see the class.
            batch_idx: Index of the batch in its epoch.

        Returns:
            The ``loss``; what the memory takes is the teacher's ``keys``, and the mean ``scores`` of
            the matched ``cells``.
        """
        chips, valid = batch['image'], batch.get('valid')
        first, second = self.augmentations(chips, valid)
        compared = self.compare(first, second, self.draw_local(chips, valid))
        self.log_comparison(compared, 'train')
        total = compared.weight.sum()
        scores = (compared.scores * compared.weight[:, None]).sum(0)
        scores = scores / total.clamp_min(1e-6)
        return {
            'loss': self.weigh(compared.losses),
            'losses': compared.losses.detach(),
            'keys': compared.keys,
            'scores': scores[None],
            'cells': total[None],
        }

    def draw_local(self, chips: Tensor, valid: Tensor | None) -> list[View]:
        """Draw the small views of chips, in turn plain and strongly altered ones."""
        small, number = self.local_augmentations, self.hparams['local_views']
        drawn: list[View] = []
        while small is not None and len(drawn) < number:
            drawn += small(chips, valid)
        return drawn[:number]

    def compare(
        self, first: View, second: View, local: Sequence[View] = ()
    ) -> Comparison:
        """Compare two views by all three losses, without side effects.

        Args:
            first: The plain view.
            second: The strong view.
            local: Small views, whose contrast with both counts in the global loss: it is the mean
                over all pairs of a student's and a teacher's view.

        Returns:
            The losses, each the mean over both directions, and what went into them.
        """
        # First, as it keeps nothing for a backward: the student then reuses its memory
        with torch.no_grad():
            whole_first = self.teacher(first.image)
            whole_second = self.teacher(second.image)
        seen_first, seen_second = self.see(first), self.see(second)
        shown = (first.valid_cells.any(1) & second.valid_cells.any(1)).float()

        pixels = self.reconstruct(first, seen_first)
        pixels = pixels + self.reconstruct(second, seen_second)
        keys = torch.stack([whole_first.embedding, whole_second.embedding])
        globe = self.contrast(seen_first.embedding, keys, 1, shown)
        globe = globe + self.contrast(seen_second.embedding, keys, 0, shown)
        if local:
            small = self.student(torch.cat([view.image for view in local])).embedding
            known = torch.stack([view.valid_cells.any(1) for view in local])
            for place, view in enumerate((first, second)):
                weight = (known & view.valid_cells.any(1)).float().flatten()
                globe = globe + len(local) * self.contrast(small, keys, place, weight)
            globe = globe / (1 + len(local))
        there = self.distil(first, seen_first, second, whole_second)
        back = self.distil(second, seen_second, first, whole_first)
        return Comparison(
            losses=torch.stack([pixels, globe, there[0] + back[0]]) / 2,
            keys=keys,
            embedding=seen_first.embedding,
            scores=torch.cat([there[1], back[1]]),
            weight=torch.cat([there[2], back[2]]),
        )

    def see(self, view: View) -> Encoding:
        """Encode what the student may see of a view."""
        return self.student(hide_cells(view.image, view.mask, view.valid), view.mask)

    def reconstruct(self, view: View, seen: Encoding) -> Tensor:
        """Reconstruction loss: rebuild the view from what was seen of it."""
        rebuilt = self.decoder(seen.features)
        return self.rebuild(rebuilt, view.image, view.mask, view.valid)

    def contrast(
        self, query: Tensor, keys: Tensor, view: int, weight: Tensor
    ) -> Tensor:
        """Global loss: pick out the teacher's vector of another view of the same image.

        Args:
            query: The student's vectors (views x batch, dim), one view of all images after the other.
            keys: The teacher's vectors (2, batch, dim) of the whole views.
            view: Which of them to pick.
            weight: Weight of each query.

        Returns:
            The loss.
        """
        queue = self.queue
        key = keys[view].repeat(len(query) // keys.shape[1], 1)
        return info_nce(
            query, key, queue.keys, self.hparams['temperature'], weight, queue.filled
        )

    def distil(
        self, view: View, seen: Encoding, other: View, whole: Encoding
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Local loss: match the teacher's prototypes at the same place in the other view.

        Args:
            view: What the student saw.
            seen: What it made of it.
            other: What the teacher saw whole.
            whole: What it made of it.

        Returns:
            The loss, and the teacher's scores and the weight of each matched cell.
        """
        known, others = view.valid_cells, other.valid_cells
        places = view.positions, other.positions
        cells, partners = nearest_cells(*places, self.hparams['matches'], known, others)
        weight = (known.gather(1, cells) & others.gather(1, partners)).float().flatten()
        there = take_cells(whole.cells, partners).flatten(0, 1)
        with torch.no_grad():
            scores = self.teacher.prototypes(there)
        guess = self.student.prototypes(take_cells(seen.cells, cells).flatten(0, 1))
        return self.assign(guess, scores, self.teacher_temp(), weight), scores, weight
