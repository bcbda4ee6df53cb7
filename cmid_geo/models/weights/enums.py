# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Weights that the authors of CMID released."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import WeightsEnum
from torchvision.models._api import Weights
from torchvision.transforms import v2 as T

from ..classification import create_network
from .checkpoint import open_checkpoint, tensors_in
from .convert import COMPUTED
from .convert_official import (
    convert_released_state_dict,
    convert_released_training_state,
    is_full,
)
from .download import fetch

# All of the authors' fine-tuning normalizes by ImageNet's statistics, though pretraining
# did not: https://doi.org/10.1109/TGRS.2023.3268232
_mean = (0.485, 0.456, 0.406)
_std = (0.229, 0.224, 0.225)

_swin = 'swin_base_patch4_window7_224'

_META: dict[str, Any] = {
    'in_chans': 3,
    'publication': 'https://doi.org/10.1109/TGRS.2023.3268232',
    'repo': 'https://github.com/NJU-LHRS/official-CMID',
    'bands': ('R', 'G', 'B'),
    'ssl_method': 'CMID',
    'license': "not for commercial use (the authors' statement)",
    # Raw values that stand for 0 and 1, and what normalizes the scaled ones
    'low': (0.0, 0.0, 0.0),
    'high': (255.0, 255.0, 255.0),
    'mean': _mean,
    'std': _std,
    # Of the files, in hexadecimal digits; not known: recorded when one first comes
    'sha256': None,
    'full_sha256': None,
}


def _weights(model: str, dataset: str, backbone: str, full: str) -> Weights:
    """Describe a pair of released files; their addresses end in a slash, so they get names."""
    host = 'https://box.nju.edu.cn/f'
    return Weights(
        url=f'{host}/{backbone}/?dl=1',
        transforms=nn.Sequential(T.Normalize(_mean, _std)),
        meta=_META
        | {'dataset': dataset, 'model': model, 'full_url': f'{host}/{full}/?dl=1'},
    )


def _read_tensors(file: Path) -> dict[str, Tensor]:
    """Read a released file."""
    tensors = tensors_in(open_checkpoint(file))
    if not tensors:
        raise ValueError(
            f'{file} holds no tensors: it is not what the authors released, delete it'
        )
    return tensors


class CMIDWeights(WeightsEnum):
    """Files of two kinds: the backbone alone, and all that pretraining goes on from.

    ``transforms`` normalizes images in [0, 1].
    """

    def get_state_dict(
        self,
        progress: bool = True,
        check_hash: bool = True,
        weights_only: bool = True,
        *,
        sha256: str | None = None,
        **kwargs: Any,
    ) -> dict[str, Tensor]:
        """Get the backbone's tensors by timm's names, from the cache or the authors' server.

        Args:
            progress: Whether to show a progress bar.
            check_hash: Taken for TorchGeo's sake: the hash is checked in any case.
            weights_only: Taken for TorchGeo's sake: nothing but tensors is ever loaded.
            sha256: Hash that the file must have, in hexadecimal digits; by default one of those in
                ``$CMID_GEO_SHA256``, else the one it had when it first came.
            **kwargs: Taken for TorchGeo's sake, ignored.

        Returns:
            Tensors that load into timm's network of ``meta['model']``.

        Raises:
            ConnectionError: If the file can neither be found nor downloaded.
            ValueError: If the file is not what it was, of another network, or no checkpoint.
        """
        return convert_released_state_dict(self._read('backbone', progress, sha256))

    def get_training_state(
        self, progress: bool = True, *, sha256: str | None = None
    ) -> dict[str, Tensor]:
        """Get all that pretraining goes on from, by the names of CMID's ``state_dict``.

        Args:
            progress: Whether to show a progress bar.
            sha256: Hash that the file must have, see :meth:`get_state_dict`.

        Returns:
            Student, teacher, decoder, queue and centre.

        Raises:
            ConnectionError: If the file can neither be found nor downloaded.
            ValueError: If the file is not what it was, of another network, or no checkpoint.
        """
        return convert_released_training_state(self._read('full', progress, sha256))

    def __reduce_ex__(self, proto: Any) -> tuple[Any, ...]:
        """Pickle by name: an equal copy of ``transforms`` is not equal to Python."""
        return getattr, (type(self), self.name)

    def _read(self, kind: str, progress: bool, sha256: str | None) -> dict[str, Tensor]:
        url, known = self.url, self.meta['sha256']
        if kind == 'full':
            url, known = self.meta['full_url'], self.meta['full_sha256']

        def check(file: Path) -> None:
            """Refuse a file that does not hold these weights."""
            fault = self._find_fault(_read_tensors(file), kind)
            if fault:
                raise ValueError(
                    f'{file} {fault}, so it is not the {kind} file of {self}: delete it, and place what '
                    f'{url} gives as {self.file_name(kind)}'
                )

        file = fetch(url, self.file_name(kind), sha256 or known, progress, check)
        return _read_tensors(file)

    def _find_fault(self, tensors: dict[str, Tensor], kind: str) -> str | None:
        """Tell by names and shapes what cannot be the file of a kind."""
        if is_full(tensors) != (kind == 'full'):
            is_one = 'has' if kind == 'backbone' else 'lacks'
            return f'{is_one} what pretraining goes on from'
        given = convert_released_state_dict(tensors)
        with torch.device('meta'):
            own = create_network(self.meta['model']).state_dict()
        for name, tensor in own.items():
            if name.endswith((*COMPUTED, 'num_batches_tracked')):
                continue
            if name not in given or given[name].shape != tensor.shape:
                return f'has no {name} of {tuple(tensor.shape)}, as {self.meta["model"]} has'
        return None

    def file_name(self, kind: str = 'backbone') -> str:
        """Name of a file in the cache: the addresses hold none.

        Args:
            kind: 'backbone' or 'full'.

        Returns:
            The name.
        """
        model = type(self).__name__.removesuffix('_Weights').lower()
        return f'{model}_{self.name.lower()}_{kind}.pth'


class CMIDResNet50_Weights(CMIDWeights):
    """ResNet-50 weights, for timm's *resnet50*."""

    MILLIONAID_RGB = _weights(
        'resnet50', 'MillionAID', 'b2e7ad5d3aea4f569e82', 'b29d28b279ab4724913b'
    )
    POTSDAM_RGB = _weights(
        'resnet50', 'Potsdam', 'd12c2d027d2846119855', '578b015fc41d4119a2d5'
    )


class CMIDSwinB_Weights(CMIDWeights):
    """Swin-B weights, for timm's *swin_base_patch4_window7_224*."""

    MILLIONAID_RGB = _weights(
        _swin, 'MillionAID', '82a3c7ca7bfc4887aef8', '8453a93f652c4c4eb054'
    )
    POTSDAM_RGB = _weights(
        _swin, 'Potsdam', '92d3d42dce07467f9d8e', 'dce6cdc3882a46c8b286'
    )
