# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Restoring from checkpoints without running what is in them."""

import contextlib
import importlib
import os
import re
import sys
import types
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch
from lightning.pytorch.utilities.model_helpers import _restricted_classmethod
from torchgeo.tasks import BaseTask

from ..models.weights.checkpoint import open_checkpoint
from .checkpoint_files import check_file, restore_from_files, told_in_a_sentence
from .types import Hyperparameters

#: Packages whose classes a checkpoint may name.
TRUSTED = ('cmid_geo', 'torchgeo')

#: What builds modules of Lightning's command line again.
INSTANTIATORS = ('lightning.pytorch.cli.instantiate_module',
                 'pytorch_lightning.cli.instantiate_module')  # fmt: skip

#: Types for which no text in a checkpoint makes a class be imported.
PLAIN = (str, int, float, bool, types.NoneType, Enum, os.PathLike)


class Restored:
    """A module of Lightning that comes from checkpoints safely."""

    @_restricted_classmethod
    def load_from_checkpoint(
        cls: Any, checkpoint_path: object, *args: Any, **kwargs: Any
    ) -> Any:
        """Build a module as it was saved, see Lightning's method of this name.

        Args:
            checkpoint_path: A file, or an open one.
            *args: As for Lightning.
            **kwargs: As for Lightning, such as arguments that shall be others than those saved;
                ``weights_only=False`` says that the file is trusted, whatever is in it.

        Returns:
            The module.

        Raises:
            ValueError: If it is a URL, is damaged, holds weights that are not finite or more than
                tensors and plain values, or names what is neither ours, TorchGeo's nor imported yet.
        """
        with told_in_a_sentence(checkpoint_path):
            if kwargs.get('weights_only') is False:
                # The user trusts the file, whatever is in it, if it is whole
                check_file(checkpoint_path)
            elif isinstance(checkpoint_path, str | os.PathLike):
                content = open_checkpoint(checkpoint_path)
                check_hyperparameters(content, checkpoint_path, cls, kwargs, True)
                del content
            else:
                check_file(checkpoint_path)
                # Which would import what the checkpoint names
                kwargs['_instantiator'] = None
            return super().load_from_checkpoint(checkpoint_path, *args, **kwargs)

    def setup(self: Any, stage: str) -> None:
        """Let the Trainer restore safely too."""
        restore_from_files(self.trainer)


def check_hyperparameters(
    content: Hyperparameters,
    path: object,
    kind: type | None,
    given: Hyperparameters,
    overridden: bool = False,
) -> None:
    """Refuse a checkpoint whose hyperparameters would let Lightning import what they name.

    Args:
        content: Of the checkpoint.
        path: Where it is, for the message.
        kind: Class of the module, unless the checkpoint names another; None if not known.
        given: Arguments that the user gives: what is the same in the checkpoint is trusted.
        overridden: Whether the user's arguments stand in the place of the checkpoint's.

    Raises:
        ValueError: If something is named that is neither ours, TorchGeo's nor the user's.
    """
    for key in ('hyper_parameters', 'hparams', 'module_arguments'):
        hparams = content.get(key) or {}
        names = list(hparams) if isinstance(hparams, Mapping) else [None]
        if not all(isinstance(name, str) for name in names):
            raise ValueError(
                f'the hyperparameters of {path} are no names with values: it is damaged, or no '
                'checkpoint of a task, take the original'
            )
        hparams = dict(hparams)
        if 'ssl_method' in hparams and 'pytorch-lightning_version' not in content:
            raise ValueError(
                f'{path} is an exported backbone, not the checkpoint of a run: start a new run from it by '
                'weights= (--model.weights)'
            )
        _check_instantiator(hparams.pop('_instantiator', None), path)
        named = hparams.pop('_class_path', None)
        if named is not None and find_task(named) is None:
            raise ValueError(
                f"{path} asks for the task {named!r}, which is neither ours nor TorchGeo's, and to "
                'import it could run any program: where you trust its origin, import it yourself, or '
                'name it by --model'
            )
        _check_values(hparams, path, find_task(named) or kind, given, overridden)


def find_task(path: object) -> type[BaseTask] | None:
    """Find a task among what is imported already, or ours and TorchGeo's.

    Args:
        path: Such as ``cmid_geo.tasks.CMID``.

    Returns:
        The class; None if there is none.
    """
    module, _, name = str(path).rpartition('.')
    if module.split('.')[0] in TRUSTED:
        with contextlib.suppress(ImportError):
            importlib.import_module(module)
    found = getattr(sys.modules.get(module), name, None)
    return found if isinstance(found, type) and issubclass(found, BaseTask) else None


def _check_instantiator(name: object, path: object) -> None:
    """Refuse another way of building modules than Lightning's."""
    if name not in (None, *INSTANTIATORS):
        raise ValueError(
            f'{path} asks to be built by {name!r}, which could run any program: take a checkpoint that '
            'Lightning saved'
        )


def _check_values(
    hparams: Hyperparameters,
    path: object,
    kind: type | None,
    given: Hyperparameters,
    overridden: bool,
) -> None:
    """Refuse values by which a parser would import a class."""
    hints: dict[str, Any] = {}
    # A class may be annotated with what only type checkers import
    with contextlib.suppress(NameError):
        hints = get_type_hints(kind.__init__) if kind is not None else {}
    ignored = getattr(kind, 'ignore', None) or ()
    unsaved = (ignored,) if isinstance(ignored, str) else ignored
    for name, value in hparams.items():
        plain = _takes_as_it_is(hints.get(name), value)
        if (plain and name not in unsaved) or not _holds_text(value):
            continue
        if name in given and (overridden or given[name] == value):
            continue
        raise ValueError(
            f'{path} holds {name}={str(value)[:100]!r}, by which a class could be imported and any '
            'program run: where you trust its origin, give the same value yourself, as the argument '
            f'{name} or by --model.{name}'
        )


def _takes_as_it_is(hint: object, value: object) -> bool:
    """Whether a parser takes a value for no more than it is: no class to import, no file to read."""
    if not _holds_text(value):
        return True
    if hint is Any:
        return _is_simple(value)
    if get_origin(hint) is Literal:
        return True
    if get_origin(hint) in (type, Callable):
        return False
    parts = [part for part in get_args(hint) if part is not ...]
    if parts:
        return all(_takes_as_it_is(part, value) for part in parts)
    return isinstance(hint, type) and issubclass(hint, PLAIN)


def _holds_text(value: object) -> bool:
    """Whether a value is more than numbers."""
    if isinstance(value, list | tuple):
        return any(map(_holds_text, value))
    return not isinstance(value, int | float | types.NoneType | torch.Tensor)


def _is_simple(value: object) -> bool:
    """Whether text holds words alone, which a parser does not look into."""
    if isinstance(value, Mapping):
        return 'class_path' not in value and all(map(_is_simple, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_is_simple, value))
    return not _holds_text(value) or re.fullmatch(r'[\w+-]*', str(value)) is not None
