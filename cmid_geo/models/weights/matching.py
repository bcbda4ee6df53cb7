# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Matching of given weights with a network's tensors, decided before anything is changed."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...ops.bands import names_of
from .adapt import copy_bands, repeat_bands, replace_first_convolution, resize_positions
from .convert import COMPUTED, HEADS, canonical_name
from .sources import Source

#: Parts that extractors of features leave out, from some number on or altogether.
LATER = re.compile(r'layer\d+|layers|stages|blocks|norm')

COUNT = 'num_batches_tracked'


@dataclass(frozen=True)
class LoadReport:
    """Report on weights that were loaded into a backbone.

    Attributes:
        source: Name of the weights.
        target: Name of the network.
        total: Number of tensors that the network's backbone has.
        loaded: Names of those that were loaded, as the network has them.
        adapted: How the tensors that did not fit as they were have been made to fit.
        heads: Names of tensors behind the features that fitted and were loaded too.
        skipped: Names of all other tensors of both sides, and why.
        about: What is known of the weights: ``bands``, ``mean``, ``std``, ...
    """

    source: str
    target: str
    total: int
    loaded: tuple[str, ...]
    adapted: dict[str, str]
    heads: tuple[str, ...]
    skipped: dict[str, str]
    about: dict[str, Any]

    def __str__(self) -> str:
        """Say it in a few lines."""
        count = f'{len(self.loaded)} of {self.total} tensors'
        lines = [f'{count} of {self.target} loaded from {self.source}']
        also = dict.fromkeys(self.heads, 'behind the features')
        titled = {'adapted': self.adapted, 'also loaded': also, 'skipped': self.skipped}
        for title, items in titled.items():
            reasons: dict[str, list[str]] = {}
            for name, reason in items.items():
                reasons.setdefault(reason, []).append(name)
            for reason, names in reasons.items():
                more = f' and {len(names) - 3} more' if len(names) > 3 else ''
                lines.append(f'  {title}: {", ".join(names[:3])}{more}: {reason}')
        return '\n'.join(lines)


