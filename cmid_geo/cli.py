# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Lightning's command line for the tasks, and how errors of a run end it."""

import os
import sys
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torchgeo.datamodules import BaseDataModule
from torchgeo.tasks import BaseTask

# All of them, so that classes are found by their name alone
from .datamodules import *
from .models.weights.checkpoint import open_checkpoint, refuse_url
from .predict import *
from .tasks import *
from .tasks.restoring import check_hyperparameters, find_task, restore_from_files

#: What the user can mend; other errors are the program's, and keep their traceback.
MENDABLE = (
    ValueError,
    OSError,
    ImportError,
    FloatingPointError,
    MisconfigurationException,
)

#: Seconds within which the first process ends, if it met the same error.
GRACE = 20.0


class Command(LightningCLI):
    """Lightning's command line, in which checkpoints do not choose what is run."""

    def parse_arguments(self, parser: Any, args: Any) -> None:
        """Parse the words, and look at a checkpoint that they name before Lightning does."""
        # Not the parent's, which warns of words that do not come from the shell
        self.config = parser.parse_args(args)
        given = self.config[self.config.subcommand]
        path = given.get('ckpt_path')
        refuse_url(path)
        if path and Path(path).is_file():
            model = given.get('model')
            named = model.as_dict() if model else {}
            kind = find_task(named.get('class_path'))
            own = named.get('init_args') or {}
            check_hyperparameters(open_checkpoint(path), path, kind, own)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Make a Trainer that reads checkpoints safely, whosever the task is."""
        trainer = super().instantiate_trainer(**kwargs)
        restore_from_files(trainer)
        return trainer


def train(words: list[str], **parser_kwargs: str) -> None:
    """Fit, validate, test or predict.

    Args:
        words: The command and its options.
        **parser_kwargs: Of the parser: version and description.

    Raises:
        ValueError: If the output folder cannot be written.
    """
    try:
        Command(
            model_class=BaseTask,
            datamodule_class=BaseDataModule,
            seed_everything_default=0,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_kwargs={'overwrite': True},
            parser_kwargs=parser_kwargs,
            args=words,
        )
    except (NotADirectoryError, PermissionError) as error:
        raise ValueError(
            f'the output folder {error.filename} cannot be written ({error.strerror}): make it '
            'writable, or choose another with --trainer.default_root_dir'
        ) from error


def end(command: str, error: Exception, launcher: int) -> None:
    """End with the message, once for all processes that met the same.

    Args:
        command: That met the error.
        error: One that the user can mend.
        launcher: The process that started this one.
    """
    rank = getattr(rank_zero_only, 'rank', 0)
    if rank:
        # The first process, where it launched this one, ends if it met the same
        until = time.monotonic() + GRACE
        while time.monotonic() < until:
            if os.getppid() != launcher:
                sys.exit(1)
            time.sleep(0.1)
    process = f' (process {rank})' if rank else ''
    # The parser repeats the whole configuration around what a constructor says
    while 'Union subtypes' in str(error) and isinstance(error.__cause__, MENDABLE):
        error = error.__cause__
    sys.exit(f'cmid-geo {command}{process}: {error}')
