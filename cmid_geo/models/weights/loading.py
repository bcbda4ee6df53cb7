# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Loading of weights into any backbone, with a report on what was loaded."""

import warnings
from collections.abc import Sequence
from typing import Any

from torch import nn

from ..backbones import MaskedBackbone
from ..classification import pooling_of, set_pooling
from ..pyramid import Pyramid
from .convert import find_backbone
from .matching import LoadReport, Plan
from .sources import Source, Weights, read_source


def load_backbone(
    model_or_encoder: nn.Module,
    source: Weights | Source,
    in_channels: int | None = None,
    *,
    bands: Sequence[str] | None = None,
    strict: bool = True,
) -> LoadReport:
    """Load a backbone's weights into a network that has such a backbone.

    The network may be timm's (whole, or made with ``features_only=True``), a
    :class:`~cmid_geo.models.MaskedBackbone`, an encoder of segmentation_models_pytorch
    (plain or ``tu-``) or the model around it, a detector of torchvision or its body, and a
    task of TorchGeo with such a model. Tensors are matched by timm's name and by shape. The
    first convolution is fitted to the network's bands, Swin's tables of biases to its
    windows, and ViT's embeddings of positions to its size. Classifiers are loaded where they
    fit, and never missed. A ViT of timm's is set to pool its tokens as they were in training:
    CMID trains the patch tokens, whose mean is taken, and not the class token.

    Args:
        model_or_encoder: To load into.
        source: Member of a weights enum or its name; path of a checkpoint of CMID or another
            task, of a file that :func:`~cmid_geo.models.export_backbone` wrote, of one that
            the authors released, of a state dict of timm or torchvision, or of a
            ``.safetensors``; or the state dict itself.
        in_channels: Number of bands that the network shall take: its first convolution is
            changed where it takes others. By default it stays.
        bands: Names of the network's bands. The filters of those that the weights name are
            copied, the others' are 0 at first. By default filters are repeated over all
            bands and scaled, where the numbers of bands differ.
        strict: Whether a backbone must be filled completely, by weights of its own
            architecture. If not, whatever fits is loaded.

    Returns:
        What was loaded, adapted and skipped, and why.

    Raises:
        ConnectionError: If the weights must be downloaded and cannot.
        FileNotFoundError: If there is no such file.
        ValueError: If the weights do not fill the backbone or are of another one, if nothing
            fits, or if a file is damaged or holds more than tensors. The network is then
            as it was.

    Warns:
        UserWarning: If all fits, but the weights name a network of another family.
    """
    if in_channels is not None and in_channels < 1:
        raise ValueError(
            f'in_channels={in_channels}: a network takes at least one band'
        )
    if not isinstance(source, Source):
        source = read_source(source)
    model, target = _backbone_of(model_or_encoder)
    plan = Plan(target, _name_of(model, target), source)
    prefix, given = find_backbone(source.tensors, plan.own)
    plan.match(given, in_channels, bands)
    plan.look_for_others(given)
    pool = source.global_pool if model is target and pooling_of(target) else None
    if pool not in (None, pooling_of(target)):
        other = pooling_of(target)
        plan.adapted['global_pool'] = f'{pool!r} as in training, not {other!r}'
    report = plan.report(prefix)
    if not report.loaded or (strict and plan.faults):
        missed = '; '.join(plan.faults[:2])
        raise ValueError(
            f'{len(report.loaded)} of {report.total} tensors match between {source.title} and '
            f'{report.target}{f" ({missed})" if missed else ""}: choose weights of the same architecture'
            + ('' if not report.loaded else ', or load what fits with strict=False')
        )
    plan.carry_out(in_channels)
    if pool is not None:
        set_pooling(target, pool)
    _warn_of_another_family(source.model, target)
    return report


def _backbone_of(model: Any) -> tuple[Any, nn.Module]:
    """The model without what wraps it, and the part that backbones are loaded into."""
    while True:
        # Parallel and compiled modules, and tasks, hold the model under these names
        inner = getattr(model, 'module', None) or getattr(model, '_orig_mod', None)
        if inner is None and hasattr(model, 'hparams'):
            inner = getattr(model, 'model', None)
        if not isinstance(inner, nn.Module):
            break
        model = inner
    encoder = getattr(model, 'encoder', None)
    holders = (getattr(model, 'backbone', None), model)
    bodies = [getattr(holder, 'body', None) for holder in holders]
    for part in (model, encoder, *bodies):
        if isinstance(part, MaskedBackbone | Pyramid):
            return model, part.network
    if encoder is not None and hasattr(model, 'decoder'):
        return model, encoder
    return model, next((b for b in bodies if isinstance(b, nn.Module)), model)


def _name_of(model: Any, target: Any) -> str:
    """What to call a network in messages."""
    for candidate in (model, target, getattr(target, 'model', None)):
        name = _architecture(candidate) or getattr(candidate, 'name', None)
        if isinstance(name, str):
            return name
    return type(model).__name__


def _architecture(network: Any) -> str | None:
    """timm's name of a network, if timm made it."""  # noqa: D403
    return (getattr(network, 'pretrained_cfg', None) or {}).get('architecture')


def _warn_of_another_family(given: str | None, target: Any) -> None:
    """Some networks have the same tensors and use them otherwise: resnet50 and resnetaa50."""
    own = _architecture(target) or _architecture(getattr(target, 'model', None))
    if not given or not own:
        return
    # What follows tells the size of patches, windows and images
    given, own = (name.split('.')[0].split('_patch')[0] for name in (given, own))
    if given != own:
        warnings.warn(
            f'the weights are of {given}, the network is {own}: all tensors fit, but it may not give '
            'the same features',
            stacklevel=3,
        )
