# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Probabilities in 8 bits, beside those in 32."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from lightning.pytorch import Trainer
from rasterfiles import noise, write
from torch import Tensor, nn

from cmid_geo import CMID, ChangeDetection, SemanticSegmentation
from cmid_geo.predict import map_scenes, predict_scene, write_class_polygons
from cmid_geo.predict.outputs import STEPS, product_of

#: Half of what one whole number stands for, and a rounding of float32.
HALF = 0.5 / STEPS + 1e-6


class Scores(nn.Module):
    """Scores that are the first bands, around 0."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def forward(self, image: Tensor) -> Tensor:
        image = image if image.ndim == 4 else image[:, 1] - image[:, 0] + 0.4
        return 12 * image[:, : self.count] - 5


def make(kind: str = 'multiclass', count: int = 3) -> SemanticSegmentation:
    given: dict[str, Any] = {
        'multiclass': {'num_classes': count},
        'binary': {'loss': 'bce'},
        'multilabel': {'num_labels': count, 'loss': 'bce'},
    }[kind]
    task = SemanticSegmentation('unet', 'test_resnet', task=kind, auxiliary_weight=0, **given)  # fmt: skip
    task.model = Scores(count)
    task.high.fill_(200)
    return task


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    data = noise(3, 600, 700)
    data[:, 20:140, 10:220] = 0
    return write(tmp_path / 'scene.tif', data, nodata=0)


def both(task: Any, scene: Any, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities as floats, and as what the whole numbers stand for, NaN for no data."""
    paths = [
        predict_scene(task, scene, folder / f'{dtype}.tif', size=128, output='both', dtype=dtype)
        for dtype in ('float32', 'uint8')
    ]  # fmt: skip
    classes, other = (path.read_bytes() for path in paths)
    with rasterio.open(paths[0]) as file, rasterio.open(paths[1]) as coarse:
        # Classes are decided before anything is rounded
        assert (file.read() == coarse.read()).all()
        assert len(classes) == pytest.approx(len(other), rel=0.01)
    with rasterio.open(folder / 'float32_probabilities.tif') as file:
        exact = file.read()
    with rasterio.open(folder / 'uint8_probabilities.tif') as file:
        assert set(file.dtypes) == {'uint8'} and file.nodata == 255
        assert file.scales == (0.004,) * file.count and set(file.offsets) == {0}
        found = file.read(masked=True)
        assert found.max() <= STEPS
        scaled = found * np.array(file.scales)[:, None, None]
    return exact, scaled.filled(math.nan)


@pytest.mark.parametrize(('kind', 'count'), [('multiclass', 3), ('binary', 1), ('multilabel', 2)])  # fmt: skip
def test_they_agree_to_half_a_step(
    tmp_path: Path, scene: Path, kind: str, count: int
) -> None:
    exact, found = both(make(kind, count), scene, tmp_path)
    assert found.shape == exact.shape == (count, 600, 700)
    # 0 and 1 are met, and what lies between is not all alike
    assert np.nanmin(found) == pytest.approx(np.nanmin(exact), abs=HALF)
    assert 0.1 < np.nanstd(exact) and np.isnan(exact).sum() == count * 120 * 210
    np.testing.assert_allclose(found, exact, atol=HALF, rtol=0)
    sizes = {
        dtype: (tmp_path / f'{dtype}_probabilities.tif').stat().st_size
        for dtype in ('float32', 'uint8')
    }
    assert sizes['uint8'] < 0.35 * sizes['float32']


def test_overviews_are_averages_and_bounds_are_met(tmp_path: Path) -> None:
    # Bright and dark pixels by turns: the nearest one would be either
    rows, cols = np.indices((1100, 1100))
    data = np.where((rows + cols) % 2, 200, 1).astype(np.uint8)[None].repeat(3, 0)
    scene = write(tmp_path / 'scene.tif', data)
    task = make('binary', 1)
    task.model = nn.Sequential(Scores(1), nn.Hardtanh(-5, 5))
    exact, found = both(task, scene, tmp_path)
    np.testing.assert_allclose(found, exact, atol=HALF, rtol=0)
    path = tmp_path / 'uint8_probabilities.tif'
    with rasterio.open(path) as file:
        assert file.overviews(1)
        coarse = file.read(1, out_shape=(550, 550)) * file.scales[0]
    assert coarse == pytest.approx(exact.mean(), abs=2 * HALF)


def test_change(tmp_path: Path, scene: Path) -> None:
    task = ChangeDetection('unet', 'test_resnet')
    task.model = Scores(1)
    task.high.fill_(200)
    second = write(tmp_path / 'second.tif', noise(3, 600, 700, 1))
    exact, found = both(task, (scene, second), tmp_path)
    assert np.nanstd(exact) > 0.1
    np.testing.assert_allclose(found, exact, atol=HALF, rtol=0)


def test_what_a_network_does_not_tell_is_no_data(tmp_path: Path, scene: Path) -> None:
    task = make('binary', 1)

    class Broken(Scores):
        def forward(self, image: Tensor) -> Tensor:
            found = super().forward(image)
            return found.where(found < 2, math.nan)

    task.model = Broken(1)
    exact, found = both(task, scene, tmp_path)
    assert np.isnan(exact).sum() > 120 * 210 + 100
    np.testing.assert_allclose(found, exact, atol=HALF, rtol=0)


def test_a_map_of_another_type_is_not_taken_for_finished(
    tmp_path: Path, scene: Path
) -> None:
    task = SemanticSegmentation('unet', 'test_resnet', num_classes=2, auxiliary_weight=0)  # fmt: skip
    task.high.fill_(200)
    trainer = Trainer(accelerator='cpu', logger=False, enable_checkpointing=False)
    trainer.strategy.connect(task)
    trainer.save_checkpoint(tmp_path / 'task.ckpt', weights_only=True)
    write(scene, noise(3, 64, 64))

    def run(**options: Any) -> Any:
        return map_scenes(
            str(tmp_path / 'task.ckpt'), [str(scene)], str(tmp_path / 'maps'), size=64,
            output='probabilities', **options,
        )  # fmt: skip

    assert len(run().made) == len(run().skipped) == len(run(dtype='float32').skipped) == 1  # fmt: skip
    (why,) = run(dtype='uint8').failed.values()
    assert 'was made otherwise (layers differ)' in why
    assert len(run(dtype='uint8', overwrite=True).made) == 1
    assert len(run(dtype='uint8').skipped) == 1
    assert 'layers differ' in str(run())
    with rasterio.open(tmp_path / 'maps/scene.tif') as file:
        assert file.dtypes == ('uint8',) * 2


def test_types_of_other_maps_are_refused(tmp_path: Path, scene: Path) -> None:
    task = make()
    with pytest.raises(ValueError, match=r"dtype='uint8' .*output='classes'.*leave it"):
        product_of(task, dtype='uint8')
    with pytest.raises(ValueError, match=r"dtype='int16' .*float32 or uint8"):
        product_of(task, 'probabilities', dtype='int16')
    cmid = CMID('resnet18', in_channels=3)
    with pytest.raises(ValueError, match="dtype='uint8' with CMID"):
        product_of(cmid, dtype='uint8')
    path = predict_scene(
        make('binary', 1), scene, tmp_path / 'map.tif', size=128, output='probabilities', dtype='uint8',
    )  # fmt: skip
    with pytest.raises(ValueError, match=r'steps of 0.004.*--output classes'):
        write_class_polygons(path)
