# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.fabric.utilities.distributed import DistributedSamplerWrapper
from rasterfiles import noise, write

from cmid_geo.datasets import Chip, GridChips, RandomChips, SceneDataset
from cmid_geo.datasets.coverage import Bits, Coverage
from cmid_geo.datasets.samplers import ListedChips


def with_corner(side: int, empty: int) -> np.ndarray:
    """A square scene without data in its upper left corner."""
    array = noise(2, side, side)
    array[:, :empty, :empty] = 0
    return array


class TestCoverage:
    def test_fraction_is_exact_on_cells(self) -> None:
        cells = np.zeros((10, 10), bool)
        cells[:, 5:] = True
        cover = Coverage(cells, 100, 100)
        assert cover.valid_fraction == 0.5
        assert cover.fraction(0.0, 0.0, 100) == pytest.approx(0.5)
        assert cover.fraction(45.0, 13.0, 10) == pytest.approx(0.5)
        assert cover.fraction(48.5, 0.0, 10) == pytest.approx(0.85)
        assert cover.fraction(95.0, 95.0, 10) == pytest.approx(0.25)

    @pytest.mark.parametrize('shape', [(1, 1), (3, 5), (512, 512)])
    def test_bits_give_the_cells_back(self, shape: tuple[int, int]) -> None:
        cells = np.random.default_rng(0).random(shape) < 0.5
        found = Bits(cells).unpack()
        assert found.dtype == bool and np.array_equal(found, cells)

    def test_little_memory_is_kept(self) -> None:
        """As every process keeps the coverage of every scene."""
        rows, cols = np.mgrid[:512, :512]
        cover = Coverage(rows + cols / 3 > 250, 1024, 1024)
        assert cover.restrict(224, 0.75)
        assert len(pickle.dumps(cover)) < 4096

    def test_draws_are_even(self) -> None:
        """Nowhere, the edges included, are windows drawn more often."""
        cells = np.ones((40, 40), bool)
        cells[0, 0] = False  # enough to take the way of scenes that are valid in part
        cover = Coverage(cells, 400, 400)
        assert cover.restrict(100, 0.5)
        rng = np.random.default_rng(0)
        drawn = np.array([cover.draw(rng) for _ in range(20000)])
        assert drawn.min() >= 0 and drawn.max() <= 300
        counts, _ = np.histogram(drawn[:, 0], bins=10, range=(0, 300))
        assert abs(counts / 2000 - 1).max() < 0.1


