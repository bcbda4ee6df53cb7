# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Networks by name, with weights by name, as in :mod:`torchgeo.models`."""

import importlib.abc
import importlib.util
import sys
import warnings
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import timm
from torch import nn

from .enums import CMIDResNet50_Weights, CMIDSwinB_Weights, CMIDWeights
from .loading import load_backbone
from .sources import get_weight

__all__ = ('cmid_resnet50', 'cmid_swin_b', 'get_model', 'get_model_weights', 'get_weight',
           'list_models', 'list_weights')  # fmt: skip


def cmid_resnet50(
    weights: CMIDResNet50_Weights | str | None = None, *args: Any, **kwargs: Any
) -> nn.Module:
    """ResNet-50, with CMID's weights.

    If you use this model in your research, please cite the following paper:

    * https://doi.org/10.1109/TGRS.2023.3268232

    Args:
        weights: Pretrained weights, or their name.
        *args: Passed to :func:`timm.create_model`.
        **kwargs: Passed to it as well: ``num_classes``, ``features_only``, ``in_chans``, ... The weights'
            filters are repeated and scaled if ``in_chans`` is not 3.

    Returns:
        timm's network.

    Raises:
        ConnectionError: If the weights must be downloaded and cannot.
        ValueError: If they are another network's.
    """
    return _build('resnet50', CMIDResNet50_Weights, weights, *args, **kwargs)


def cmid_swin_b(
    weights: CMIDSwinB_Weights | str | None = None, *args: Any, **kwargs: Any
) -> nn.Module:
    """Swin-B with windows of 7 by 7, with CMID's weights, for images of any size.

    Args:
        weights: Pretrained weights, or their name.
        *args: Passed to :func:`timm.create_model`.
        **kwargs: Passed to :func:`timm.create_model`, as those of :func:`cmid_resnet50`.

    Returns:
        timm's network; errors are those of :func:`cmid_resnet50`.

    Source: https://doi.org/10.1109/TGRS.2023.3268232, which to cite if you use it in your research.
    """
    kwargs.setdefault('strict_img_size', False)
    name = 'swin_base_patch4_window7_224'
    return _build(name, CMIDSwinB_Weights, weights, *args, **kwargs)


def _build(
    name: str, enum: type[CMIDWeights], weights: Any, *args: Any, **kwargs: Any
) -> nn.Module:
    if isinstance(weights, str):
        weights = get_weight(weights)
    if weights is not None and not isinstance(weights, enum):
        raise ValueError(
            f'weights={weights!s} are not those of this network: choose of '
            f'{", ".join(map(str, enum))}, or load others by cmid_geo.models.load_backbone'
        )
    model = timm.create_model(name, *args, **kwargs)
    if weights is not None:
        load_backbone(model, weights)
    return model


_BUILDERS: dict[str, tuple[Callable[..., nn.Module], type[CMIDWeights]]] = {
    'cmid_resnet50': (cmid_resnet50, CMIDResNet50_Weights),
    'cmid_swin_b': (cmid_swin_b, CMIDSwinB_Weights),
}


def list_models() -> list[str]:
    """List the names of our networks.

    Returns:
        Names for :func:`get_model`.
    """
    return list(_BUILDERS)


def get_model(name: str, *args: Any, **kwargs: Any) -> nn.Module:
    """Build a network by its name.

    Args:
        name: One of :func:`list_models`.
        *args: Passed to its builder.
        **kwargs: Passed to its builder.

    Returns:
        The network.

    Raises:
        ValueError: If there is none of that name.
    """
    return _find(name)[0](*args, **kwargs)


def get_model_weights(name: Callable[..., nn.Module] | str) -> type[CMIDWeights]:
    """Get the weights enum of a network.

    Args:
        name: One of :func:`list_models`, or its builder.

    Returns:
        The enum.

    Raises:
        ValueError: If there is none of that name.
    """
    return _find(name if isinstance(name, str) else getattr(name, '__name__', ''))[1]


def list_weights(model: str | None = None) -> list[str]:
    """List the names of our weights.

    Args:
        model: One of :func:`list_models`; all by default.

    Returns:
        Names for :func:`get_weight`, and for ``weights`` of any task.

    Raises:
        ValueError: If there is no such network.
    """
    names = list_models() if model is None else [model]
    return [str(member) for name in names for member in get_model_weights(name)]


def _find(name: str) -> tuple[Callable[..., nn.Module], type[CMIDWeights]]:
    if name not in _BUILDERS:
        near = get_close_matches(name, _BUILDERS, n=1)
        raise ValueError(
            f'{name!r} is none of our models{f" (did you mean {near[0]}?)" if near else ""}: they are '
            f'{", ".join(_BUILDERS)}'
        )
    return _BUILDERS[name]


def register(torchgeo_api: ModuleType) -> None:
    """Let TorchGeo find our weights by name: its tasks take ``weights`` as a string.

    It has no way meant for that, so it may fail with another version; all else works then,
    only the strings are not known to TorchGeo.

    Args:
        torchgeo_api: The module ``torchgeo.models.api``.

    Warns:
        UserWarning: If this version of TorchGeo keeps its names in another way.
    """
    try:
        models, weights = torchgeo_api._model, torchgeo_api._model_weights
        for name, (builder, enum) in _BUILDERS.items():
            models.setdefault(name, builder)
            weights.setdefault(name, enum)
            weights.setdefault(builder, enum)
    except (AttributeError, TypeError) as error:
        warnings.warn(
            f'this version of TorchGeo does not take our weights by name ({error}): give its tasks '
            'the member of the enum instead of a string',
            stacklevel=2,
        )


class _OnImport(importlib.abc.MetaPathFinder):
    """Registers as soon as TorchGeo's models are imported: to import them here takes 8 s."""

    name = 'torchgeo.models.api'

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: Any = None
    ) -> ModuleSpec | None:
        """Find the module in the usual way, and register after its own code has run."""
        if fullname != self.name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_register(module: ModuleType) -> None:
                """Register once the module is imported."""
                execute(module)
                register(module)

            spec.loader.exec_module = execute_and_register
        return spec


if _OnImport.name in sys.modules:
    register(sys.modules[_OnImport.name])
else:
    sys.meta_path.insert(0, _OnImport())