class Plan:
    """What to load where; the network stays as it is until the plan is carried out."""

    def __init__(self, target: nn.Module, name: str, source: Source) -> None:
        """Initialize a new Plan instance.

        Args:
            target: Backbone to load into.
            name: What to call it.
            source: Weights.

        Raises:
            ValueError: If the backbone has no memory to load into.
        """
        self.target, self.name, self.source = target, name, source
        self.state: dict[str, Tensor] = target.state_dict()
        if any(tensor.is_meta for tensor in self.state.values()):
            raise ValueError(
                f'{name} is on the meta device, where tensors hold nothing: '
                "model.to_empty(device='cpu') gives it memory"
            )
        #: timm's names of the backbone's tensors, and its own.
        self.own = {plain_name(key): key for key in self.state}
        self.chosen: dict[str, Tensor] = {}
        self.adapted: dict[str, str] = {}
        self.skipped: dict[str, str] = {}
        self.faults: list[str] = []
        modules = target.named_modules()
        first = next((name for name, m in modules if isinstance(m, nn.Conv2d)), '')
        self.first = f'{first}.weight'

    def match(
        self,
        given: Mapping[str, Tensor],
        in_channels: int | None,
        bands: Sequence[str] | None,
    ) -> None:
        """Find a tensor for each of the backbone's own.

        Args:
            given: Tensors by timm's names.
            in_channels: Bands that the first convolution is to take, if not its own.
            bands: Their names, to copy filters by name.

        Raises:
            ValueError: If names and numbers of bands do not go together.
        """
        for plain, name in self.own.items():
            tensor = given.get(plain)
            if plain.endswith(COMPUTED):
                self.skipped[name] = 'computed, not learned'
            elif tensor is None and plain.endswith(COUNT):
                self.skipped[name] = 'a count that the weights do not have'
            elif tensor is None:
                self._miss(name, 'the weights have none')
            elif name == self.first:
                self._choose(name, self._fit_bands(name, tensor, in_channels, bands))
            else:
                self._choose(name, tensor)

    def look_for_others(self, given: Mapping[str, Tensor]) -> None:
        """Say what is left over: but for what is behind an extractor, another architecture's.

        Args:
            given: Tensors by timm's names.
        """
        last: dict[str, int] = {}
        for kind, number in map(_part, self.own):
            last[kind] = max(number, last.get(kind, 0))
        # timm's whole networks have what their weights have; what is made of them may not
        extractor = not hasattr(self.target, 'forward_features')
        foreign = []
        for plain in given:
            if plain in self.own or plain.endswith(COMPUTED):
                continue
            kind, number = _part(plain)
            later = kind not in last or number > last[kind]
            # 'layer3' is one part of a ResNet: more in the midst of it is another ResNet
            whole = kind not in last or not re.fullmatch(r'layer\d+', kind)
            if plain.startswith(HEADS):
                self.skipped[plain] = 'a head, not part of the backbone'
            elif plain.endswith(COUNT):
                self.skipped[plain] = 'a count that the network does not keep'
            elif extractor and later and whole and LATER.fullmatch(kind):
                self.skipped[plain] = 'the network ends before it'
            else:
                self.skipped[plain] = 'the network has no such tensor'
                foreign.append(plain)
        if foreign:
            left = f'{len(foreign)} tensors are left over'
            self.faults.append(f'{left}, {foreign[0]} the first')

    def report(self, inside: str) -> LoadReport:
        """Say what the plan is.

        Args:
            inside: Prefix under which the weights were found.

        Returns:
            What will have been loaded.
        """
        backbone = [n for p, n in self.own.items() if self._counts(p, n)]
        under = f', under {inside.removesuffix(".")!r}' if inside else ''
        return LoadReport(
            source=self.source.title + under,
            target=self.name,
            total=len(backbone),
            loaded=tuple(name for name in backbone if name in self.chosen),
            adapted=self.adapted,
            heads=tuple(n for n in self.chosen if plain_name(n).startswith(HEADS)),
            skipped=self.skipped,
            about=dict(self.source.metadata),
        )

    def carry_out(self, in_channels: int | None) -> None:
        """Load all that was chosen, or nothing.

        Args:
            in_channels: Bands that the first convolution is to take, if not its own.

        Raises:
            ValueError: If a tensor holds nothing that can be loaded.
        """
        ready = {name: self._ready(name, t) for name, t in self.chosen.items()}
        if in_channels and self.state[self.first].shape[1] != in_channels:
            replace_first_convolution(self.target, self.first, in_channels)
        # Straight to the tensors: some encoders change what load_state_dict is given
        with torch.no_grad():
            for name, tensor in self.target.state_dict().items():
                if name in ready:
                    tensor.copy_(ready[name])

    def _ready(self, name: str, tensor: Tensor) -> Tensor:
        """Convert to what the backbone holds, before anything is changed."""
        own = self.state[name]
        fault = None
        if tensor.is_meta or tensor.layout != torch.strided or tensor.is_quantized:
            fault = 'is on the meta device, sparse or quantised'
        elif tensor.is_floating_point() != own.is_floating_point():
            fault = f'is of {tensor.dtype}, not {own.dtype}'
        else:
            tensor = tensor.detach().to(own.device, own.dtype)
            if tensor.is_floating_point() and not tensor.isfinite().all():
                fault = f'is not finite as {own.dtype}'
        if fault:
            raise ValueError(
                f'{name} of {self.source.title} {fault}: nothing was loaded, save the weights anew '
                'as dense, finite float32'
            )
        return tensor

    def _counts(self, plain: str, name: str) -> bool:
        """Whether a tensor of the network's is one that weights must fill."""
        # A batch norm that was frozen has all but the count of its batches
        sibling = name.replace(COUNT, 'running_mean')
        spared = sibling != name and sibling in self.chosen and name not in self.chosen
        return not (plain.startswith(HEADS) or plain.endswith(COMPUTED) or spared)

    def _choose(self, name: str, tensor: Tensor) -> None:
        shape = tuple(self.state[name].shape)
        if name == self.first and tensor.ndim == 4:
            # The convolution takes the bands that its filters were fitted to
            shape = (shape[0], tensor.shape[1], *shape[2:])
        elif tensor.shape != shape:
            resized = resize_positions(name, tensor, self.target)
            if resized is not None and resized.shape == shape:
                self.adapted[name] = f'resized from {tuple(tensor.shape)} to {shape}'
                tensor = resized
        if tensor.shape == shape:
            self.chosen[name] = tensor
        else:
            self._miss(name, f'of {tuple(tensor.shape)}, not {shape}')

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
        given = names_of(self.source.metadata.get('bands'))
        if tensor.ndim != 4:
            return tensor
        if bands is not None:
            self.adapted[name] = f'bands {", ".join(bands)} from {", ".join(given)}'
            return copy_bands(tensor, given, bands)
        count = tensor.shape[1]
        if count > wanted > 1:
            self.adapted[name] = (
                f'the first {wanted} of {count} bands kept and scaled; bands=... chooses by name'
            )
        elif count != wanted:
            self.adapted[name] = f'{count} bands repeated and scaled to {wanted}'
        return tensor if count == wanted else repeat_bands(tensor, wanted)

    def _miss(self, name: str, reason: str) -> None:
        self.skipped[name] = reason
        if not plain_name(name).startswith(HEADS):
            self.faults.append(f'{name}: {reason}')


def _part(plain: str) -> tuple[str, int]:
    """The part of a network that a tensor is in, and its number there: ``layers``, 2."""
    kind, *rest = plain.split('.')
    return kind, int(rest[0]) if rest and rest[0].isdigit() else 0


def plain_name(name: str) -> str:
    """Give timm's name of a network's own tensor.

    Args:
        name: As the network has it.

    Returns:
        The name without what wraps the network: encoders, extractors, compilers, DDP.
    """
    return canonical_name(re.sub(r'^((model|module|_orig_mod)\.)+', '', name))