class TestRandomChips:
    def test_reproducible(self, tmp_path: Path) -> None:
        write(tmp_path / 'a.tif', noise(1, 200, 200))
        dataset = SceneDataset(tmp_path)
        first, second = (RandomChips(dataset, 64, 20, seed=3) for _ in range(2))
        assert list(first) == list(second) == list(first)
        assert len(first) == len(list(first)) == 20
        second.set_epoch(1)
        assert list(first) != list(second)
        assert list(first) != list(RandomChips(dataset, 64, 20, seed=4))

    def test_seed_of_torch(self, tmp_path: Path) -> None:
        write(tmp_path / 'a.tif', noise(1, 200, 200))
        dataset = SceneDataset(tmp_path)
        drawn = []
        for seed in (5, 5, 6):
            torch.manual_seed(seed)
            drawn.append(list(RandomChips(dataset, 64, 5)))
        assert drawn[0] == drawn[1] != drawn[2]

    def test_processes_share_one_list(self, tmp_path: Path) -> None:
        write(tmp_path / 'a.tif', noise(1, 200, 200))
        dataset = SceneDataset(tmp_path)
        ranks = []
        for rank in range(2):
            sampler = RandomChips(dataset, 64, 10, seed=0)
            sampler.set_epoch(2)
            ranks.append(
                list(DistributedSamplerWrapper(sampler, 2, rank, shuffle=False))
            )
        whole = RandomChips(dataset, 64, 10, seed=0)
        whole.set_epoch(2)
        expected = list(whole)
        assert ranks == [expected[::2], expected[1::2]]

    def test_in_proportion_to_valid_area(self, tmp_path: Path) -> None:
        write(tmp_path / 'a.tif', noise(1, 128, 128))
        write(tmp_path / 'b.tif', noise(1, 256, 256))
        half = noise(1, 256, 256)
        half[:, :, 128:] = 0
        write(tmp_path / 'c.tif', half, nodata=0)
        write(tmp_path / 'd.tif', noise(1, 64, 64))  # as small as a chip
        sampler = RandomChips(SceneDataset(tmp_path), 64, 4000, seed=0)
        np.testing.assert_allclose(sampler.probabilities, np.array([4, 16, 8, 1]) / 29)
        counts = Counter(chip.scenes[0] for chip in sampler)
        for i, share in enumerate(sampler.probabilities):
            assert abs(counts[i] / 4000 - share) < 0.025
        assert {(c.col, c.row) for c in sampler if c.scenes == (3,)} == {(0, 0)}

    @pytest.mark.parametrize('min_valid', [0.5, 0.75, 1.0])
    def test_avoids_no_data(self, tmp_path: Path, min_valid: float) -> None:
        write(tmp_path / 'a.tif', with_corner(300, 200))
        dataset = SceneDataset(tmp_path, zero_is_nodata=True)
        sampler = RandomChips(dataset, 64, 200, min_valid=min_valid, seed=0)
        shares = [dataset[chip]['valid'].float().mean().item() for chip in sampler]
        assert min(shares) >= min_valid - 0.02
        assert min_valid == 1 or min(shares) < min_valid + 0.1

    def test_leaves_out_and_says_so(self, tmp_path: Path) -> None:
        write(tmp_path / 'good.tif', noise(1, 100, 100))
        write(tmp_path / 'small.tif', noise(1, 63, 100))
        write(tmp_path / 'empty.tif', np.zeros((1, 100, 100), np.uint8), nodata=0)
        dataset = SceneDataset(tmp_path)
        with pytest.warns(UserWarning) as caught:
            sampler = RandomChips(dataset, 64, 30, seed=0)
        small, empty = (str(warning.message) for warning in caught)
        assert 'small.tif' in small and '(100x63)' in small and 'patch_size' in small
        assert 'empty.tif' in empty and '0% valid' in empty and 'min_valid' in empty
        assert {dataset.scenes[c.scenes[0]].files[0] for c in sampler} == {
            str(tmp_path / 'good.tif')
        }

    def test_nothing_left(self, tmp_path: Path) -> None:
        write(tmp_path / 'a.tif', noise(1, 63, 100))
        with pytest.raises(ValueError, match=r'a.tif.*100x63.*lower the size'):
            RandomChips(SceneDataset(tmp_path), 64, 1)
        write(tmp_path / 'a.tif', np.full((1, 100, 100), np.nan, np.float32))
        with pytest.raises(ValueError, match=r'0% valid.*lower min_valid'):
            RandomChips(SceneDataset(tmp_path), 64, 1)

    @pytest.mark.parametrize('wrong', [{'size': 0}, {'length': 0}, {'dates': 0}])
    def test_wrong_numbers(self, tmp_path: Path, wrong: dict[str, int]) -> None:
        write(tmp_path / 'a.tif', noise(1, 100, 100))
        dataset = SceneDataset(tmp_path)
        with pytest.raises(ValueError, match='=0 must be at least 1: give a larger'):
            RandomChips(dataset, **({'size': 64, 'length': 1} | wrong))
        with pytest.raises(ValueError, match='a number from 0 to 1'):
            RandomChips(dataset, 64, 1, min_valid=75.0)


