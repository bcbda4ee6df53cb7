# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Maps of each kind of task."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import shapely
import torch
from affine import Affine
from lightning.pytorch import Trainer
from rasterfiles import noise, write
from torch import Tensor, nn

from cmid_geo import (
    CMID,
    ChangeDetection,
    Classification,
    ObjectDetection,
    OrientedDetection,
    SemanticSegmentation,
    create_backbone,
)
from cmid_geo.models import export_backbone
from cmid_geo.predict import MapWriter, SceneMapper, SceneWindows, predict_scene
from cmid_geo.predict.checkpoint import Backbone, open_task
from cmid_geo.predict.job import plan_map

TINY: dict[str, Any] = {'backbone': 'test_resnet', 'in_channels': 3}


class Brightest(nn.Module):
    """Scores that are the bands themselves: the class is the brightest band."""

    def forward(self, image: Tensor) -> Tensor:
        return 20 * image


def brightest(**options: Any) -> SemanticSegmentation:
    given = {'num_classes': 3, 'labels': ['a', 'b', 'c'], 'auxiliary_weight': 0}
    task = SemanticSegmentation('unet', **TINY, **(given | options))
    task.model = Brightest()
    task.high.fill_(250)
    return task


def read(path: Path) -> np.ndarray:
    with rasterio.open(path) as file:
        return file.read()


def save(task: Any, path: Path) -> Path:
    trainer = Trainer(accelerator='cpu', logger=False, enable_checkpointing=False)
    trainer.strategy.connect(task)
    trainer.save_checkpoint(path, weights_only=True)
    return path


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    data = noise(3, 100, 150)
    data[:, 20:40, 10:20] = 0
    return write(tmp_path / 'scene.tif', data, nodata=0)


def test_segmentation(tmp_path: Path, scene: Path) -> None:
    out = predict_scene(
        brightest(), scene, tmp_path / 'map.tif', size=64, output='both',
        colors=['red', '#00ff00', 'blue'],
    )  # fmt: skip
    data, valid = read(scene), read(scene).any(0)
    found = read(out)[0]
    assert (found[valid] == data.argmax(0)[valid]).all() and (
        found[~valid] == 255
    ).all()
    with rasterio.open(out) as file:
        assert file.dtypes == ('uint8',) and file.nodata == 255
        table = file.colormap(1)
        assert table[0] == (255, 0, 0, 255) and table[1] == (0, 255, 0, 255)
        assert table[255][3] == 0
        assert file.tags(1) == {'class_0': 'a', 'class_1': 'b', 'class_2': 'c'}
    shares = torch.tensor(20.0 * data / 250).softmax(0).numpy()
    with rasterio.open(tmp_path / 'map_probabilities.tif') as file:
        assert file.descriptions == ('a', 'b', 'c') and np.isnan(file.nodata)
        assert file.dtypes == ('float32',) * 3
        probabilities = file.read()
    np.testing.assert_allclose(probabilities[:, valid], shares[:, valid], atol=1e-5)
    assert np.isnan(probabilities[:, ~valid]).all()


def test_gdal_reads_the_names_of_classes(tmp_path: Path, scene: Path) -> None:
    from rasterio import shutil

    task = brightest(labels=['a & b', '<water>', 'c'])
    out = predict_scene(task, scene, tmp_path / 'map.tif', size=64)
    shutil.copy(out, tmp_path / 'names.vrt', driver='VRT')
    text = (tmp_path / 'names.vrt').read_text()
    assert '<Category>a &amp; b</Category>' in text
    assert '<Category>&lt;water&gt;</Category>' in text


def test_probabilities_alone(tmp_path: Path, scene: Path) -> None:
    task = brightest()
    out = predict_scene(
        task, scene, tmp_path / 'map.tif', size=64, output='probabilities'
    )
    assert read(out).shape == (3, 100, 150)
    # Nor names of classes that an earlier map left
    predict_scene(task, scene, out, size=64)
    assert (tmp_path / 'map.tif.aux.xml').exists()
    predict_scene(task, scene, out, size=64, output='probabilities')
    assert {path.name for path in tmp_path.iterdir()} == {'scene.tif', 'map.tif'}


@pytest.mark.parametrize('threshold', [0.5, 0.9])
def test_binary_and_several_labels(
    tmp_path: Path, scene: Path, threshold: float
) -> None:
    data, valid = read(scene), read(scene).any(0)
    shares = torch.tensor(20.0 * data / 250 - 8).sigmoid().numpy()

    class Scores(nn.Module):
        def __init__(self, count: int) -> None:
            super().__init__()
            self.count = count

        def forward(self, image: Tensor) -> Tensor:
            return 20 * image[:, : self.count] - 8

    for kind, count in (('binary', 1), ('multilabel', 3)):
        task = SemanticSegmentation(
            'unet', **TINY, task=kind, loss='bce', auxiliary_weight=0,
            num_labels=3 if count == 3 else None,
        )  # fmt: skip
        task.model = Scores(count)
        task.high.fill_(250)
        names = ['one', 'two', 'three'][:count]
        out = predict_scene(
            task,
            scene,
            tmp_path / 'map.tif',
            size=64,
            threshold=threshold,
            labels=names,
        )
        found = read(out)
        assert len(found) == count
        with rasterio.open(out) as file:
            if count == 3:
                assert file.descriptions == ('one', 'two', 'three')
            else:
                assert file.tags(1) == {'class_0': 'no', 'class_1': 'one'}
        expected = shares[:count] >= threshold
        assert (found[:, valid] == expected[:, valid]).mean() > 0.999
        assert 0 < expected[:, valid].mean() < 1 and (found[:, ~valid] == 255).all()


