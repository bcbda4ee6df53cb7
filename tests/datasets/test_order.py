# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""The order in which a run takes its samples."""

import pytest
import torch
from torch.utils.data import DataLoader

from cmid_geo.datasets.order import RandomlyCropped, SeededCrops, TrainingOrder
from cmid_geo.datasets.samplers import ListedChips


def drawn(order: TrainingOrder, epoch: int) -> list[int]:
    order.set_epoch(epoch)
    return list(order)


@pytest.mark.parametrize('processes', [1, 2, 3])
def test_processes_share_an_epoch(processes: int) -> None:
    orders = [
        TrainingOrder(ListedChips(range(7), 7), processes, rank)
        for rank in range(processes)
    ]
    for epoch in (0, 1):
        shares = [drawn(order, epoch) for order in orders]
        assert {len(share) for share in shares} == {len(orders[0])}
        together = [index for turn in zip(*shares) for index in turn]
        whole = drawn(TrainingOrder(ListedChips(range(7), 7)), epoch)
        # As torch does, the first come again where they do not share out
        assert together[:7] == whole and together[7:] == whole[: len(together) - 7]
    assert drawn(orders[0], 0) != drawn(orders[0], 1)


@pytest.mark.parametrize('workers', [0, 2])
def test_a_restored_order_begins_where_the_run_stopped(workers: int) -> None:
    whole = TrainingOrder(ListedChips(range(9), 9, seed=4), 2, 1)
    rest = drawn(whole, 3)[2:]
    order = TrainingOrder(ListedChips(range(9), 9, seed=4), 2, 1)
    order.place = 3, 2
    loader = DataLoader(torch.arange(9), 1, sampler=order, num_workers=workers)
    # Workers fetch before the epoch is told, and whatever it is
    batches = iter(loader)
    order.set_epoch(3)
    assert [int(batch) for batch in batches] == rest
    assert order.serving == 3
    order.set_epoch(4)
    assert [int(batch) for batch in loader] == drawn(whole, 4)


def test_crops_depend_on_seed_epoch_and_place_alone() -> None:
    sampler = SeededCrops(range(3), 8, seed=1)
    first = list(sampler)
    assert [index for index, _ in first] == list(ListedChips(range(3), 8, seed=1))
    assert list(sampler) == first and len({seed for _, seed in first}) == 8
    sampler.set_epoch(1)
    assert list(sampler) != first

    cropped = RandomlyCropped(
        [0] * 3, lambda sample, generator: {'at': torch.rand((), generator=generator)}
    )
    at = [float(cropped[key]['at']) for key in (first[0], first[0], first[1], 0, 0)]
    assert at[0] == at[1] != at[2]
    assert at[3] != at[4], 'without a seed as torch draws'
    assert len(cropped) == 3
