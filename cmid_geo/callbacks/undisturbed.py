# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""A look at the networks of a run, and batches to look at, that leave the run as it is."""

import contextlib
import copy
from collections.abc import Generator, Iterable, Iterator
from types import SimpleNamespace
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from ..models.modes import evaluating

#: What a datamodule reads of a Trainer to choose its transforms: those of validation.
VALIDATING: Any = SimpleNamespace(
    training=False, validating=True, sanity_checking=False, testing=False, predicting=False
)  # fmt: skip

#: Values that a resampled or rounded image in [0, 1] may have.
LEAST, MOST = -0.1, 1.1


@contextlib.contextmanager
def undisturbed(task: Any) -> Generator[None]:
    """Look at a task's networks in evaluation mode, without gradients and not compiled.

    Random numbers of Python, NumPy and torch, on all devices, and the mode of each part of the task
    are put back afterwards. Torch's begin at the same place each time.

    Args:
        task: That is trained.

    Yields:
        Nothing.
    """
    # Compiled networks would be compiled again for batches of another size
    eager = torch.compiler.set_stance('force_eager')
    with isolate_rng(), evaluating(task), torch.no_grad(), eager:
        torch.manual_seed(0)
        yield


def set_up(datamodule: LightningDataModule, trainer: Any) -> None:
    """Set up the data to look at, before anything is trained, unless they are those of the run.

    Args:
        datamodule: Of the data.
        trainer: Of the run, whose random numbers are put back.
    """
    if datamodule is trainer.datamodule:
        return
    with isolate_rng():
        if trainer.local_rank == 0:
            datamodule.prepare_data()
        trainer.strategy.barrier()
        datamodule.setup('fit')


def borrowed(datamodule: LightningDataModule, task: Any) -> Any:
    """Copy a datamodule so that it delivers what a task takes: not augmented, and in its range of values.

    Args:
        datamodule: Ours, whose copy reads raw values as the task does, or one that scales to [0, 1].
        task: That is trained.

    Returns:
        The copy, of the same data; the datamodule itself may serve the run.
    """
    looking: Any = copy.copy(datamodule)
    looking.trainer = VALIDATING
    own, found = task.value_range, getattr(looking, 'value_range', None)
    known = any(own.low) or set(own.high) != {1.0}
    # One number stands for all bands
    if known and found is not None and len(found.low) in (1, len(own.low)):
        looking.value_range = own
    return looking


def delivered(
    datamodule: LightningDataModule, batches: Iterable[Any], task: Any
) -> Iterator[dict[str, Any]]:
    """Bring batches to the task's device and to [0, 1].

    Args:
        datamodule: Whose transforms are applied, those of validation.
        batches: Of its loader.
        task: That is trained.

    Yields:
        Batches with ``image`` (B, bands, height, width) in [0, 1].

    Raises:
        ValueError: If a batch has no images, they have other bands, or values far from [0, 1].
    """
    name, bands = type(datamodule).__name__, task.hparams['in_channels']
    looking = borrowed(datamodule, task)
    for batch in batches:
        batch = looking.transfer_batch_to_device(batch, task.device, 0)
        if getattr(looking, 'value_range', None) is not None:
            # Before it is scaled by a range for each of the task's bands
            _check_bands(batch, bands, name)
        batch = looking.on_after_batch_transfer(batch, 0)
        image = _check_bands(batch, bands, name)
        low, high = (value.item() for value in torch.aminmax(image.float()))
        # NaN compares as False
        if not (low >= LEAST and high <= MOST):
            raise ValueError(
                f'{name} gives values from {low:.4g} to {high:.4g} but the task takes [0, 1]: let it only '
                'scale, such as by mean=0 and std=the highest raw value'
            )
        yield batch


def _check_bands(batch: Any, bands: int, name: str) -> Tensor:
    """The images of a batch, which must be there and have a number of bands."""
    image = batch.get('image') if isinstance(batch, dict) else None
    if not isinstance(image, Tensor):
        raise ValueError(  # noqa: TRY004
            f"{name} gives batches without an entry 'image': evaluate on a datamodule of TorchGeo or ours"
        )
    if image.shape[-3] != bands:
        raise ValueError(
            f'{name} gives images of {image.shape[-3]} bands but the task takes {bands}: evaluate on '
            'images of the bands that are trained on'
        )
    return image
