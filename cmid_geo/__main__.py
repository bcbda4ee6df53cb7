# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""The command ``cmid-geo``."""

import os
import sys
from collections.abc import Callable, Sequence

from jsonargparse import ArgumentParser, auto_cli
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.utilities import rank_zero_only
from torchgeo.datamodules import BaseDataModule
from torchgeo.tasks import BaseTask

# Imported so that classes are found by their name alone
import cmid_geo.datamodules
import cmid_geo.tasks
from cmid_geo.demo import demo
from cmid_geo.models.export import Format, Side, export_backbone
from cmid_geo.predict import map_scenes

DESCRIPTION = """Self-supervised pretraining for Earth observation.
'cmid-geo demo [--scenes PATH] [--out DIR] [--steps N]' shows all of it in a few minutes.
'cmid-geo export CKPT OUT [--source teacher|student] [--format ckpt|safetensors|onnx|torchscript]'
writes a backbone for use elsewhere.
'cmid-geo map CKPT SCENES... --out DIR' maps whole scenes. Each tells more with --help."""

#: For scenes read by URL; https://github.com/pangeo-data/cog-best-practices
GDAL = {
    'GDAL_MAX_RAW_BLOCK_CACHE_SIZE': '200000000',
    'GDAL_SWATH_SIZE': '200000000',
    'VSI_CURL_CACHE_SIZE': '200000000',
}


def main(args: Sequence[str] | None = None) -> None:
    """Run the command.

    Args:
        args: Words after ``cmid-geo``; those of the shell by default.
    """
    words = list(sys.argv[1:] if args is None else args)
    for name, value in GDAL.items():
        os.environ.setdefault(name, value)
    if words[:1] == ['demo']:
        _call(demo, words, as_positional=False)
        return
    if words[:1] == ['export']:
        _call(export, words, as_positional=True)
        return
    if words[:1] == ['map']:
        _map(words[1:])
        return
    try:
        LightningCLI(
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
    given = vars(parser.parse_args(words))
    try:
        tally = map_scenes(**given)
    except (ValueError, OSError) as error:
        sys.exit(f'cmid-geo map: {error}')
    rank_zero_only(print)(tally)
    if tally.failed:
        sys.exit(1)


def _call(command: Callable[..., None], words: list[str], as_positional: bool) -> None:
    """Run a command of our own; what the user can mend ends with its message alone."""
    try:
        auto_cli(command, args=words[1:], as_positional=as_positional)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f'cmid-geo {words[0]}: {error}')


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


if __name__ == '__main__':
    main()
