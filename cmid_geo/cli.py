# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Lightning's command line for the tasks, and how errors of a run end it."""

import inspect
import os
import sys
import time
import warnings
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torchgeo.datamodules import BaseDataModule
from torchgeo.tasks import BaseTask

# All of them, so that classes are found by their name alone
from .callbacks import *
from .datamodules import *
from .models.weights.checkpoint import open_checkpoint, refuse_url
from .ops.host import fast_precision
from .predict import *
from .tasks import *
from .tasks.checkpoint_files import find_checkpoint, restore_from_files
from .tasks.restoring import check_hyperparameters, find_task

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
        _find(given)
        path = given.get('ckpt_path')
        refuse_url(path)
        if path and Path(path).is_file():
            check_hyperparameters(open_checkpoint(path), path, *_model_of(given))

    def _prepare_subcommand_parser(
        self, klass: type, subcommand: str, **kwargs: Any
    ) -> Any:
        """Give the command to fit an option to resume, and all of them one to choose the precision."""
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        text = 'Use bf16-mixed where this device computes in bfloat16, unless --trainer.precision is given.'
        parser.add_argument('--auto_precision', type=bool, default=False, help=text)
        if subcommand == 'fit':
            text = 'Go on from the newest whole checkpoint in this folder.'
            parser.add_argument('--resume', type=str | None, default=None, help=text)
        return parser

    def before_instantiate_classes(self) -> None:
        """Choose the precision, where that is left to us."""
        given = self.config[self.config.subcommand]
        if given.auto_precision and given.trainer.precision is None:
            on_cpu = given.trainer.accelerator == 'cpu'
            given.trainer.precision = fast_precision(on_cpu)

    def _parse_ckpt_path(self) -> None:
        """Take over a checkpoint's hyperparameters, and tell which that were given they replace."""
        command = self.config.subcommand
        kind, given = _model_of(self.config[command])
        super()._parse_ckpt_path()
        taken = _model_of(self.config[command])[1]
        usual = inspect.signature(kind).parameters if kind else {}
        replaced = [
            f'{name}={taken[name]} instead of {value}'
            for name, value in given.items()
            if name in usual
            and name in taken
            and value not in (usual[name].default, taken[name])
        ]
        if replaced:
            rank_zero_warn(
                f'{self.config[command].ckpt_path} goes on with what it was trained with, whatever is given '
                f'here: {", ".join(replaced)}. To train with other values, start anew from it: '
                '--model.weights CKPT without --ckpt_path'
            )

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Make a Trainer that reads checkpoints safely, whosever the task is."""
        trainer = super().instantiate_trainer(**kwargs)
        restore_from_files(trainer)
        given = self.config[self.config.subcommand]
        if self.config.subcommand == 'fit' and given.trainer.logger in (None, True):
            _log_to_csv(trainer)
        return trainer


def _log_to_csv(trainer: Trainer) -> None:
    """Write metrics as a table too, beside what Lightning's default logger writes.

    Args:
        trainer: Whose loggers nobody chose.
    """
    board = trainer.logger
    if not isinstance(board, TensorBoardLogger):
        # None are kept of a trial run
        return
    # The folder holds the configuration already; it is a new one, so no older table is in it
    warnings.filterwarnings('ignore', 'Experiment logs directory .* not empty')
    table = CSVLogger(board.save_dir, board.name, board.version)
    trainer.loggers = [board, table]


def _model_of(given: Any) -> tuple[type | None, dict[str, Any]]:
    """Class and arguments of the task of a command's words."""
    named = given.model.as_dict() if given.get('model') else {}
    return find_task(named.get('class_path')), named.get('init_args') or {}


def _find(given: Any) -> None:
    """Put the file in the place of a folder to resume from, or of the word 'last'."""
    folder, path = given.get('resume'), given.get('ckpt_path')
    if folder and path:
        raise ValueError(
            f'--resume {folder} and --ckpt_path {path} both tell where to go on from: give one of them'
        )
    if folder:
        given.ckpt_path, given.resume = str(find_checkpoint(folder)), None
    elif path == 'last':
        callbacks = given.trainer.callbacks or []
        callbacks = callbacks if isinstance(callbacks, list) else [callbacks]
        stated = [(each.get('init_args') or {}).get('dirpath') for each in callbacks]
        root = given.trainer.default_root_dir or '.'
        folders = [each for each in stated if each] or [
            str(Path(root) / 'lightning_logs')
        ]
        given.ckpt_path = str(find_checkpoint(folders[0], 'last*.ckpt'))


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
