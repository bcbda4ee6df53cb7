# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""The command ``cmid-geo``."""

import json
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, auto_cli
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torchgeo.datamodules import BaseDataModule
from torchgeo.tasks import BaseTask

# Imported so that classes are found by their name alone
import cmid_geo.datamodules
import cmid_geo.tasks
from cmid_geo.datasets.gdal import COMMAND
from cmid_geo.demo import demo
from cmid_geo.models.weights.checkpoint import open_checkpoint, refuse_url
from cmid_geo.models.weights.export import Format, Side, export_backbone
from cmid_geo.predict import map_scenes
from cmid_geo.tasks.restoring import (
    check_hyperparameters,
    find_task,
    restore_from_files,
)

DESCRIPTION = """Self-supervised pretraining for Earth observation.
Each command tells more with --help. Errors are told in a sentence; with the environment variable
CMID_GEO_TRACEBACK=1 also where they came from."""

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

    def setup_parser(self, *args: Any, **kwargs: Any) -> None:
        """Show our own commands among the others."""
        super().setup_parser(*args, **kwargs)
        commands: Any = self.parser._subcommands_action
        for name, (_, _, text) in OWN.items():
            commands.add_subcommand(name, ArgumentParser(description=text), help=text)

    def parse_arguments(self, parser: Any, args: Any) -> None:
        """Parse the words, and look at a checkpoint that they name before Lightning does."""
        # Not the parent's, which warns of words that do not come from the shell
        self.config = parser.parse_args(args)
        if self.config.subcommand in OWN:
            command = self.config.subcommand
            parser.error(f'{command} comes first: cmid-geo {command} ...')
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


def main(args: Sequence[str] | None = None) -> None:
    """Run the command; what the user can mend ends with its message alone.

    Args:
        args: Words after ``cmid-geo``; those of the shell by default.
    """
    words = _list_bands(list(sys.argv[1:] if args is None else args))
    for name, value in COMMAND.items():
        os.environ.setdefault(name, value)
    command, launcher = ''.join(words[:1]), os.getppid()
    try:
        if command == 'map':
            _map(words[1:])
        elif command in OWN:
            function, positional, _ = OWN[command]
            auto_cli(function, args=words[1:], as_positional=positional)
        else:
            _train(words)
    except MENDABLE as error:
        if os.environ.get('CMID_GEO_TRACEBACK'):
            raise
        _tell(command, error, launcher)


def _train(words: list[str]) -> None:
    """Fit, validate, test or predict."""
    try:
        Command(
            model_class=BaseTask,
            datamodule_class=BaseDataModule,
            seed_everything_default=0,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_kwargs={'overwrite': True},
            parser_kwargs={'version': cmid_geo.__version__, 'description': DESCRIPTION},
            args=words,
        )
    except (NotADirectoryError, PermissionError) as error:
        raise ValueError(
            f'the output folder {error.filename} cannot be written ({error.strerror}): make it '
            'writable, or choose another with --trainer.default_root_dir'
        ) from error


def _map(words: list[str]) -> None:
    """Map scenes; the exit code tells whether one failed."""
    parser = ArgumentParser(prog='cmid-geo map', description='Map whole scenes.')
    parser.add_function_arguments(map_scenes, skip={'checkpoint', 'scenes'})
    parser.add_argument('checkpoint', help='of a task or backbone, or name of weights')
    parser.add_argument(
        'scenes',
        nargs='+',
        help='folders, globs, files or URLs; for change before and after, by turns',
    )
    tally = map_scenes(**vars(parser.parse_args(words)))
    rank_zero_only(print)(tally)
    if tally.failed:
        sys.exit(1)


def _tell(command: str, error: Exception, launcher: int) -> None:
    """End with the message, once for all processes that met the same."""
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


def _list_bands(words: list[str]) -> list[str]:
    """Write ``--bands 1 2 3`` and ``--bands 1,2,3`` as the list that parsers read."""
    written, rest = [], list(words)
    while rest:
        name, equals, first = (word := rest.pop(0)).partition('=')
        if not re.fullmatch(r'--([\w.]+\.)?bands', name):
            written.append(word)
            continue
        values = [first] if equals else rest[:1]
        rest = rest if equals else rest[1:]
        while rest and not equals and ',' not in values[0] and _may_be_band(rest[0]):
            values.append(rest.pop(0))
        bands = [band.strip() for band in ','.join(values).split(',')]
        # TorchGeo's datasets have sets of bands by name
        one_name = '.' in name and len(bands) == 1 and not bands[0].isdecimal()
        if one_name or not all(re.fullmatch(r'(?!null$)\w+', band) for band in bands):
            written += [word, *([] if equals else values)]
        else:
            found = [int(band) if band.isdecimal() else band for band in bands]
            written.append(f'{name}={json.dumps(found)}')
    return written


def _may_be_band(word: str) -> bool:
    """Whether a word that follows is one more band, and not a file or an option."""
    name = re.fullmatch(r'\w+', word) is not None and not os.path.exists(word)
    return word.isdecimal() or name


def export(
    checkpoint: str, out: str, source: Side | None = None, format: Format | None = None
) -> None:
    """Write a backbone for use elsewhere, with what it expects in the file.

    Args:
        checkpoint: Checkpoint of CMID, exported file, or name of released weights.
        out: File to write, such as backbone.onnx.
        source: Whose backbone to take; by default that which the task says.
        format: Told by the ending of *out* by default.
    """
    path = export_backbone(checkpoint, out, source, format)
    print(f'wrote {path} ({path.stat().st_size / 1e6:.1f} MB)')


#: Our own commands: function, whether its arguments go by position, and a text.
OWN: dict[str, tuple[Callable[..., Any], bool, str]] = {
    'demo': (demo, False, 'All of it in a few minutes: pretrain on scenes, draw, map.'),
    'map': (
        map_scenes,
        True,
        'Map whole scenes with a checkpoint: CKPT SCENES... --out DIR',
    ),
    'export': (export, True, 'Write a backbone for use elsewhere: CKPT OUT'),
}


if __name__ == '__main__':
    main()
