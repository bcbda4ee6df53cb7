# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""The command ``cmid-geo``."""

import argparse
import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ActionConfigFile, ArgumentParser, auto_cli

# Torch and all that is built on it take seconds to import: only the commands that run need them
from cmid_geo.datasets.gdal import COMMAND
from cmid_geo.options import Compression, Format, Side
from cmid_geo.predict.api import map_scenes
from cmid_geo.version import __version__

DESCRIPTION = """Self-supervised pretraining for Earth observation.
Each command tells more with --help. Errors are told in a sentence; with the environment variable
CMID_GEO_TRACEBACK=1 also where they came from."""

#: Lightning's commands.
LIGHTNING = {
    'fit': 'Runs the full optimization routine.',
    'validate': 'Perform one evaluation epoch over the validation set.',
    'test': 'Perform one evaluation epoch over the test set.',
    'predict': 'Run inference on your data.',
}

#: Our own commands.
OWN = {
    'demo': 'All of it in a few minutes: pretrain on scenes, draw, map.',
    'map': 'Map whole scenes with a checkpoint: CKPT SCENES... --out DIR',
    'similar': 'Find more places like those at X Y: EMBEDDINGS.tif... X Y... --out DIR',
    'evaluate': 'Judge frozen features on labelled images: WEIGHTS --data FOLDER',
    'export': 'Write a backbone for use elsewhere, or a task for QGIS: CKPT OUT',
    'prepare': 'Copy scenes to tiles that are read quickly: SCENES OUT',
}


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
        _run(command, words)
    except Exception as error:
        from cmid_geo.cli import MENDABLE, end

        if os.environ.get('CMID_GEO_TRACEBACK') or not isinstance(error, MENDABLE):
            raise
        end(command, error, launcher)


def _run(command: str, words: list[str]) -> None:
    """Run the command that the first word names, unless options come before it."""
    named = next((word for word in words if word in LIGHTNING | OWN), None)
    config_first = command.startswith(('-c', '--config'))
    if command == 'map':
        _map(words[1:])
    elif command == 'evaluate':
        _evaluate(words[1:])
    elif command == 'similar':
        _similar(words[1:])
    elif command in OWN:
        auto_cli(
            {'demo': demonstrate, 'export': export, 'prepare': prepare}[command],
            args=words[1:],
            as_positional=command != 'demo',
            prog=f'cmid-geo {command}',
        )
    elif named in LIGHTNING or (config_first and not named):
        from cmid_geo.cli import train

        train(words, version=__version__, description=DESCRIPTION)
    else:
        parser = _overview()
        if config_first:
            parser.error(f'{named} comes first: cmid-geo {named} ...')
        parser.parse_args(words)


def _overview() -> ArgumentParser:
    """A parser that tells of all commands, and runs none."""
    parser = ArgumentParser(version=__version__, description=DESCRIPTION)
    text = 'Path to a configuration file in json or yaml format.'
    parser.add_argument('-c', '--config', action=ActionConfigFile, help=text)
    commands = parser.add_subcommands()
    for name, text in (LIGHTNING | OWN).items():
        commands.add_subcommand(name, ArgumentParser(description=text), help=text)
    return parser


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
    tally = map_scenes(**vars(parser.parse_args(_say_yes(words, 'dry_run'))))
    from lightning.pytorch.utilities import rank_zero_only

    rank_zero_only(print)(tally)
    if tally.failed:
        sys.exit(1)


def _evaluate(words: list[str]) -> None:
    """Judge the features of weights, print what was found and write it to a folder."""
    parser = ArgumentParser(prog='cmid-geo evaluate')
    parser.add_function_arguments(evaluate_folder, skip={'weights'})
    parser.add_argument('weights', help='checkpoint, exported file, or name of weights')
    evaluate_folder(**vars(parser.parse_args(words)))


def evaluate_folder(
    weights: str,
    data: str,
    out: str = 'evaluation',
    size: int = 224,
    batch_size: int = 64,
    limit: int | None = None,
) -> None:
    """Judge the frozen features of weights by kNN, linear probe, clusters and rank.

    Beside them stand random weights and image statistics. Leaves text, JSON and a picture.

    Args:
        weights: Checkpoint of CMID or another task, exported file, or name of released weights.
        data: Folder of train and test, each with a folder of images for each class.
        out: Folder to write to.
        size: Side that images are brought to, in pixels, a multiple of 32 for most networks.
        batch_size: Images in a batch.
        limit: Images of train and of test at most, drawn once; None for all.

    Raises:
        ValueError: If the weights or the images cannot be used, or the folder not be written.
    """
    from cmid_geo.callbacks.export_backbone import check_writable
    from cmid_geo.evaluate import evaluate, write_evaluation

    # Before minutes of work, not after
    check_writable(Path(out), '--out DIR')
    evaluation = evaluate(weights, data, size, batch_size, limit)
    write_evaluation(evaluation, Path(out))
    print(evaluation)


