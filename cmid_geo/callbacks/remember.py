# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Updates of teacher, queue and centre after each batch."""

from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback, Trainer

from ..models.teacher import update_teacher

if TYPE_CHECKING:
    from ..tasks.pretraining import Pretraining


class Remember(Callback):
    """Moves teacher, queue and centre after each batch, before a checkpoint is saved.

    A task's own ``on_train_batch_end`` comes too late: Lightning calls it after
    :class:`~lightning.pytorch.callbacks.ModelCheckpoint` has saved, so that the checkpoint of
    step n would hold the memory of step n - 1. All gathering over processes happens here.
    """

    def __init__(self) -> None:
        """Initialize a new Remember instance."""
        self.step = 0

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Note where the run starts, or starts again."""
        self.step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Remember a batch.

        Args:
            trainer: Tells whether the optimizer stepped.
            pl_module: The task.
            outputs: ``keys`` (2, batch, dim), mean ``scores`` (1, prototypes) and the number
                of ``cells`` (1) they are the mean of.
            batch: Not used.
            batch_idx: Not used.
        """
        task: Pretraining = pl_module
        # With several processes each gets a leading dimension
        found = [outputs[name] for name in ('keys', 'scores', 'cells')]
        keys, scores, cells = task.all_gather(found)
        if keys.ndim == 4:
            keys = keys.transpose(0, 1).flatten(1, 2)
        # First views of all processes, then second ones: as one process would order them
        task.queue.enqueue(keys.flatten(0, 1))
        task.assign.update_center(scores.reshape(-1, scores.shape[-1]), cells.flatten())

        # Batches may accumulate: the teacher follows the optimizer
        if trainer.global_step > self.step:
            self.step = trainer.global_step
            # The step just taken is already counted
            momentum = task.teacher_momentum(trainer.global_step - 1)
            update_teacher(task.teacher, task.student, momentum)