def test_many_classes_need_two_bytes(tmp_path: Path, scene: Path) -> None:
    class Last(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            scores = torch.zeros(len(image), 300, *image.shape[2:])
            scores[:, 299] = 5
            return scores

    task = brightest(num_classes=300, labels=None)
    task.model = Last()
    with rasterio.open(
        predict_scene(task, scene, tmp_path / 'map.tif', size=32)
    ) as file:
        assert file.dtypes == ('uint16',) and file.nodata == 65535
        assert set(np.unique(file.read())) == {299, 65535}


def test_a_real_network_from_its_checkpoint(tmp_path: Path, scene: Path) -> None:
    torch.manual_seed(0)
    task = SemanticSegmentation('unet', **TINY, num_classes=4, auxiliary_weight=0)
    task.high.fill_(255)
    task.eval()
    path = save(task, tmp_path / 'task.ckpt')
    for number, source in enumerate((task, path, str(path))):
        predict_scene(source, scene, tmp_path / f'{number}.tif', size=64)
    maps = [read(tmp_path / f'{number}.tif') for number in range(3)]
    assert (maps[0] == maps[1]).all() and (maps[0] == maps[2]).all()
    # In its middle a window of the scene's own size is what the task itself says of it
    whole = predict_scene(task, scene, tmp_path / 'whole.tif', size=160, overlap=0)
    image = torch.from_numpy(read(scene)[None] / 255).float()
    padded = nn.functional.pad(image, (5, 5, 30, 30), mode='reflect')
    with torch.no_grad():
        direct = task(padded).argmax(1)[0, 30:130, 5:155].numpy()
    valid = read(scene).any(0)
    assert (read(whole)[0][valid] == direct[valid]).mean() > 0.999


def test_change_on_one_grid(tmp_path: Path) -> None:
    """The second date lies a third of a pixel beside the first, on pixels of its own."""
    rows, cols = np.mgrid[:120, :140] + 0.5
    first = (100 + 50 * np.sin(cols / 5) * np.cos(rows / 7)).astype('float32')
    moved = 100 + 50 * np.sin((cols + 1 / 3) / 5) * np.cos((rows - 1 / 3) / 7)
    before = write(tmp_path / 'before.tif', first[None], origin=(500_000, 5_000_000))
    third = 10 / 3
    after = write(
        tmp_path / 'after.tif',
        moved[None].astype('float32'),
        origin=(500_000 + third, 5_000_000 + third),
    )

    class Difference(nn.Module):
        def forward(self, pair: Tensor) -> Tensor:
            # 1.5 of 200 is what counts as a change
            return 1e4 * ((pair[:, 1] - pair[:, 0]).abs() - 1.5 / 200)

    task = ChangeDetection('unet', backbone='test_resnet', in_channels=1)
    task.model, task.high = Difference(), torch.tensor([200.0])
    out = predict_scene(task, (before, after), tmp_path / 'map.tif', size=64)
    found = read(out)[0]
    with rasterio.open(out) as one, rasterio.open(before) as other:
        assert one.bounds == other.bounds and one.transform == other.transform
        assert one.tags(1) == {'class_0': 'no change', 'class_1': 'change'}
    assert (found[:-1, 1:] == 0).all() and (found != 255).all()
    # Without the shift there would be much change: the test can fail
    assert (abs(moved - first) > 1.5).mean() > 0.5
    changed = moved.copy()
    changed[40:50, 60:80] += 90
    write(
        after,
        changed[None].astype('float32'),
        origin=(500_000 + third, 5_000_000 + third),
    )
    again = read(predict_scene(task, (before, after), out, size=64))[0]
    assert (again[41:49, 62:79] == 1).all() and (again[:-1, 1:] == 1).sum() < 300


@pytest.mark.parametrize('after_crs', ['EPSG:4326', 'EPSG:32632'])
def test_change_between_reference_systems(tmp_path: Path, after_crs: str) -> None:
    from rasterio.warp import calculate_default_transform, reproject

    rows, cols = np.mgrid[:120, :140] + 0.5
    data = (100 + 50 * np.sin(cols / 9) * np.cos(rows / 11)).astype('float32')[None]
    before = write(tmp_path / 'before.tif', data)
    transform, width, height = calculate_default_transform(
        'EPSG:32633', after_crs, 140, 120, *rasterio.open(before).bounds
    )
    warped = np.full((1, height, width), np.nan, 'float32')
    with rasterio.open(before) as file:
        reproject(
            data, warped, src_transform=file.transform, src_crs=file.crs,
            dst_transform=transform, dst_crs=after_crs, resampling=rasterio.enums.Resampling.cubic,
        )  # fmt: skip
    after = write(tmp_path / 'after.tif', warped, crs=after_crs, transform=transform)

    class Second(nn.Module):
        def forward(self, pair: Tensor) -> Tensor:
            return (pair[:, 1] - pair[:, 0]) * 100

    task = ChangeDetection('unet', backbone='test_resnet', in_channels=1)
    task.model, task.high = Second(), torch.tensor([100.0])
    task.low = torch.tensor([-100.0])
    out = predict_scene(
        task, (before, after), tmp_path / 'map.tif', size=64, output='probabilities'
    )
    found = read(out)[0]
    inner = found[8:-8, 8:-8]
    # A sigmoid of half the difference: 0.5 is none, 0.73 is 2
    assert abs(inner - 0.5).max() < 0.2 and not np.isnan(inner).any()


def test_cells(tmp_path: Path, scene: Path) -> None:
    backbone = create_backbone('resnet18', 3).eval()
    out = predict_scene(
        backbone, scene, tmp_path / 'map.tif', size=192, overlap=0, low=0, high=255
    )
    with rasterio.open(out) as file, rasterio.open(scene) as other:
        assert file.dtypes[0] == 'float16' and np.isnan(file.nodata)
        assert file.shape == (4, 5) and file.count == backbone.num_features
        t, o = file.transform, other.transform
        assert (t.a, t.e, t.c, t.f) == (32 * o.a, 32 * o.e, o.c, o.f)
        found = file.read()
    # One window around the scene, mirrored at its edges: four cells down, five across
    data = torch.from_numpy(read(scene) / 255)[None].float()
    padded = nn.functional.pad(data, (0, 10, 0, 28), mode='reflect')
    padded = nn.functional.pad(padded, (0, 48, 32, 48), mode='reflect')
    assert np.isfinite(found).all()
    with torch.no_grad():
        # A ResNet sees the upper left of a cell: it is shown what is half a cell further
        direct = backbone(padded[..., 16:, 16:])[0, :, 1:5, :5].numpy()
    inner = slice(1, 3), slice(0, 3)
    np.testing.assert_allclose(found[:, *inner], direct[:, *inner], atol=0.05)


@pytest.mark.parametrize('name', ['resnet18', 'convnext_atto'])
@pytest.mark.parametrize('tta', ['none', 'all'])
def test_a_bright_dot_is_on_the_map_where_it_is(
    tmp_path: Path, name: str, tta: str
) -> None:
    """Over many places a dot's trace in the vectors is centred on the dot."""
    torch.manual_seed(0)
    backbone = create_backbone(name, 1).eval()
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            # timm closes the residual branches at first
            nn.init.ones_(module.weight)

    def vectors(data: np.ndarray) -> np.ndarray:
        scene = write(tmp_path / 'scene.tif', data)
        out = predict_scene(
            backbone, scene, tmp_path / 'map.tif', size=384, low=0, high=255, tta=tta
        )
        return read(out).astype('float64')

    plain = noise(1, 300, 320)
    before, errors = vectors(plain), []
    dots = ((143, 175), (150, 160), (135, 166), (159, 190), (128, 152))
    # A mean over all eight turns and flips is steadier
    for row, col in dots if tta == 'none' else dots[:3]:
        dotted = plain.copy()
        dotted[:, row - 2 : row + 3, col - 2 : col + 3] += 128
        trace = np.square(vectors(dotted) - before).sum(0)
        places = np.arange(10) * 32 + 15.5
        trace /= trace.sum()
        errors.append((trace.sum(1) @ places - row, trace.sum(0) @ places - col))
    assert abs(np.mean(errors, axis=0)).max() < 5


def test_gaps_stay_where_they_are(tmp_path: Path) -> None:
    """A cell has a vector where it holds data, wherever its backbone looks."""
    data = noise(3, 160, 192)
    data[:, :64, :96] = 0
    data[:, 128:, 160:] = 0
    scene = write(tmp_path / 'scene.tif', data, nodata=0)
    for name in ('resnet18', 'convnext_atto'):
        out = predict_scene(
            create_backbone(name, 3).eval(), scene, tmp_path / 'map.tif', size=128,
            overlap=32, low=0, high=255,
        )  # fmt: skip
        gaps = np.isnan(read(out)).all(0)
        assert gaps[:2, :3].all() and gaps[4:, 5:].all() and gaps.sum() == 7


def test_components(tmp_path: Path) -> None:
    rows, cols = np.mgrid[:256, :320].astype('float32')
    data = np.stack([rows, cols, 0 * rows + 7])
    data[:, :64, :64] = np.nan
    scene = write(tmp_path / 'scene.tif', data)

    class Means(CMID):
        def forward(self, image: Tensor) -> Tensor:
            return nn.functional.avg_pool2d(image * 1000, 32)

    from chips import SMALL

    task = Means(**(SMALL | {'output_dim': 4}))
    task.high.fill_(1000)
    task.student.backbone.num_features = 3
    task.student.backbone.field_offset = 0.0
    vectors = predict_scene(
        task, scene, tmp_path / 'vectors.tif', size=128, overlap=32, tta='all'
    )
    out = predict_scene(
        task, scene, tmp_path / 'map.tif', size=128, overlap=32, components=2
    )
    with rasterio.open(out) as file:
        assert file.descriptions == ('component 1', 'component 2')
        assert file.dtypes == ('float32',) * 2
        found = file.read()
    means = read(vectors)
    assert np.isnan(found[:, :2, :2]).all() and np.isnan(found).sum() == 8
    assert abs(means[0, 4, :] - (4 * 32 + 15.5)).max() < 0.3
    # More columns than rows: x is the first component, y the second, rising
    known = np.isfinite(means[0])
    flat = means[:, known].astype(float)
    centred = flat - flat.mean(1, keepdims=True)
    _, axes = np.linalg.eigh(centred @ centred.T)
    for number in range(2):
        expected = axes[:, -1 - number] @ centred
        sign = np.sign(axes[abs(axes[:, -1 - number]).argmax(), -1 - number])
        np.testing.assert_allclose(found[number][known], sign * expected, atol=0.5)
    with pytest.raises(ValueError, match='components=4 of vectors of 3'):
        predict_scene(task, scene, tmp_path / 'no.tif', size=128, components=4)


class Mixed(CMID):
    """512 mixtures of a cell's mean colour: more than a block of 64 cells a side can hold."""

    def forward(self, image: Tensor) -> Tensor:
        rows = torch.linspace(-1, 1, 512)
        mixture = torch.stack([rows, rows**2, rows.sin()], 1)[:, :, None, None]
        return nn.functional.conv2d(nn.functional.avg_pool2d(image, 32), mixture)


@pytest.mark.parametrize('cells', [(66, 65), (70, 2), (2, 520)])
def test_embeddings_of_more_than_a_block(
    tmp_path: Path, cells: tuple[int, int]
) -> None:
    from chips import SMALL

    rows, cols = np.mgrid[: cells[0], : cells[1]]
    means = np.stack([rows * 2, cols / 3, (rows * cols) % 50]).astype('float32')
    means[:, 1, 1] = np.nan
    scene = write(tmp_path / 'scene.tif', means.repeat(32, 1).repeat(32, 2))
    task = Mixed(**SMALL)
    task.high.fill_(200)
    task.student.backbone.num_features = 512
    task.student.backbone.field_offset = 0.0
    found = {}
    for name, components in (('vectors', None), ('components', 3)):
        out = predict_scene(
            task, scene, tmp_path / f'{name}.tif', size=512, overlap=0, components=components,
        )  # fmt: skip
        with rasterio.open(out) as file:
            assert file.tags(ns='IMAGE_STRUCTURE')['LAYOUT'] == 'COG'
            assert file.shape == cells and file.res == (320, 320)
            # GDAL makes none of float16; blocks of three float32 hold 512 cells a side
            more = components and max(cells) > 512
            assert file.overviews(1) == ([2] if more else [])
            assert file.dtypes[0] == ('float32' if components else 'float16')
            found[name] = file.read()
    scaled = torch.from_numpy(means)[None] / 200
    exact = Mixed.forward(
        task, scaled.repeat_interleave(32, 2).repeat_interleave(32, 3)
    )
    np.testing.assert_allclose(found['vectors'], exact[0].numpy(), atol=2e-3)
    known = np.isfinite(means[0])
    flat = found['vectors'][:, known].astype(float)
    left, spread, right = np.linalg.svd(flat - flat.mean(1, keepdims=True), False)
    for number in range(3):
        sign = np.sign(left[abs(left[:, number]).argmax(), number])
        expected = sign * spread[number] * right[number]
        np.testing.assert_allclose(
            found['components'][number][known], expected, atol=1e-4
        )
    assert np.isnan(found['components'][:, ~known]).all()


@pytest.mark.parametrize('shape', [(2112, 40), (40, 2112)])
def test_command_maps_long_scenes_with_a_backbone(
    tmp_path: Path, shape: tuple[int, int], make_task: Callable[..., Any]
) -> None:
    from cmid_geo.__main__ import main

    task = make_task()
    export_backbone(task, tmp_path / 'b.ckpt')
    write(tmp_path / 'scene.tif', noise(3, *shape))
    words = ['map', str(tmp_path / 'b.ckpt'), str(tmp_path / 'scene.tif'), '--size=64']
    main([*words, f'--out={tmp_path / "maps"}', '--low=0', '--high=255'])
    with rasterio.open(tmp_path / 'maps/scene.tif') as file:
        assert file.shape == tuple(-(-side // 32) for side in shape)
        assert file.count == task.student.backbone.num_features
        assert np.isfinite(file.read()).all()


def test_exported_backbone_and_its_bands(
    tmp_path: Path, make_task: Callable[..., Any]
) -> None:
    task = make_task(in_channels=2)
    task.low.fill_(10)
    task.high.copy_(torch.tensor([100.0, 200.0]))
    task.hparams['bands'] = ['red', 'nir']
    export_backbone(save(task, tmp_path / 'c.ckpt'), tmp_path / 'b.ckpt')
    opened = open_task(tmp_path / 'b.ckpt')
    assert isinstance(opened, Backbone) and not opened.training
    assert opened.high.tolist() == [100, 200]
    assert isinstance(open_task(tmp_path / 'c.ckpt'), CMID)
    data = noise(3, 70, 70)
    scene = write(tmp_path / 'scene.tif', data, descriptions=('nir', 'blue', 'red'))
    # By name, in the order of training
    named = predict_scene(opened, scene, tmp_path / 'named.tif', size=64, overlap=0)
    for source in (tmp_path / 'c.ckpt', tmp_path / 'b.ckpt'):
        placed = predict_scene(
            source, scene, tmp_path / 'placed.tif', size=64, overlap=0, bands=[3, 1]
        )
        np.testing.assert_array_equal(read(named), read(placed))
    with pytest.raises(ValueError, match='has 3 bands .* but Backbone takes 2'):
        predict_scene(opened, scene, tmp_path / 'x.tif', size=64, bands=[1, 2, 3])


@pytest.mark.parametrize('ending', ['.ckpt', '.safetensors'])
def test_positions_of_bands_travel_with_an_export(
    tmp_path: Path, make_task: Callable[..., Any], ending: str
) -> None:
    task = make_task(in_channels=2)
    task.high.fill_(200)
    # Of training on files that do not name their bands
    task.hparams['bands'] = [3, 1]
    file = export_backbone(task, tmp_path / f'b{ending}')
    scene = write(tmp_path / 'scene.tif', noise(3, 70, 70))
    with pytest.warns(UserWarning, match=r'positions \[3, 1\] are taken'):
        found = predict_scene(file, scene, tmp_path / 'found.tif', size=64)
    told = predict_scene(file, scene, tmp_path / 'told.tif', size=64, bands=[3, 1])
    np.testing.assert_array_equal(read(found), read(told))


class Sum(nn.Module):
    """Scores by which a map tells the order of its bands: 0.9 of the first, 0.1 of the second."""

    def forward(self, image: Tensor) -> Tensor:
        first, second = image[..., :1, :, :], image[..., 1:2, :, :]
        scores = 9 * first + second
        return scores if image.ndim == 4 else scores[:, 1] - scores[:, 0]


def ordered(bands: list[str] | list[int] | None, change: bool = False) -> Any:
    given = {'backbone': 'test_resnet', 'in_channels': 2, 'bands': bands}
    kind = ChangeDetection if change else SemanticSegmentation
    task = kind(
        'unet', **given, **({} if change else {'task': 'binary', 'loss': 'bce'})
    )
    task.model = Sum()
    task.high.fill_(255)
    return task


def values(path: Path, task: Any, scene: Any, **options: Any) -> np.ndarray:
    return read(
        predict_scene(task, scene, path, size=64, output='probabilities', **options)
    )


@pytest.mark.parametrize(
    ('known', 'names', 'places'),
    [
        (['B04', 'B02'], ('B02', 'B03', 'B04'), [3, 1]),
        (['red', 'blue'], ('B02', 'B03', 'B04'), [3, 1]),
        (['B08', 'B03'], ('R', 'G', 'B', 'NIR'), [4, 2]),
        (['R', 'G'], ('Red', 'Green'), [1, 2]),
    ],
)
def test_maps_choose_bands_by_the_names_learned(
    tmp_path: Path, known: list[str], names: tuple[str, ...], places: list[int]
) -> None:
    out = tmp_path / 'map.tif'
    data = noise(len(names), 70, 70)
    scene = write(tmp_path / 'scene.tif', data, descriptions=names)
    task = ordered(known)
    found = values(out, task, scene)
    np.testing.assert_array_equal(found, values(out, task, scene, bands=places))
    others = values(out, task, scene, bands=places[::-1])
    assert abs(found - others).max() > 0.1


def test_each_date_is_read_by_its_own_names(tmp_path: Path) -> None:
    data = noise(3, 70, 70)
    before = write(tmp_path / 'a.tif', data, descriptions=('B02', 'B03', 'B04'))
    after = write(tmp_path / 'b.tif', data[[2, 0]], descriptions=('red', 'blue'))
    out = tmp_path / 'map.tif'
    found = values(out, ordered(['B04', 'B02'], change=True), (before, after))
    # The same ground at both dates: no change at all
    np.testing.assert_allclose(found, 0.5, atol=1e-6)


def test_bands_that_a_scene_has_not(tmp_path: Path) -> None:
    scene = write(tmp_path / 's.tif', noise(2, 70, 70), descriptions=('red', 'swir16'))
    with pytest.raises(ValueError, match=r"of which \['B08'\] are not there: .*bands="):
        predict_scene(ordered(['B04', 'B08']), scene, tmp_path / 'map.tif', size=64)
    predict_scene(
        ordered(['B04', 'B08']), scene, tmp_path / 'map.tif', size=64, bands=[1, 2]
    )


@pytest.mark.parametrize('names', [(), ('Band 1', 'Band_2', '3'), ('a', 'a', 'b')])
def test_scenes_that_do_not_name_their_bands(
    tmp_path: Path, names: tuple[str, ...]
) -> None:
    out, data = tmp_path / 'map.tif', noise(3, 70, 70)
    scene = write(tmp_path / 'scene.tif', data, descriptions=names)
    two = write(tmp_path / 'two.tif', data[:2], descriptions=names[:2])
    named = write(tmp_path / 'named.tif', data, descriptions=('B', 'G', 'R'))
    # B2 is the second band here, and no Sentinel-2's
    with pytest.warns(UserWarning, match='does not name its bands: they are taken in'):
        found = values(out, ordered(['B2', 'B1']), two)
    np.testing.assert_array_equal(found, values(out, ordered(None), two, bands=[1, 2]))
    # Positions are those of training
    for file in (scene, named):
        with pytest.warns(UserWarning, match=r'positions \[3, 1\] are taken'):
            found = values(out, ordered([3, 1]), file)
        np.testing.assert_array_equal(
            found, values(out, ordered(None), file, bands=[3, 1])
        )
    with pytest.raises(ValueError, match='has no band 3'):
        predict_scene(ordered([3, 1]), two, out, size=64)


def test_a_change_detector_maps_what_it_learned(tmp_path: Path) -> None:
    """Trained on bands in an order of its own, it finds them in the same files."""
    from cmid_geo import ChangeDataModule

    root, names = tmp_path / 'places', ('B02', 'B03', 'B04', 'B08')
    for date, seed in (('20200101', 0), ('20210101', 1)):
        write(root / 'ayr' / f'{date}.tif', noise(4, 70, 70, seed), descriptions=names)
    mask = np.zeros((1, 70, 70), 'uint8')
    mask[:, 10:30, 10:30] = 1
    write(root / 'ayr' / 'change.tif', mask)
    order: list[int | str] = ['B04', 'B03', 'B02', 'B08']
    data = ChangeDataModule(
        str(root), bands=order, patch_size=32, length=4, batch_size=2
    )
    task = ChangeDetection(backbone='test_resnet', in_channels=4)
    trainer = Trainer(
        accelerator='cpu', max_steps=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(task, data)
    trainer.save_checkpoint(tmp_path / 'task.ckpt', weights_only=True)
    pair = tuple(root / 'ayr' / f'{date}.tif' for date in ('20200101', '20210101'))
    out, checkpoint = tmp_path / 'map.tif', tmp_path / 'task.ckpt'
    found = values(out, checkpoint, pair)
    np.testing.assert_array_equal(found, values(out, checkpoint, pair, bands=order))
    assert abs(found - values(out, checkpoint, pair, bands=[1, 2, 3, 4])).max() > 1e-4


class Spots(nn.Module):
    """A detector whose boxes are bright rectangles, one for each patch of one value."""

    def __init__(self, rotated: bool) -> None:
        super().__init__()
        self.rotated = rotated

    def forward(self, images: Tensor, targets: None = None) -> list[dict[str, Tensor]]:
        return [self.find(image[0] * 255) for image in images]

    def find(self, image: Tensor) -> dict[str, Tensor]:
        boxes, labels = [], []
        for value in image.round().unique().tolist():
            if value > 0:
                rows, cols = (image.round() == value).nonzero().unbind(1)
                x0, y0, x1, y1 = cols.min(), rows.min(), cols.max() + 1, rows.max() + 1
                box = [x0, y0, x1, y1]
                if self.rotated:
                    box = [(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0, 0.0]
                boxes.append([float(each) for each in box])
                labels.append(1 + int(value) % 2)
        width = 5 if self.rotated else 4
        found = torch.tensor(boxes).view(-1, width)
        scores = torch.full((len(found),), 0.9)
        return {'boxes': found, 'labels': torch.tensor(labels).long(), 'scores': scores}


@pytest.mark.parametrize('ending', ['.gpkg', '.geojson'])
@pytest.mark.parametrize('rotated', [False, True])
@pytest.mark.parametrize('tta', ['none', 'all'])
def test_objects(tmp_path: Path, ending: str, rotated: bool, tta: Any) -> None:
    data = np.zeros((3, 200, 230), 'uint8')
    places = [(5, 5, 20, 12), (50, 55, 24, 30), (100, 150, 10, 28), (180, 200, 20, 30)]
    for value, (row, col, height, width) in enumerate(places, 10):
        data[:, row : row + height, col : col + width] = value
    transform = Affine(0.5, 0.0, 500_000.25, 0.0, -0.5, 4_500_000.75)
    scene = write(tmp_path / 'scene.tif', data, transform=transform)
    kind = OrientedDetection if rotated else ObjectDetection
    names = {} if rotated else {'labels': ['background', 'even', 'odd']}
    task = kind(**TINY, num_classes=3, **names)
    task.model = Spots(rotated)
    task.high.fill_(255)
    out = predict_scene(
        task, scene, tmp_path / f'map{ending}', size=96, overlap=40, tta=tta
    )
    table = gpd.read_file(out).to_crs('EPSG:32633')
    assert len(table) == 4 and set(table.columns) >= {'class', 'score', 'geometry'}
    for value, (row, col, height, width) in enumerate(places, 10):
        box = shapely.box(
            500_000.25 + col / 2, 4_500_000.75 - (row + height) / 2,
            500_000.25 + (col + width) / 2, 4_500_000.75 - row / 2,
        )  # fmt: skip
        near = table[table.intersects(box.buffer(-0.1))]
        assert len(near) == 1
        geometry = near.geometry.iloc[0]
        assert geometry.symmetric_difference(box).area < 1e-3 * box.area
        expected = '12'[value % 2] if rotated else ('even', 'odd')[value % 2]
        assert near['class'].iloc[0] == expected
    assert {path.name for path in tmp_path.iterdir()} == {'scene.tif', out.name}


@pytest.mark.parametrize(
    ('kind', 'options', 'nms_thresh'),
    [
        (ObjectDetection, {'model': 'faster-rcnn', 'nms_thresh': 0.2}, 0.2),
        (ObjectDetection, {'model': 'retinanet', 'nms_thresh': 0.7}, 0.7),
        (ObjectDetection, {'model': 'fcos', 'nms_thresh': 2.0}, 1.0),
        (ObjectDetection, {'model': 'faster-rcnn'}, 0.5),
        # torchvision's own default
        (ObjectDetection, {'model': 'fcos'}, 0.6),
        (OrientedDetection, {}, 0.1),
        (OrientedDetection, {'nms_thresh': 0.7}, 0.7),
    ],
)
def test_windows_are_merged_by_the_overlap_of_the_task(
    tmp_path: Path, kind: Any, options: dict[str, Any], nms_thresh: float
) -> None:
    task = kind(**TINY, num_classes=3, fpn_channels=64, **options)
    task.high.fill_(255)
    task.model.forward = Spots(kind is OrientedDetection).forward
    mapper, found = SceneMapper(task), {}
    for percent in (5, 15, 25, 45, 55, 65, 75):
        # Two corners span each box; moved apart they share so many of 100 columns
        width, both = 100, round(200 * percent / (100 + percent))
        data = np.zeros((3, 160, 200), 'uint8')
        for value, row, col in ((11, 10, 0), (13, 11, width - both)):
            data[:, row, col] = data[:, row + 99, col + width - 1] = value
        scene = write(tmp_path / 'scene.tif', data)
        out = predict_scene(task, scene, tmp_path / 'map.gpkg', size=256)
        found[percent] = len(gpd.read_file(out))
    assert found == {
        percent: 1 if percent > 100 * nms_thresh else 2 for percent in found
    }
    # Another overlap is another map
    assert mapper.notes()['nms_thresh'] == nms_thresh


def test_objects_on_no_data_and_below_the_threshold(tmp_path: Path) -> None:
    data = np.zeros((3, 100, 100), 'uint8')
    data[:, 20:30, 20:30] = 11
    mask = np.full((100, 100), 255, 'uint8')
    task = ObjectDetection(**TINY, num_classes=3)
    task.model = Spots(False)
    task.high.fill_(255)
    out, scene = tmp_path / 'map.gpkg', tmp_path / 'scene.tif'
    found = {}
    for name, threshold in (('all', 0.5), ('few', 0.95)):
        write(scene, data, mask=mask)
        found[name] = len(
            gpd.read_file(predict_scene(task, scene, out, size=64, threshold=threshold))
        )
    mask[15:35, 15:35] = 0
    write(scene, data, mask=mask)
    found['hidden'] = len(gpd.read_file(predict_scene(task, scene, out, size=64)))
    assert found == {'all': 1, 'few': 0, 'hidden': 0}


def test_what_cannot_be_mapped(tmp_path: Path, scene: Path) -> None:
    out = tmp_path / 'map.tif'
    with pytest.raises(ValueError, match='Classification says nothing of single'):
        predict_scene(Classification('test_resnet', num_classes=2), scene, out)
    with pytest.raises(ValueError, match='low= and high=, such as 0 and 255'):
        predict_scene(
            SemanticSegmentation('unet', **TINY, num_classes=2), scene, out, size=64
        )
    with pytest.raises(ValueError, match=r'compares 2 dates: give \(before, after\)'):
        predict_scene(ChangeDetection('unet', **TINY), scene, out)
    far = write(tmp_path / 'far.tif', noise(3, 50, 50), origin=(600_000, 5_000_000))
    with pytest.raises(ValueError, match='shows none of the ground of'):
        predict_scene(ChangeDetection('unet', **TINY), (scene, far), out)
    with pytest.raises(ValueError, match='has 2 entries for 3 classes'):
        predict_scene(brightest(), scene, out, labels=['a', 'b'])
    with pytest.raises(ValueError, match="give names such as 'tab:blue'"):
        predict_scene(brightest(), scene, out, colors=['a', 'b', 'c'])
    with pytest.raises(ValueError, match='ObjectDetection gives .gpkg or .geojson'):
        task = ObjectDetection(**TINY, num_classes=2)
        predict_scene(task, scene, out, low=0, high=255)
    with pytest.raises(ValueError, match='size=48: .* a multiple of 32'):
        predict_scene(
            create_backbone('resnet18', 3), scene, out, size=48, low=0, high=255
        )
    with pytest.raises(ValueError, match='size=100: .* give a multiple of 32'):
        predict_scene(brightest(), scene, out, size=100)
    with pytest.raises(FileNotFoundError, match='is no file'):
        predict_scene(tmp_path / 'none.ckpt', scene, out)
    assert not out.exists()


def test_values_that_nobody_explained(tmp_path: Path) -> None:
    scene = write(tmp_path / 'scene.tif', noise(3, 50, 50).astype('uint16'))
    state = {'hyper_parameters': {'model': 'resnet18', 'in_channels': 3},
             'state_dict': create_backbone('resnet18', 3).network.state_dict()}  # fmt: skip
    torch.save(state, tmp_path / 'b.ckpt')
    with pytest.raises(ValueError, match='does not tell which raw'):
        predict_scene(tmp_path / 'b.ckpt', scene, tmp_path / 'map.tif', size=64)
    # What bytes mean does not pass on to the next scene
    mapper = SceneMapper(tmp_path / 'b.ckpt')
    small = write(tmp_path / 'small.tif', noise(3, 50, 50))
    plan_map(mapper, small, tmp_path / 'map.tif', size=64)
    with pytest.raises(ValueError, match='does not tell which raw'):
        plan_map(mapper, scene, tmp_path / 'map.tif', size=64)
    with pytest.raises(ValueError, match='of 3 bands: give one value a band'):
        predict_scene(
            tmp_path / 'b.ckpt',
            scene,
            tmp_path / 'map.tif',
            size=64,
            low=5,
            high=[5, 9, 9],
        )
    mapper = SceneMapper(tmp_path / 'b.ckpt', low=0, high=[1000, 1000, 500])
    image = torch.full((1, 3, 4, 4), 250.0)
    scaled = mapper.scale(image, torch.ones(1, 4, 4, dtype=torch.bool))
    assert scaled[0, :, 0, 0].tolist() == [0.25, 0.25, 0.5]


@pytest.mark.parametrize('way', ['one process', 'trainer'])
@pytest.mark.parametrize('share', [0.3, 0.7])
def test_values_outside_of_the_range_are_told_once_a_map(
    tmp_path: Path, way: str, share: float
) -> None:
    rng = np.random.default_rng(0)
    for name in 'ab':
        data = noise(3, 300, 200).astype('uint16')
        data = np.where(rng.random(data.shape) < share, data + 3000, data)
        # Far outside, but no data
        data[:, :30] = 60_000
        write(tmp_path / f'scenes/{name}.tif', data, nodata=60_000)
    task, out = brightest(), str(tmp_path / 'maps')
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        if way == 'trainer':
            trainer = Trainer(
                accelerator='cpu', logger=False, callbacks=[MapWriter()], enable_progress_bar=False,
            )  # fmt: skip
            scenes = SceneWindows([str(tmp_path / 'scenes')], out, 64, batch_size=3)
            trainer.predict(SceneMapper(task), scenes)
            assert len(scenes.tally.made) == 2
        else:
            for name in 'ab':
                scene = tmp_path / f'scenes/{name}.tif'
                predict_scene(task, scene, tmp_path / f'{name}.tif', size=64)
    told = [str(each.message) for each in caught if '--low' in str(each.message)]
    assert len(told) == (2 if share > 0.5 else 0)
    for name, text in zip('ab', told, strict=False):
        assert f"{name}.tif' in its first windows" in text
        assert '70 % of the values' in text and 'from 1 to 3199' in text
        assert '0.0 to 250.0' in text and '--high' in text


def test_values_in_the_range_of_one_window(tmp_path: Path) -> None:
    """Of a small scene, of two dates, and of one range a band."""
    task = ChangeDetection('unet', backbone='test_resnet', in_channels=2)
    task.low, task.high = torch.tensor([0.0, 1000.0]), torch.tensor([100.0, 2000.0])
    data = np.stack([np.full((40, 40), 50), np.full((40, 40), 1500)]).astype('uint16')
    dates = [write(tmp_path / f'{date}.tif', data) for date in range(2)]
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        predict_scene(task, dates, tmp_path / 'map.tif', size=64)
    write(dates[0], data[::-1])
    write(dates[1], np.stack([data[0], data[0]]))
    with pytest.warns(UserWarning, match=r'75 % of the values .* from 50 to 1500'):
        predict_scene(task, dates, tmp_path / 'map.tif', size=64)
    # Given ones count, and none is outside of no range
    with pytest.warns(UserWarning, match='outside of 0.0 to 20.0'):
        predict_scene(
            nn.Identity(), dates[0], tmp_path / 'map.tif', size=64, low=0, high=20
        )
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        predict_scene(nn.Identity(), dates[0], tmp_path / 'map.tif', size=64)


def test_checkpoints_from_before_tasks_named_themselves(tmp_path: Path) -> None:
    """They are told by their arguments, of which there were fewer."""
    tasks = (
        SemanticSegmentation('unet', **TINY, num_classes=3, auxiliary_weight=0),
        ChangeDetection('unet', **TINY),
        Classification('test_resnet', num_classes=3),
        ObjectDetection('fcos', **TINY, num_classes=3),
    )
    for number, task in enumerate(tasks):
        content = torch.load(save(task, tmp_path / f'{number}.ckpt'), weights_only=True)
        del content['cmid_geo_task']
        for later in ('global_pool', 'num_filters'):
            content['hyper_parameters'].pop(later, None)
        if number == 1:
            del content['hyper_parameters']['num_labels']
        torch.save(content, tmp_path / f'{number}.ckpt')
        assert type(open_task(tmp_path / f'{number}.ckpt')) is type(task)
        # TorchGeo's own have fewer arguments yet
        del content['hyper_parameters']['weight_decay']
        torch.save(content, tmp_path / f'{number}.ckpt')
        with pytest.raises(ValueError, match='tensors|network|backbone'):
            open_task(tmp_path / f'{number}.ckpt')
