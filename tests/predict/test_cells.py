# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

from pathlib import Path

import pytest
import torch
from rasterfiles import write
from torch import Tensor

from cmid_geo.datasets import Chip, MaskDataset, SceneDataset
from cmid_geo.predict.cells import CellProbe, colours_of, commonest_class, probe_cells


def test_a_cell_has_the_class_of_most_of_its_labelled_pixels() -> None:
    mask = torch.full((64, 96), 255)
    mask[:32, :32] = 2
    mask[:32, 32:50] = 1  # 18 of 32 columns, the rest has no label
    mask[:32, 64:79] = 1  # 15 of them: fewer than half
    mask[32:, :20] = 0
    mask[32:, 20:32] = 3
    mask[32:, 32:64] = 7
    found = commonest_class(mask, 255)
    assert found.tolist() == [[2, 1, -1], [0, 7, -1]]
    assert commonest_class(torch.full((40, 70), 255), 255).tolist() == [[-1, -1]]


def test_scores_count_labelled_cells_and_classes_alike() -> None:
    truth = [torch.tensor([[0, 0, 0], [1, -1, 0]]), torch.tensor([[0]])]
    found = [torch.tensor([[0, 0, 1], [0, 0, 0]]), torch.tensor([[0]])]
    probe = CellProbe(truth, {'it': found})
    assert probe.accuracy('it') == pytest.approx(4 / 6)
    assert probe.balanced('it') == pytest.approx((4 / 5 + 0) / 2)


@pytest.fixture
def made(tmp_path: Path) -> tuple[SceneDataset, MaskDataset, list[Tensor]]:
    """Two scenes of different sizes, whose classes have a colour each."""
    truths = []
    for name, size in (('a', (128, 256)), ('b', (160, 320))):
        cells = torch.randint(0, 3, (size[0] // 32, size[1] // 32))
        mask = cells.repeat_interleave(32, 0).repeat_interleave(32, 1)
        image = 60 * mask + torch.randint(0, 9, size)
        write(
            tmp_path / 'images' / f'{name}.tif', image.expand(2, *size).byte().numpy()
        )
        write(tmp_path / 'masks' / f'{name}.tif', mask[None].byte().numpy())
        truths.append(cells)
    images = SceneDataset(tmp_path / 'images')
    masks = MaskDataset(tmp_path / 'masks', crs=images.crs, res=images.res)
    return images, masks, truths


def test_colours_tell_classes_that_have_colours(
    made: tuple[SceneDataset, MaskDataset, list[Tensor]],
) -> None:
    images, masks, truths = made
    noise = torch.Generator().manual_seed(0)
    kinds = {
        'colours': lambda n: colours_of(images, n),
        'noise': lambda n: torch.randn(5, *truths[n].shape, generator=noise),
        # A vector more than there are whole cells, as maps of features have
        'more': lambda n: torch.nn.functional.pad(colours_of(images, n), (0, 1, 0, 1)),
    }
    probe = probe_cells(kinds, images, masks)
    for right, truth in zip(probe.truth, truths, strict=True):
        assert torch.equal(right, truth[:, truth.shape[1] // 2 :])
    assert probe.accuracy('colours') == 1 == probe.balanced('colours')
    assert probe.accuracy('more') == 1
    assert probe.accuracy('noise') < 0.7


def test_colours_are_mean_and_spread(
    made: tuple[SceneDataset, MaskDataset, list[Tensor]],
) -> None:
    images, _, _ = made
    found = colours_of(images, 0)
    cell = images[_whole(images)]['image'][:, 32:64, :32]
    expected = torch.cat([cell.float().mean((1, 2)), cell.float().std((1, 2), False)])
    torch.testing.assert_close(found[:, 1, 0], expected)


def _whole(images: SceneDataset) -> Chip:
    grid = images.scenes[0].grid
    return Chip((0,), 0, 0, grid.width, grid.height)


def test_scenes_without_labels_are_refused(tmp_path: Path) -> None:
    image = torch.zeros(1, 64, 64).byte().numpy()
    write(tmp_path / 'images' / 'a.tif', image)
    write(tmp_path / 'masks' / 'a.tif', image + 255)
    images = SceneDataset(tmp_path / 'images')
    masks = MaskDataset(tmp_path / 'masks', crs=images.crs, res=images.res)
    with pytest.raises(ValueError, match='half of the scenes has no label'):
        probe_cells({}, images, masks)