def _similar(words: list[str]) -> None:
    """Find places like given ones: numbers among the words are X and Y, the others rasters."""
    # The standard library's own: jsonargparse takes no options between the words
    parser = argparse.ArgumentParser(
        prog='cmid-geo similar',
        allow_abbrev=False,
        description='Find cells whose features are like those at given points.',
    )
    parser.add_argument(
        'words',
        nargs='+',
        metavar='EMBEDDINGS.tif... X Y...',
        help="a backbone's maps by cmid-geo map, and X Y of one place or more",
    )
    parser.add_argument('--out', default='similar', help='folder for the results')
    parser.add_argument(
        '--crs', help="of X Y, such as EPSG:4326; by default the rasters' own"
    )
    parser.add_argument(
        '--number', type=int, default=100, help='how many of the best cells to keep'
    )
    # After a space, -1e5 is a word and no option
    spaced = [
        f' {word}' if word[:1] == '-' and _is_number(word) else word for word in words
    ]
    given = parser.parse_intermixed_args(spaced)
    numbers = [float(word) for word in given.words if _is_number(word)]
    paths = [word for word in given.words if not _is_number(word)]
    if len(numbers) % 2:
        raise ValueError(f'{len(numbers)} numbers: give X and Y of each point')
    from cmid_geo.predict import find_similar

    points = list(zip(numbers[::2], numbers[1::2], strict=True))
    found = find_similar(paths, points, given.out, given.crs, given.number)
    print('wrote', *found.maps, found.cells)


def _is_number(word: str) -> bool:
    """Whether a word is a number."""
    try:
        float(word)
    except ValueError:
        return False
    return True


def demonstrate(
    scenes: str | None = None, out: str = 'cmid_demo', steps: int = 150
) -> None:
    """Pretrain a small backbone on scenes, and leave pictures of what it learned.

    Args:
        scenes: Folder, glob or file of GeoTIFFs; by default a landscape is made up.
        out: Folder to leave everything in.
        steps: Steps to train for.

    Raises:
        ValueError: If a folder cannot be written or the scenes cannot be used.
    """
    from cmid_geo.demo import run

    run(scenes, Path(out), steps)


def export(
    checkpoint: str,
    out: str,
    source: Side | None = None,
    format: Format | None = None,
    size: int | None = None,
    resolution: float | None = None,
    tiles_overlap: int | None = None,
    divisor: float | None = None,
    low: list[float] | float | None = None,
    high: list[float] | float | None = None,
    labels: list[str] | None = None,
    push: str | None = None,
    private: bool = False,
) -> None:
    """Write a backbone for use elsewhere, with what it expects in the file; or a task for QGIS.

    Beside it lies OUT.stac.json, a STAC item of it with extent and dates of the training scenes.

    Args:
        checkpoint: Checkpoint of CMID or another task, exported file, or name of released weights.
        out: File to write, such as backbone.onnx.
        source: Whose backbone to take; by default that which the task says.
        format: Told by the ending of *out* by default.
        size: Of a program for QGIS: side of the images in pixels, 512 for a task by default. With it,
            a backbone becomes a program that gives one vector an image.
        resolution: Of a program for QGIS: size of a pixel of the training scenes in cm; by default that
            which the checkpoint tells.
        tiles_overlap: Of a program for QGIS: what neighbouring images share in percent, 15 by default.
        divisor: Of a program for QGIS: what the tool divides raw values by before, 1 by default. For
            GeoDeep 255.
        low: Of a program for QGIS: raw value of each band, or of all, that becomes 0.
        high: Of a program for QGIS: raw value of each band, or of all, that becomes 1.
        labels: Of a program for QGIS: names of the classes.
        push: USER/REPO on the Hugging Face hub to upload it to, with its item, and its card if there is a
            MODEL_CARD.md of it beside *out*.
        private: Whether a repository that is made for it is private.
    """
    from cmid_geo.models import export_backbone
    from cmid_geo.models.weights.stac_item import write_stac_item
    from cmid_geo.predict.export import export as export_program

    options = {
        'resolution': resolution, 'tiles_overlap': tiles_overlap, 'divisor': divisor,
        'low': low, 'high': high, 'labels': labels,
    }  # fmt: skip
    given = {name: value for name, value in options.items() if value is not None}
    path = export_program(checkpoint, out, size, source, **given)
    if path is None:
        path = export_backbone(checkpoint, out, source, format)
    item = write_stac_item(path, format)
    print(f'wrote {path} ({path.stat().st_size / 1e6:.1f} MB) and {item.name}')
    if push is not None:
        from cmid_geo.models.weights.hub import push_to_hub

        print(f'pushed it: {push_to_hub(path, push, private)}')


def prepare(
    scenes: str, out: str, compress: Compression = 'zstd', blocksize: int = 256
) -> None:
    """Copy scenes to tiled GeoTIFFs that random windows are quickly read from.

    Args:
        scenes: Folder, glob or file.
        out: Folder to write to; what is there and whole is kept.
        compress: Of the copies; none is read fastest.
        blocksize: Side of the tiles in pixels.
    """
    from cmid_geo.datasets import prepare_scenes

    prepared = prepare_scenes(scenes, out, compress, blocksize)
    print(prepared)
    if prepared.bad:
        sys.exit(1)


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


def _say_yes(words: list[str], name: str) -> list[str]:
    """Write ``--dry-run`` as ``--dry_run=true``, unless a value follows."""
    flags = f'--{name}', f'--{name.replace("_", "-")}'
    written = []
    for word, follower in zip(words, [*words[1:], ''], strict=True):
        flag, equals, value = word.partition('=')
        if not equals and follower.lower() not in ('true', 'false'):
            equals, value = '=', 'true'
        written.append(f'{flags[0]}{equals}{value}' if flag in flags else word)
    return written


def _may_be_band(word: str) -> bool:
    """Whether a word that follows is one more band, and not a file or an option."""
    name = re.fullmatch(r'\w+', word) is not None and not os.path.exists(word)
    return word.isdecimal() or name


if __name__ == '__main__':
    main()
