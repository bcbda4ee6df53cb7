# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""What a task says of windows of raw values."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from ..datasets.scene import Scene
from ..ops.bands import find_bands, names_of
from ..ops.cells import CELL
from ..options import Turning
from ..tasks import CMID
from ..tasks.restoring import Restored
from .checkpoint import Backbone, evaluating, open_task
from .inputs import SceneSource
from .layers import Layer
from .outputs import Outcome, Output, backbone_of, outcome_of
from .ranges import check_range
from .tta import turns_of


class SceneMapper(Restored, LightningModule):
    """A task, or a backbone, as it looks at windows of scenes.

    Raw values are scaled by what the task carries; where there is no data it sees what it saw in
    training. Call it, or hand it to ``Trainer.predict`` with
    :class:`~cmid_geo.predict.SceneWindows` and :class:`~cmid_geo.predict.MapWriter`.
    """

    def __init__(
        self,
        task: nn.Module | str | os.PathLike[str],
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
    ) -> None:
        """Initialize a new SceneMapper instance.

        Args:
            task: A task, a backbone, any module from (B, C, H, W) to (B, K, H, W), or a checkpoint
                of a task or backbone.
            output: 'classes', 'probabilities' or 'both' of segmentation and change; by default
                what the task is for.
            components: Of a backbone's vectors, write so many principal components.
            threshold: Least share of change, or score of an object, in [0, 1].
            tta: Test-time augmentation: average over 'flips', 'turns', or 'all' eight.
            low: Raw value of each band, or of all, that stands for 0; the task's own by default.
            high: Likewise for 1.
            dtype: Of a plain module's map, such as 'uint8', to which values are rounded.
            labels: Names of the classes; the task's own by default.
            colors: Of the classes, as matplotlib knows them.

        Raises:
            FileNotFoundError: If there is no such checkpoint.
            ValueError: If the task cannot be mapped with, or arguments do not fit it.
        """
        super().__init__()
        self.task: Any = task if isinstance(task, nn.Module) else open_task(task)
        self.outcome = outcome_of(
            self.task, output, threshold, labels, colors, components
        )
        if (low is None) != (high is None):
            raise ValueError(f'low={low} and high={high}: give both, or none')
        self._digest: str | None = None
        self.turns, self.threshold = turns_of(tta), threshold
        self.components, self.dtype_wanted = components, dtype
        if components is not None and components > (self.outcome.channels or 0):
            raise ValueError(
                f'components={components} of vectors of {self.outcome.channels}: give at most as many'
            )
        for name, value in (('low', low), ('high', high)):
            given = None if value is None else torch.as_tensor(value).float()
            self.register_buffer(name, given, persistent=False)

    @property
    def margin(self) -> int:
        """Pixels to read around a window, so that a backbone's vectors lie where they look.

        A ResNet's vector sees the upper left corner of its cell (``field_offset``): shown pixels
        further to the right and below, it sees the cell's centre, to within half a pixel.
        """
        if self.outcome.kind != 'cells':
            return 0
        return round(-backbone_of(self.task).field_offset)

    # ------------------------------------------------------------------ before

    def prepare(self, source: SceneSource, size: int) -> Outcome:
        """Check that a scene fits the task, and settle what only the two together tell.

        Args:
            source: The scene.
            size: Side of the windows, in pixels.

        Returns:
            How its map will be.

        Raises:
            ValueError: If bands or values do not fit.
        """
        wanted = getattr(self.task, 'hparams', {}).get('in_channels')
        found = len(source.bands)
        if wanted is not None and wanted != found:
            raise ValueError(
                f'{source.name} has {found} bands {list(source.bands)} but {type(self.task).__name__} '
                f'takes {wanted}: choose them in its order by bands='
            )
        told = self.low is not None or getattr(self.task, 'low', None) is not None
        check_range(self.task, source, *self._limits(), told)
        outcome = self.outcome
        if outcome.kind in ('pixels', 'cells') and size % CELL:
            raise ValueError(
                f'size={size}: the maps of {type(self.task).__name__} have strides of up to {CELL} pixels, give a '
                f'multiple of {CELL}'
            )
        if outcome.kind == 'plain':
            return replace(outcome, **self._try_out(source, size))
        if outcome.kind == 'cells':
            layer = Layer('', outcome.channels or 1, 'float16', float('nan'))
            return replace(outcome, layers=(layer,))
        return outcome

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
        task, file, cure = (
            type(self.task).__name__,
            scene.files[0],
            'others are chosen by bands=',
        )
        wanted, names, count = names_of(known), list(scene.bands), len(known)
        if wanted and scene.positions:
            rank_zero_warn(
                f'{file!r} does not name its bands: they are taken in order as {wanted}, which {task} was '
                f'trained on; {cure}'
            )
            return None
        if not wanted:
            if not scene.positions or len(names) != count:
                rank_zero_warn(
                    f'{task} was trained on files that do not name their bands: of {names} in {file!r} '
                    f'those at positions {list(known)} are taken; {cure}'
                )
            return None if list(known) == list(range(1, len(names) + 1)) else [*known]
        places = find_bands(wanted, names)
        missing = [band for band, place in zip(wanted, places) if place is None]
        if missing:
            raise ValueError(
                f'{file!r} has bands {names} but {task} was trained on {wanted}, of which {missing} are not '
                'there: map a scene that has them, or name those that stand for them, in its order, by bands='
            )
        return (
            None
            if places == list(range(len(names)))
            else [names[p] for p in places if p is not None]
        )

    def _try_out(self, source: SceneSource, size: int) -> dict[str, Any]:
        """See what a module makes of a window."""
        shape = (1, len(source.bands), size, size)
        # In training mode it would learn from this
        with evaluating(self), torch.inference_mode():
            result = self(
                torch.zeros(shape, device=self.device),
                torch.ones((1, size, size), dtype=torch.bool, device=self.device),
            )
        if result.ndim != 4 or result.shape[2:] != (size, size):
            raise ValueError(
                f'{type(self.task).__name__} turned {shape} into {tuple(result.shape)}: give a module that '
                'keeps height and width'
            )
        dtype = self.dtype_wanted or 'float32'
        layer = Layer('', result.shape[1], dtype, float('nan'))
        if np.issubdtype(dtype, np.integer):
            # Any whole number may be what the module means, the scene's own nodata value too
            masked = source.dates[0].may_be_invalid
            layer = replace(layer, nodata=None, masked=masked)
        return {'channels': result.shape[1], 'layers': (layer,)}

    # ------------------------------------------------------------------ windows

    def _limits(self) -> tuple[Tensor | None, Tensor | None]:
        """Raw values that stand for 0 and 1: given ones, or the task's."""
        low: Any = self.low
        high: Any = self.high
        if low is None:
            low, high = (getattr(self.task, name, None) for name in ('low', 'high'))
        if low is None and isinstance(self.task, Backbone):
            # Of bytes, which are all that is accepted then
            low, high = (torch.tensor(v, device=self.device) for v in (0.0, 255.0))
        return low, high

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
        low, high = low.view(-1, 1, 1), high.view(-1, 1, 1)
        scaled = ((image - low) / (high - low)).clamp(0, 1)
        # Pretraining fills gaps with the mean, the other tasks with 0
        fills = isinstance(self.task, CMID | Backbone)
        mean = getattr(self.task, 'mean', None) if fills else None
        fill = 0 if mean is None else mean.view(-1, 1, 1)
        known = valid[:, None, None] if image.ndim == 5 else valid[:, None]
        return torch.where(known, scaled, torch.as_tensor(fill).to(scaled))

    def forward(
        self,
        image: Float[Tensor, 'batch *dates bands size size'],
        valid: Bool[Tensor, 'batch size size'],
    ) -> Any:
        """Look at windows, in each turn.

        Args:
            image: Raw values of windows, with :attr:`margin` around them.
            valid: Where there is data.

        Returns:
            Averages (batch, channels, rows, cols) float32; of a detector a list over the windows
            of ``boxes`` in pixels, ``scores`` and ``labels``.
        """
        image = self.scale(image, valid)
        if self.outcome.kind == 'objects':
            return self._detect(image)
        mean, moved = None, 2 * self.margin
        for number, turn in enumerate(self.turns, 1):
            # In each turn it is the right and lower margin that is seen
            turned = turn.apply(image)[..., moved:, moved:]
            scores = self.task(turned).float()
            share = turn.undo(self.outcome.share(scores))
            mean = share if mean is None else mean + (share - mean) / number
        return mean

    def _detect(self, image: Tensor) -> list[dict[str, Tensor]]:
        """What is found in all turns of each image; merging leaves one of each object."""
        found: list[list[dict[str, Tensor]]] = [[] for _ in image]
        for turn in self.turns:
            for own, each in zip(found, self.task(turn.apply(image)), strict=True):
                boxes = turn.undo_boxes(each['boxes'].float(), image.shape[-1])
                own.append(each | {'boxes': boxes})
        names = 'boxes', 'scores', 'labels'
        return [
            {name: torch.cat([each[name] for each in own]) for name in names}
            for own in found
        ]

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        """See :meth:`forward`; the batch is of :class:`~cmid_geo.predict.SceneWindows`."""
        return self(batch['image'], batch['valid'])

    def notes(self) -> dict[str, Any]:
        """What maps depend on, beyond the scene: they are made again if any of it differs."""
        limits = [None if v is None else v.tolist() for v in self._limits()]
        chosen = [
            [layer.suffix, layer.dtype, layer.names, layer.classes, layer.colours]
            for layer in self.outcome.layers
        ]
        merged = {'nms_thresh': self.outcome.nms_thresh}
        return {
            'network': self.digest(), 'task': type(self.task).__name__, 'limits': limits,
            'turns': len(self.turns), 'turned': self.turns[-1].quarters, 'layers': chosen,
            'threshold': self.threshold, 'components': self.components,
            'dtype': self.dtype_wanted, 'classes': list(self.outcome.classes or ()),
            # Maps of other kinds were made without, and stay what they are
            **({'margin': self.margin} if self.margin else {}),
            **(merged if self.outcome.kind == 'objects' else {}),
        }  # fmt: skip

    def forget(self) -> None:
        """Look at the network's tensors anew: they may have changed."""
        self._digest = None

    def digest(self) -> str:
        """A short name of what maps depend on: the network's tensors."""
        if self._digest is not None:
            return self._digest
        state = hashlib.sha256()
        for name, tensor in sorted(self.task.state_dict().items()):
            state.update(name.encode())
            plain = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
            state.update(plain.detach().cpu().numpy().tobytes())
        self._digest = state.hexdigest()[:16]
        return self._digest
