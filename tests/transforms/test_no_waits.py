# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Views do not wait for the device: on ``meta`` there are no values to wait for."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cmid_geo.transforms import PairAugmentation, TwoViews
from cmid_geo.transforms.segmentation import LabelledAugmentation

META = torch.device('meta')

#: Operations that look at values, or whose result has as many rows as values say.
LOOKS = ('item', 'nonzero', 'local_scalar', 'is_nonzero', 'masked_select', 'equal')


class NoLiterals(TorchFunctionMode):
    """Refuses tensors made on a device from numbers of the host."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        literal = func in (torch.tensor, torch.as_tensor, torch.Tensor.new_tensor)
        there = literal and result.device == META
        if there and not isinstance(args[-1], torch.Tensor):
            raise RuntimeError('numbers of the host are copied, which waits')
        return result


class NoLooks(TorchDispatchMode):
    """Refuses what looks at a device's values, and copies that wait."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        result = func(*args, **kwargs)
        name = func._schema.name.removeprefix('aten::').lstrip('_')
        there = any(x.device == META for x in given)
        if there and name in LOOKS:
            raise RuntimeError(f'{name} looks at values')
        moved = name == 'to_copy' and result.device != given[0].device
        if moved and not kwargs.get('non_blocking'):
            raise RuntimeError('a copy between devices waits')
        if name == 'copy_' and given[0].device != given[1].device and not args[2:]:
            raise RuntimeError('a copy between devices waits')
        # A mask as an index becomes a list of places, whose length must be known
        masks = [x for x in given[1:] if x.dtype == torch.bool]
        if there and masks and name.startswith('index'):
            raise RuntimeError('a mask as an index waits')
        return result


@contextmanager
def no_waits() -> Iterator[None]:
    with NoLiterals(), NoLooks():
        yield


@pytest.fixture(autouse=True)
def no_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without autocast, which does not know ``meta``."""
    monkeypatch.setattr(torch, 'autocast', lambda *_, **__: nullcontext())


@pytest.mark.parametrize(
    'wait',
    [
        lambda x: x.sum().item(),
        lambda x: x[x > 0],
        lambda x: x + torch.tensor([1.0], device=META),
        lambda x: x + torch.ones(1).to(META),
        lambda x: x.new_tensor([1.0]),
        lambda x: torch.empty_like(x).copy_(torch.ones(4)),
        lambda x: bool((x > 0).any()),
        lambda x: x.cpu(),
    ],
)
def test_waits_are_noticed(wait: Any) -> None:
    with pytest.raises((RuntimeError, NotImplementedError)), no_waits():
        wait(torch.zeros(4, device=META))


@pytest.mark.parametrize('bands', [3, 5])
@pytest.mark.parametrize('dates', [(), (2,)])
def test_views_do_not_wait(bands: int, dates: tuple[int, ...]) -> None:
    views = TwoViews(64)
    views.to(META)
    chips = torch.zeros(4, *dates, bands, 80, 80, device=META)
    valid = torch.ones(4, *dates, 80, 80, dtype=torch.bool, device=META)
    # The constants of the first batch are kept
    views(chips, valid)
    with no_waits():
        for _ in range(5):
            drawn = [*views(chips, valid), *views(chips)]
    for view in drawn:
        parts = view.image, view.mask, view.positions, view.valid
        assert {x.device for x in parts} == {META}
        assert view.image.shape == (4, bands, 64, 64)


def test_augmentations_of_labelled_images_do_not_wait() -> None:
    valid = torch.ones(4, 64, 64, dtype=torch.bool, device=META)
    mask = torch.zeros(4, 64, 64, dtype=torch.long, device=META)
    image = torch.zeros(4, 2, 3, 64, 64, device=META)
    pair, one = PairAugmentation(32).to(META), LabelledAugmentation(64).to(META)
    with no_waits():
        moved = [*pair(image, mask, valid), *one(image[:, 0], mask, valid)]
    assert all(x.device == META for x in moved)
