# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Public names of a package, imported when they are first used (PEP 562)."""

import ast
import importlib
import sys
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any


def attach(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Give a package the names that it imports for type checkers, and its modules.

    Its imports stand once, under ``if TYPE_CHECKING:``, where checkers and editors read them; at run
    time they are read from the source when a name is asked for, and that one module is imported.

    .. code-block:: python

        if TYPE_CHECKING:
            from .cmid import CMID

        __all__ = ('CMID',)
        __getattr__, __dir__ = attach(__name__)

    Args:
        package: Its ``__name__``.

    Returns:
        The package's ``__getattr__`` and ``__dir__``.
    """
    module = sys.modules[package]

    @cache
    def homes() -> dict[str, str]:
        tree = ast.parse(Path(str(module.__file__)).read_text(encoding='utf-8'))
        return {
            alias.name: '.' * node.level + str(node.module)
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and node.level
            for alias in node.names
        }

    def get(name: str) -> Any:
        if name in module.__all__:
            value = getattr(importlib.import_module(homes()[name], package), name)
        elif not name.startswith('_') and find_spec(f'{package}.{name}'):
            value = importlib.import_module(f'{package}.{name}')
        else:
            raise AttributeError(f'module {package!r} has no attribute {name!r}')
        setattr(module, name, value)
        return value

    return get, lambda: sorted({*vars(module), *module.__all__})
