# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""One loader for all backbones, which always says what it loaded."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .adapting import (
    copy_bands,
    repeat_bands,
    replace_first_convolution,
    resize_positions,
)
from .backbones import MaskedBackbone
from .names import canonical_name, find_backbone, is_computed, is_head
from .sources import Source, Weights, read_source

#: Rows of parts of which extractors of features may keep the first ones only.
STAGES = ('layers', 'stages', 'blocks')


@dataclass(frozen=True)
class LoadReport:
    """What came of loading weights into a backbone.

    Attributes:
        source: Name of the weights.
        target: Name of the network.
        total: Number of tensors that the network's backbone has.
        loaded: Names of those that were loaded, as the network has them.
        adapted: How the tensors that did not fit as they were have been made to fit.
        skipped: Names of all other tensors of both sides, and why.
        about: What is known of the weights: ``bands``, ``mean``, ``std``, ...
    """

    source: str
    target: str
    total: int
    loaded: tuple[str, ...]
    adapted: dict[str, str]
    skipped: dict[str, str]
    about: dict[str, Any]

    def __str__(self) -> str:
        """Say it in a few lines."""
        lines = [
            f'{len(self.loaded)} of {self.total} tensors of {self.target} loaded from {self.source}'
        ]
        for title, items in (('adapted', self.adapted), ('skipped', self.skipped)):
            reasons: dict[str, list[str]] = {}
            for name, reason in items.items():
                reasons.setdefault(reason, []).append(name)
            for reason, names in reasons.items():
                shown = ', '.join(names[:3]) + (
                    f' and {len(names) - 3} more' if len(names) > 3 else ''
                )
                lines.append(f'  {title}: {shown}: {reason}')
        return '\n'.join(lines)


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
    (plain or ``tu-``) or the model around it, and a detector of torchvision or its body.
    Tensors are matched by timm's name and by shape. The first convolution is fitted to the
    network's bands, Swin's tables of biases to its windows, and ViT's embeddings of
    positions to its size. Classifiers are loaded where they fit, and never missed.

    Args:
        model_or_encoder: To load into.
        source: Member of a weights enum or its name; path of a checkpoint of CMID or another
            task, of a file that :func:`~cmid_geo.models.export_backbone` wrote, of one that
            the authors released, of a state dict of timm or torchvision, or of a
            ``.safetensors``; or the state dict itself.
        in_channels: Number of bands that the network shall take: its first convolution is
            replaced where it takes others. By default it stays.
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
    """
    if not isinstance(source, Source):
        source = read_source(source)
    target = _backbone_of(model_or_encoder)
    own = {_plain(name): name for name in target.state_dict()}
    prefix, given = find_backbone(source.tensors, own)
    plan = _Plan(target, _name_of(model_or_encoder, target), own, source)
    plan.match(given, in_channels, bands)
    plan.look_for_others(given)
    report = plan.report(prefix)
    if not report.loaded or (strict and plan.faults):
        missed = '; '.join(plan.faults[:2])
        raise ValueError(
            f'{len(report.loaded)} of {report.total} tensors match between {source.title} and '
            f'{report.target}{f" ({missed})" if missed else ""}: choose weights of the same architecture'
            + ('' if not report.loaded else ', or load what fits with strict=False')
        )
    plan.carry_out(in_channels)
    return report


class _Plan:
    """What to load where; nothing is changed before it is carried out."""

    def __init__(
        self, target: nn.Module, name: str, own: dict[str, str], source: Source
    ) -> None:
        self.target, self.name, self.own, self.source = target, name, own, source
        self.state: dict[str, Tensor] = target.state_dict()
        self.chosen: dict[str, Tensor] = {}
        self.adapted: dict[str, str] = {}
        self.skipped: dict[str, str] = {}
        self.faults: list[str] = []
        # All networks known here begin with a convolution
        self.first = next((n for n, t in self.state.items() if t.ndim == 4), '')

    def match(
        self,
        given: Mapping[str, Tensor],
        in_channels: int | None,
        bands: Sequence[str] | None,
    ) -> None:
        """Find a tensor for each of the network's own."""
        for plain, name in self.own.items():
            tensor = given.get(plain)
            if is_computed(plain):
                self.skipped[name] = 'computed, not learned'
            elif tensor is None and plain.endswith('num_batches_tracked'):
                self.skipped[name] = 'a count that the weights do not have'
            elif tensor is None:
                self._miss(name, 'the weights have none')
            elif name == self.first:
                self._choose(name, self._fit_bands(name, tensor, in_channels, bands))
            else:
                self._choose(name, tensor)

    def look_for_others(self, given: Mapping[str, Tensor]) -> None:
        """Say what is left over. In the midst of the network it tells another architecture."""
        last: dict[str, int] = {}
        for kind, number in map(_part, self.own):
            last[kind] = max(number, last.get(kind, 0))
        foreign = []
        for plain in given:
            if plain in self.own or is_computed(plain):
                continue
            kind, number = _part(plain)
            if is_head(plain):
                self.skipped[plain] = 'a head, not part of the backbone'
            elif kind not in last or (kind in STAGES and number > last[kind]):
                self.skipped[plain] = 'the network ends before it'
            elif plain.endswith('num_batches_tracked'):
                self.skipped[plain] = 'a count that the network does not keep'
            else:
                self.skipped[plain] = 'the network has no such tensor'
                foreign.append(plain)
        if foreign:
            self.faults.append(
                f'{len(foreign)} tensors are left over, {foreign[0]} the first'
            )

    def report(self, prefix: str) -> LoadReport:
        """Say what the plan is."""
        backbone = [n for p, n in self.own.items() if self._counts(p, n)]
        loaded = tuple(name for name in backbone if name in self.chosen)
        inside = f', under {prefix.removesuffix(".")!r}' if prefix else ''
        return LoadReport(
            source=self.source.title + inside, target=self.name, total=len(backbone),
            loaded=loaded, adapted=self.adapted, skipped=self.skipped,
            about=dict(self.source.about),
        )  # fmt: skip

    def carry_out(self, in_channels: int | None) -> None:
        """Load all that was chosen, at once."""
        if in_channels and self.state[self.first].shape[1] != in_channels:
            replace_first_convolution(self.target, self.first, in_channels)
        # Straight to the tensors: some encoders change what load_state_dict is given
        with torch.no_grad():
            for name, tensor in self.target.state_dict().items():
                if name in self.chosen:
                    tensor.copy_(self.chosen[name])

    def _counts(self, plain: str, name: str) -> bool:
        """Whether a tensor of the network's is one that weights must fill."""
        # A batch norm that was frozen has all but the count of its batches
        sibling = name.replace('num_batches_tracked', 'running_mean')
        spared = sibling != name and sibling in self.chosen and name not in self.chosen
        return not (is_head(plain) or is_computed(plain) or spared)

    def _choose(self, name: str, tensor: Tensor) -> None:
        shape = self.state[name].shape
        if tensor.shape != shape and name != self.first:
            resized = resize_positions(name, tensor, self.target)
            if resized is not None and resized.shape == shape:
                self.adapted[name] = (
                    f'resized from {tuple(tensor.shape)} to {tuple(shape)}'
                )
                tensor = resized
        wanted = (
            (shape[0], tensor.shape[1], *shape[2:]) if name == self.first else shape
        )
        if tuple(tensor.shape) == tuple(wanted):
            self.chosen[name] = tensor
        else:
            self._miss(name, f'of {tuple(tensor.shape)}, not {tuple(shape)}')

    def _fit_bands(
        self,
        name: str,
        tensor: Tensor,
        in_channels: int | None,
        bands: Sequence[str] | None,
    ) -> Tensor:
        wanted = in_channels or self.state[name].shape[1]
        if bands is not None and len(bands) != wanted:
            raise ValueError(
                f'bands={list(bands)} are {len(bands)} but {self.name} takes {wanted}: name them all, '
                'or set in_channels'
            )
        given = tuple(self.source.about.get('bands') or ())
        if tensor.ndim != 4:
            return tensor
        if bands is not None:
            self.adapted[name] = f'bands {", ".join(bands)} from {", ".join(given)}'
            return copy_bands(tensor, given, bands)
        if tensor.shape[1] != wanted:
            self.adapted[name] = (
                f'{tensor.shape[1]} bands repeated and scaled to {wanted}'
            )
            return repeat_bands(tensor, wanted)
        return tensor

    def _miss(self, name: str, reason: str) -> None:
        self.skipped[name] = reason
        if not is_head(_plain(name)):
            self.faults.append(f'{name}: {reason}')


def _part(plain: str) -> tuple[str, int]:
    """The part of a network that a tensor is in, and its number there: ``layers``, 2."""
    kind, *rest = plain.split('.')
    return kind, int(rest[0]) if rest and rest[0].isdigit() else 0


def _plain(name: str) -> str:
    """Give timm's name of a network's own tensor."""
    # Encoders of segmentation_models_pytorch and extractors of timm wrap the network
    return canonical_name(re.sub(r'^((model|module|_orig_mod)\.)+', '', name))


def _backbone_of(model: Any) -> nn.Module:
    """The part of a model that backbones are loaded into."""
    if isinstance(model, MaskedBackbone):
        return model.network
    if hasattr(model, 'encoder') and hasattr(model, 'decoder'):
        return model.encoder
    for holder in (getattr(model, 'backbone', None), model):
        body = getattr(holder, 'body', None)
        if isinstance(body, nn.Module):
            return body
    return model


def _name_of(model: Any, target: Any) -> str:
    """What to call a network in messages."""
    for candidate in (model, target, getattr(target, 'model', None)):
        architecture = getattr(candidate, 'pretrained_cfg', {}).get('architecture')
        name = architecture or getattr(candidate, 'name', None)
        if isinstance(name, str):
            return name
    return type(target).__name__