def blocks(chip: Chip) -> tuple[int, ...]:
    """Scene, and first and last blocks of 256 pixels that a chip touches."""
    edges = (chip.col, chip.col + chip.width - 1, chip.row, chip.row + chip.height - 1)
    return (*chip.scenes, *(edge // 256 for edge in edges))


class TestRegions:
    def test_batches_of_one_worker_share_blocks(self, tmp_path: Path) -> None:
        for name in 'ab':
            write(tmp_path / f'{name}.tif', noise(1, 700, 900))
        dataset = SceneDataset(tmp_path)
        sampler = RandomChips(
            dataset, 224, 256, seed=0, chips_per_region=4, batch_size=8, num_workers=2
        )
        chips = list(sampler)
        assert chips == list(sampler)
        # (turn, worker, place in the batch)
        drawn = np.empty((16, 2, 8), object)
        drawn.flat = chips
        for worker, place in np.ndindex(2, 8):
            region = drawn[:, worker, place]
            # Replaced in turn: not at the same batch in all places
            turn = worker * 8 + place
            for start in range(-turn % 4, 13, 4):
                same = region[start : start + 4]
                assert len({blocks(chip) for chip in same}) == 1
                assert len(set(same)) > 1
        # Each chip of a batch is drawn by itself
        assert (
            min(len({blocks(c) for c in batch}) for batch in drawn.reshape(-1, 8)) > 3
        )

    def test_one_chip_a_region_is_drawn_by_itself(self, tmp_path: Path) -> None:
        write(tmp_path / 'a.tif', noise(1, 700, 900))
        dataset = SceneDataset(tmp_path)
        alone = RandomChips(dataset, 64, 50, seed=0)
        batched = RandomChips(dataset, 64, 50, seed=0, batch_size=8, num_workers=3)
        assert list(alone) == list(batched)

    def test_as_even_as_by_themselves(self, tmp_path: Path) -> None:
        write(tmp_path / 'a.tif', noise(1, 512, 1000))
        dataset = SceneDataset(tmp_path)
        sampler = RandomChips(
            dataset, 224, 24000, seed=0, chips_per_region=3, batch_size=64
        )
        for places, last in zip(
            np.array([(c.col, c.row) for c in sampler]).T, (776, 288), strict=True
        ):
            assert places.min() == 0 and places.max() == last
            counts, _ = np.histogram(places, bins=8, range=(0, last + 1))
            assert abs(counts / 3000 - 1).max() < 0.1

    def test_valid_enough_at_all_dates(self, tmp_path: Path) -> None:
        origins = [(500000, 5000000), (500300, 4999800)]
        for year, origin in zip((2018, 2019), origins, strict=True):
            write(
                tmp_path / f'{year}.tif', with_corner(400, 150), origin=origin, nodata=0
            )
        dataset = SceneDataset(tmp_path)
        sampler = RandomChips(
            dataset, 64, 200, dates=2, min_valid=0.9, seed=0, chips_per_region=5
        )
        chips = list(sampler)
        assert len({(chip.col, chip.row) for chip in chips}) > 100
        assert {len(set(chip.scenes)) for chip in chips} == {2}
        valid = [dataset[chip]['valid'].float().mean((-1, -2)).min() for chip in chips]
        assert min(valid) > 0.85


class TestDates:
    def test_places_are_covered_by_all_dates(self, tmp_path: Path) -> None:
        origins = [(500000, 5000000), (500300, 4999800), (499997, 5000003)]
        for year, origin in zip((2018, 2019, 2020), origins, strict=True):
            array = with_corner(200, 60)
            write(tmp_path / f'{year}.tif', array, origin=origin, nodata=0)
        dataset = SceneDataset(tmp_path)
        for dates in (2, 3):
            sampler = RandomChips(dataset, 64, 100, dates=dates, min_valid=0.9, seed=0)
            firsts = Counter()
            for chip in sampler:
                assert len(set(chip.scenes)) == dates
                firsts[chip.scenes[0]] += 1
                valid = dataset[chip]['valid']
                assert valid.float().mean((-1, -2)).min() > 0.85
            assert set(firsts) == {0, 1, 2}

    def test_no_other_date(self, tmp_path: Path) -> None:
        write(tmp_path / '2019.tif', noise(1, 100, 100))
        write(tmp_path / '2020.tif', noise(1, 100, 100), origin=(500400, 5000000))
        dataset = SceneDataset(tmp_path)
        with pytest.raises(ValueError, match='covered by 2 dates; add scenes'):
            RandomChips(dataset, 64, 1, dates=2)
        write(tmp_path / '2021.tif', noise(1, 100, 100))
        with pytest.warns(UserWarning, match=r'2020.tif.*use dates=1'):
            sampler = RandomChips(SceneDataset(tmp_path), 64, 20, dates=2, seed=0)
        assert {c.scenes for c in sampler} == {(0, 2), (2, 0)}

    def test_one_date_twice_is_no_other_date(self, tmp_path: Path) -> None:
        for name in ('a_20200101', 'b_20200101'):
            write(tmp_path / f'{name}.tif', noise(1, 100, 100))
        with pytest.raises(ValueError, match='covered by 2 dates'):
            RandomChips(SceneDataset(tmp_path), 64, 1, dates=2)

    def test_undated(self, tmp_path: Path) -> None:
        for name in ('first', 'second'):
            write(tmp_path / f'{name}.tif', noise(1, 100, 100))
        with pytest.raises(ValueError, match='date_regex='):
            RandomChips(SceneDataset(tmp_path), 64, 1, dates=2)

    def test_never_valid_together(self, tmp_path: Path) -> None:
        array = noise(1, 100, 100)
        array[:, :, 64:] = 0
        write(tmp_path / '2019.tif', array, nodata=0)
        write(tmp_path / '2020.tif', array[:, :, ::-1], nodata=0)
        with pytest.raises(ValueError, match='lower min_valid, dates or the size'):
            RandomChips(SceneDataset(tmp_path), 32, 1, dates=2, min_valid=1.0)


class TestGridChips:
    def test_covers_without_overhang(self, tmp_path: Path) -> None:
        write(tmp_path / 'a.tif', noise(1, 150, 200))
        write(tmp_path / 'b.tif', noise(1, 64, 64))
        dataset = SceneDataset(tmp_path)
        sampler = GridChips(dataset, 64)
        seen = [np.zeros((s.height, s.width), int) for s in dataset.scenes]
        for chip in sampler:
            part = seen[chip.scenes[0]][
                chip.row : chip.row + 64, chip.col : chip.col + 64
            ]
            assert part.shape == (64, 64)
            part += 1
        assert all(count.min() == 1 for count in seen)
        assert len(sampler) == len(list(sampler)) == 3 * 4 + 1
        assert list(sampler)[-1] == Chip((1,), 0, 0, 64, 64)
        assert len(GridChips(dataset, 64, stride=32)) == 4 * 6 + 1

    def test_bad_input(self, tmp_path: Path) -> None:
        write(tmp_path / 'a.tif', noise(1, 64, 64))
        with pytest.raises(ValueError, match=r'64x64.*patch_size'):
            GridChips(SceneDataset(tmp_path), 65)
        with pytest.raises(ValueError, match='left out between'):
            GridChips(SceneDataset(tmp_path), 32, stride=33)
        write(tmp_path / 'b.tif', noise(1, 65, 65))
        with pytest.warns(UserWarning, match='a.tif'):
            assert len(GridChips(SceneDataset(tmp_path), 65)) == 1


def test_listed_chips_come_in_turn() -> None:
    chips = [Chip((0,), n, 0, 8, 8) for n in range(3)]
    sampler = ListedChips(chips, 7, seed=1)
    first = list(sampler)
    assert len(first) == len(sampler) == 7
    assert {c.col for c in first[:3]} == {c.col for c in first[3:6]} == {0, 1, 2}
    assert first == list(sampler)
    sampler.set_epoch(5)
    assert first != list(sampler)
