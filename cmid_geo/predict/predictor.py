# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Tasks as they look at windows of raw values."""

import contextlib
import hashlib
from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torchgeo.datasets.utils import Path as PathLike
from torchgeo.tasks import BaseTask

from ..datasets.scene import Scene
from ..models.modes import evaluating
from ..ops.bands import find_bands, names_of
from ..ops.cells import CELL
from ..ops.value_range import scale
from ..options import Output, Precision, Turning
from ..tasks import CMID
from ..tasks.restoring import Restored
from .checkpoint import Backbone, open_task
from .inputs import SceneSource
from .outputs import Layer, Product, backbone_of, product_of
from .tta import find_dihedrals

#: The type that autocast uses, by Lightning's names of precisions.
HALVES = {'bf16-mixed': torch.bfloat16, '16-mixed': torch.float16}


class SceneMapper(Restored, LightningModule):
    """A task, or a backbone, as it looks at windows of scenes.

    Raw values are scaled by what the task carries; where there is no data it sees what it saw in
    training. Call it, or hand it to ``Trainer.predict`` with
    :class:`~cmid_geo.predict.SceneWindows` and :class:`~cmid_geo.predict.MapWriter`.
    """

    def __init__(
        self,
        task: nn.Module | PathLike,
        output: Output | None = None,
        *,
        components: int | None = None,
        threshold: float = 0.5,
        tta: Turning = 'none',
        low: Sequence[float] | float | None = None,
        high: Sequence[float] | float | None = None,
        dtype: str | None = None,
        labels: Sequence[str] | None = None,
        colors: Sequence[str] | None = None,
        stride: int = CELL,
    ) -> None:
        """Initialize a new SceneMapper instance.

        Args:
            task: A task, a backbone, any module from (B, C, H, W) to (B, K, H, W), or a checkpoint
                of a task or backbone.
            output: 'classes', 'probabilities' or 'both' of segmentation and change; by default
                what the task is for.
            components: Of a backbone's vectors, write so many principal components.
            threshold: Least probability of change or of a label, and least confidence of an object,
                in [0, 1].
            tta: Test-time augmentation: average over 'flips', 'turns', or 'all' eight.
            low: Raw value of each band, or of all, that becomes 0; the task's own by default.
            high: Raw value of each band, or of all, that becomes 1; the task's own by default.
            dtype: Of probabilities, 'float32' (default) or 'uint8', see
                :func:`~cmid_geo.predict.predict_scene`; of a plain
                module's map any, such as 'int16', to which values are rounded.
            labels: Names of the classes; the task's own by default.
            colors: Of the classes, as matplotlib knows them.
            stride: Pixels from one of a backbone's vectors to the next, a divisor of 32: those finer
                than its cells come from shifted cells, (32 / *stride*)² times as slowly.

        Raises:
            FileNotFoundError: If there is no such checkpoint.
            ValueError: If the task cannot be mapped with, or arguments do not fit it.
        """
        super().__init__()
        self.task: Any = task if isinstance(task, nn.Module) else open_task(task)
        self.product = product_of(
            self.task, output, threshold, labels, colors, components, stride, dtype
        )
        if (low is None) != (high is None):
            raise ValueError(f'low={low} and high={high}: give both, or none')
        self._digest: str | None = None
        self.dihedrals, self.threshold = find_dihedrals(tta), threshold
        self.dtype_wanted = dtype
        for name, value in (('low', low), ('high', high)):
            given = None if value is None else torch.as_tensor(value).float()
            self.register_buffer(name, given, persistent=False)

    @property
    def _shift(self) -> int:
        """Pixels to the right and below that a network sees a cell's centre at.

        A ResNet's vector sees the upper left corner of its cell (``field_offset``): shown pixels
        so much further, it sees the cell's centre, to within half a pixel.
        """
        return round(-backbone_of(self.task).coarse_offset)

    @property
    def margin(self) -> int:
        """Pixels to read around a window, so that a backbone's vectors lie where they look."""
        if self.product.kind != 'cells':
            return 0
        # Cells around places finer than they are reach beyond these
        return self._shift + CELL // 2 - self.product.stride // 2

    @contextlib.contextmanager
    def running(
        self, device: str | torch.device, precision: Precision = '32-true'
    ) -> Generator[None]:
        """Put the task on a device, in evaluation mode, and afterwards back.

        Args:
            device: 'auto' for an accelerator if there is one, or torch's name of one.
            precision: '32-true', 'bf16-mixed' or '16-mixed'.

        Yields:
            Nothing.

        Raises:
            ValueError: If there is no such precision.
        """
        names = get_args(Precision)
        if precision not in names:
            raise ValueError(f'precision={precision!r}: choose one of {[*names]}')
        if device == 'auto':
            device = torch.accelerator.current_accelerator(check_available=True) or 'cpu'  # fmt: skip
        chosen, half = torch.device(device), HALVES.get(precision)
        home = next((each.device for each in self.task.parameters()), 'cpu')
        autocast = torch.autocast(chosen.type, half, enabled=half is not None)
        try:
            self.to(chosen)
            with evaluating(self), torch.inference_mode(), autocast:
                yield
        finally:
            self.to(home)

    # ------------------------------------------------------------------ before

    def prepare(self, source: SceneSource, size: int) -> Product:
        """Check that a scene fits the task, and settle what only the two together tell.

        Args:
            source: The scene.
            size: Side of the windows, in pixels.

        Returns:
            How its map will be.

        Raises:
            ValueError: If bands or values do not fit.
        """
        name = type(self.task).__name__
        wanted = getattr(self.task, 'hparams', {}).get('in_channels')
        found = len(source.bands)
        if wanted is not None and wanted != found:
            raise ValueError(
                f'{source.name} has {found} bands {list(source.bands)} but {name} takes {wanted}: choose them in '
                'its order by bands='
            )
        self._check_limits(source)
        if self.product.kind in ('pixels', 'cells') and size % CELL:
            raise ValueError(
                f'size={size}: the maps of {name} have strides of up to {CELL} pixels, give a multiple of {CELL}'
            )
        if self.product.kind != 'plain':
            return self.product
        channels, dtype = self._try_out(source, size), self.dtype_wanted or 'float32'
        layer = Layer('', channels, dtype, float('nan'))
        if np.issubdtype(dtype, np.integer):
            # Any whole number may be what the module means, the scene's own nodata value too
            masked = source.dates[0].may_be_invalid
            layer = replace(layer, nodata=None, masked=masked)
        return replace(self.product, channels=channels, layers=(layer,))

    def _check_limits(self, source: SceneSource) -> None:
        """Refuse values of which nobody said what they mean, or that cannot mean it."""
        held, bands = source.dates[0].dtype, len(source.bands)
        low, high = self._limits()
        told = any(getattr(each, 'low', None) is not None for each in (self, self.task))
        # Bytes alone have a range of their own
        known = low is not None and (told or held == 'uint8')
        if isinstance(self.task, Backbone | BaseTask) and not known:
            raise ValueError(
                f'{source.name} holds {held} and {type(self.task).__name__} does not tell which raw values '
                'stand for 0 and 1: give low= and high='
            )
        if low is None or high is None:
            return
        if not {low.numel(), high.numel()} <= {1, bands} or not (low < high).all():
            raise ValueError(
                f'low={low.tolist()} and high={high.tolist()} of {bands} bands: give one value a band, or '
                'one for all, and high above low'
            )
        whole = np.issubdtype(held, np.integer)
        if whole and bool((low == 0).all()) and bool((high == 1).all()):
            raise ValueError(
                f'{source.name} holds whole numbers, of which the task knows only that 0 is 0 and 1 is 1: '
                'it was trained without a datamodule that tells; give low= and high=, such as 0 and 255'
            )

    def choose_bands(self, scene: Scene) -> list[str] | list[int] | None:
        """Choose the bands that the task was trained on, by the names that it knows.

        Args:
            scene: With all its bands.

        Returns:
            Names, or positions from 1, in the task's order; None for all in their own order.

        Raises:
            ValueError: If both name their bands, and the scene has not all that are needed.

        Warns:
            UserWarning: If only one of both does, so that bands are taken by their places.
        """
        known = getattr(self.task, 'hparams', {}).get('bands')
        if not isinstance(known, list | tuple) or not known:
            return None
        task, file = type(self.task).__name__, scene.files[0]
        wanted, names = names_of(known), list(scene.bands)
        if wanted and scene.positions:
            rank_zero_warn(
                f'{file!r} does not name its bands: they are taken in order as {wanted}, which {task} was '
                'trained on; others are chosen by bands='
            )
            return None
        if not wanted:
            if not scene.positions or len(names) != len(known):
                rank_zero_warn(
                    f'{task} was trained on files that do not name their bands: of {names} in {file!r} '
                    f'those at positions {list(known)} are taken; others are chosen by bands='
                )
            return None if list(known) == list(range(1, len(names) + 1)) else [*known]
        places = find_bands(wanted, names)
        missing = [band for band, place in zip(wanted, places) if place is None]
        if missing:
            raise ValueError(
                f'{file!r} has bands {names} but {task} was trained on {wanted}, of which {missing} are not '
                'there: map a scene that has them, or name those that stand for them, in its order, by bands='
            )
        chosen = [names[place] for place in places if place is not None]
        return None if chosen == names else chosen

    def _try_out(self, source: SceneSource, size: int) -> int:
        """See how many values a pixel a module makes of a window."""
        shape = (1, *source.shape, size, size)
        # In training mode it would learn from this
        with evaluating(self), torch.inference_mode():
            valid = torch.ones((1, size, size), dtype=torch.bool, device=self.device)
            result = self(torch.zeros(shape, device=self.device), valid)
        if result.ndim != 4 or result.shape[2:] != (size, size):
            raise ValueError(
                f'{type(self.task).__name__} turned {shape} into {tuple(result.shape)}: give a module that '
                'keeps height and width'
            )
        return result.shape[1]

    # ------------------------------------------------------------------ windows

    def _limits(self) -> tuple[Tensor | None, Tensor | None]:
        """Raw values that become 0 and 1: given ones, or the task's."""
        owner = self if self.low is not None else self.task
        low, high = (getattr(owner, name, None) for name in ('low', 'high'))
        if low is None and isinstance(self.task, Backbone):
            # Of bytes, which are all that is accepted then; made on the device, a copy would wait
            low = torch.zeros((), device=self.device)
            return low, low + 255
        # A module may call something else so
        return (None, None) if low is None else (low, high)

    def scale(self, image: Tensor, valid: Tensor) -> Tensor:
        """Bring raw values to what the task was trained on.

        Args:
            image: (B, ..., C, H, W), raw.
            valid: (B, H, W).

        Returns:
            In [0, 1]; raw for a module that knows no range.
        """
        low, high = self._limits()
        if low is None or high is None:
            return image
        scaled = scale(image, low.view(-1), high.view(-1))
        # Pretraining fills gaps with the mean, the other tasks with 0
        fills = isinstance(self.task, CMID | Backbone)
        mean = getattr(self.task, 'mean', None) if fills else None
        fill = 0.0 if mean is None else mean.view(-1, 1, 1)
        known = valid[:, None, None] if image.ndim == 5 else valid[:, None]
        return torch.where(known, scaled, fill)

    def forward(
        self,
        image: Float[Tensor, 'batch *dates bands size size'],
        valid: Bool[Tensor, 'batch size size'],
    ) -> Any:
        """Look at windows, in each orientation of test-time augmentation.

        Args:
            image: Raw values of windows, with :attr:`margin` around them.
            valid: Where there is data.

        Returns:
            Averages (batch, channels, rows, cols) float32; of a detector a list over the windows
            of ``boxes`` in pixels, ``scores`` and ``labels``.
        """
        image = self.scale(image, valid)
        if self.product.kind == 'objects':
            return self._detect(image)
        mean = None
        for number, each in enumerate(self.dihedrals, 1):
            logits = self._look(each.image(image))
            found = each.inverse.image(self.product.activate(logits))
            mean = found if mean is None else mean + (found - mean) / number
        return mean

    def _look(self, image: Tensor) -> Tensor:
        """What the network says; of a backbone for places that may be finer than its cells."""
        if self.product.kind != 'cells':
            return self.task(image).float()
        size, first = image.shape[-1] - 2 * self.margin, 2 * self._shift
        # Whichever way the image is rotated, it is the right and lower margin that is seen
        starts = range(first, first + CELL, self.product.stride)
        coarsen = backbone_of(self.task).coarsen
        parts = [
            coarsen(self.task(image[..., row : row + size, col : col + size])).float()
            for row in starts
            for col in starts
        ]
        return F.pixel_shuffle(torch.stack(parts, 2).flatten(1, 2), len(starts))

    def _detect(self, image: Tensor) -> list[dict[str, Tensor]]:
        """What is found in all orientations of each image; merging leaves one of each object."""
        found: list[list[dict[str, Tensor]]] = [[] for _ in image]
        side = image.shape[-1]
        for each in self.dihedrals:
            for own, seen in zip(found, self.task(each.image(image)), strict=True):
                boxes = each.inverse.boxes(seen['boxes'].float(), side, side)
                own.append(seen | {'boxes': boxes})
        names = 'boxes', 'scores', 'labels'
        return [
            {name: torch.cat([each[name] for each in own]) for name in names}
            for own in found
        ]

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        """Look at a batch of windows, unless they hold no data.

        Args:
            batch: Of :class:`~cmid_geo.predict.SceneWindows`.
            batch_idx: Not used.
            dataloader_idx: Not used.

        Returns:
            As of :meth:`forward`; None for each window without data.
        """
        if not any(batch['has_data']):
            return [None] * len(batch['index'])
        return self(batch['image'], batch['valid'])

    def notes(self) -> dict[str, Any]:
        """What maps depend on, beyond the scene: they are made again if any of it differs."""
        limits = [None if v is None else v.tolist() for v in self._limits()]
        product = self.product
        chosen = [
            [layer.suffix, layer.dtype, layer.names, layer.classes, layer.colours]
            for layer in (product.layers if product.kind == 'pixels' else ())
        ]
        notes = {
            'network': self.digest(), 'task': type(self.task).__name__, 'limits': limits,
            'turns': len(self.dihedrals), 'turned': self.dihedrals[-1].quarters,
            'layers': chosen, 'threshold': self.threshold, 'components': product.components,
            'dtype': self.dtype_wanted if product.kind == 'plain' else None, 'classes': list(product.classes or ()),
        }  # fmt: skip
        is_finer = product.kind == 'cells' and product.stride != CELL
        # Maps of other kinds were made without, and stay what they are
        special = {
            'margin': self.margin or None,
            'nms_thresh': product.nms_thresh if product.kind == 'objects' else None,
            'stride': product.stride if is_finer else None,
        }
        return notes | {k: v for k, v in special.items() if v is not None}

    def forget(self) -> None:
        """Look at the network's tensors anew: they may have changed."""
        self._digest = None

    def digest(self) -> str:
        """A short name of what maps depend on: the network's tensors."""
        if self._digest is None:
            state = hashlib.sha256()
            for name, tensor in sorted(self.task.state_dict().items()):
                state.update(name.encode())
                plain = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
                state.update(plain.detach().cpu().numpy().tobytes())
            self._digest = state.hexdigest()[:16]
        return self._digest
