# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch
from matplotlib import pyplot as plt
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnnotationBbox

from cmid_geo.plots import (
    plot_attention,
    plot_correspondence,
    plot_embedding,
    plot_label_efficiency,
    plot_neighbours,
)
from cmid_geo.plots.correspondence import cell_at, centre_of
from cmid_geo.plots.embedding import reduce_features, spread_out


@pytest.fixture(autouse=True)
def nothing_leaks() -> Any:
    yield
    # pyplot knows of no figure that is made here
    assert not plt.get_fignums()


def titles(figure: Figure) -> list[str]:
    return [axis.get_title() for axis in figure.axes]


def test_neighbours_by_falling_cosine() -> None:
    angles = torch.tensor([0.0, 10, 90, 40, 170]).deg2rad()
    features = torch.stack([angles.cos(), angles.sin()], 1) * torch.arange(1, 6)[:, None]  # fmt: skip
    images = torch.rand(5, 4, 8, 8)
    valid = torch.ones(5, 8, 8, dtype=torch.bool)
    valid[1, 0] = False
    figure = plot_neighbours(
        images, features, [0, 4], 3, labels=torch.tensor([0, 1, 1, 0, 0]),
        names=['sea', 'land'], valid=valid,
    )  # fmt: skip
    assert titles(figure) == [
        'query\nsea', '0.98\nland', '0.77\nsea', '0.00\nland',
        'query\nsea', '0.17\nland', '-0.64\nsea', '-0.94\nland',
    ]  # fmt: skip
    colours = [axis.title.get_color() for axis in figure.axes]
    assert colours[:4] == ['black', 'C3', 'C0', 'C3']
    # The neighbour with a row of no data
    shown = figure.axes[1].images[0].get_array()
    assert (shown[0, :, 3] == 0).all() and (shown[1:, :, 3] == 1).all()
    assert 'blue' in figure._suptitle.get_text()


def test_neighbours_without_labels_and_refusals() -> None:
    images, features = torch.rand(3, 1, 8, 8), torch.eye(3)
    assert titles(plot_neighbours(images, features, 1, 2)) == ['query', '0.00', '0.00']
    with pytest.raises(ValueError, match=r'count=3 of 3 chips: give .* 0 to 2, and a count'):  # fmt: skip
        plot_neighbours(images, features, 0, 3)
    with pytest.raises(ValueError, match=r'queries=\[3\]'):
        plot_neighbours(images, features, 3, 1)


def blobs(count: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    centres = torch.randn(3, 16, generator=draw).repeat_interleave(count, 0)
    noise = 0.05 * torch.randn(len(centres), 16, generator=draw)
    return centres + noise, torch.arange(3).repeat_interleave(count)


def test_embedding_keeps_groups_together_and_is_the_same_again() -> None:
    features, labels = blobs()
    images = torch.rand(len(features), 13, 8, 8)
    figure = plot_embedding(features, labels, ['a', 'b', 'c'], images, thumbnails=5)
    (axis,) = figure.axes
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list('abc')
    groups = [np.asarray(drawn.get_offsets()) for drawn in axis.collections]
    assert [len(group) for group in groups] == [8, 8, 8]
    centres = [group.mean(0) for group in groups]
    spread = max(np.linalg.norm(g - c, axis=1).max() for g, c in zip(groups, centres))
    assert spread < min(np.linalg.norm(centres[i] - centres[i - 1]) for i in range(3))
    pins = [each for each in axis.artists if isinstance(each, AnnotationBbox)]
    assert len(pins) == 5 and axis.get_title() == '24 chips by t-SNE'
    edges = {tuple(pin.patch.get_edgecolor()) for pin in pins}
    assert len(edges) == 3 and to_rgba('C0') in edges
    again = reduce_features(features)
    np.testing.assert_array_equal(again, reduce_features(features))


def test_embedding_without_labels_has_no_legend() -> None:
    figure = plot_embedding(torch.rand(6, 4))
    assert not figure.legends and len(figure.axes[0].collections) == 1


def test_umap_is_asked_for_cosine(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    class UMAP:
        def __init__(self, **options: Any) -> None:
            asked.append(options)

        def fit_transform(self, vectors: Any) -> Any:
            return vectors[:, :2]

    monkeypatch.setitem(sys.modules, 'umap', SimpleNamespace(UMAP=UMAP))
    figure = plot_embedding(torch.rand(6, 4), method='umap', seed=3)
    assert asked == [{'n_neighbors': 5, 'metric': 'cosine', 'random_state': 3}]
    assert titles(figure) == ['6 chips by UMAP']


@pytest.mark.parametrize(
    ('method', 'module', 'cure'),
    [
        ('tsne', 'sklearn.manifold', r"pip install 'cmid-geo\[plots\]'"),
        ('umap', 'umap', 'pip install umap-learn'),
    ],
)
def test_a_library_that_is_missing(
    method: Any, module: str, cure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=cure):
        plot_embedding(torch.rand(6, 4), method=method)


def test_embedding_refuses_what_has_no_neighbours() -> None:
    with pytest.raises(ValueError, match='4 vectors, 0 of them not finite.*at least 5'):
        plot_embedding(torch.rand(4, 4))
    with pytest.raises(ValueError, match='6 vectors, 1 of them'):
        plot_embedding(torch.full((6, 4), 1.0).index_fill(0, torch.tensor([2]), torch.nan))  # fmt: skip
    with pytest.raises(ValueError, match="method='pca' is not known: choose of"):
        reduce_features(torch.rand(6, 4), 'pca')


def test_thumbnails_lie_apart() -> None:
    places = np.array([[0.0, 0], [0.1, 0], [10, 0], [10, 0.1], [5, 8]])
    assert {index // 2 for index in spread_out(places, 3)} == {0, 1, 2}
    assert sorted(spread_out(places, 5)) == [0, 1, 2, 3, 4]


def test_attention_of_a_vit_and_of_a_cell() -> None:
    network = timm.create_model(
        'vit_tiny_patch16_224', depth=1, embed_dim=24, num_heads=3, dynamic_img_size=True, in_chans=4
    )  # fmt: skip
    image = torch.randn(4, 64, 96)
    figure = plot_attention(network, image)
    assert [title.split(',')[0] for title in titles(figure)] == [
        'image', 'mean of the heads', 'head 1', 'head 2', 'head 3',
    ]  # fmt: skip
    maps = [axis.images[0].get_array() for axis in figure.axes[1:]]
    assert maps[0].shape == (4, 6) and not maps[0].mask.any()
    np.testing.assert_allclose(maps[0], np.mean(maps[1:], axis=0), rtol=1e-5)
    assert not figure.axes[0].patches
    framed = plot_attention(network, image, (1, 2), columns=3)
    assert len(framed.axes) == 5
    frames = [patch.get_bbox().bounds for patch in framed.axes[-1].patches]
    assert frames == [(64, 32, 32, 32)] * 2
    assert 'cell (1, 2)' in framed._suptitle.get_text()


def test_attention_of_swin_is_hatched_beyond_the_window() -> None:
    network = timm.create_model(
        'swin_tiny_patch4_window7_224', strict_img_size=False, depths=(1, 1), num_heads=(1, 2), embed_dim=16
    )  # fmt: skip
    figure = plot_attention(network, torch.randn(3, 128, 128), (0, 0), 0)
    shown = figure.axes[1].images[0].get_array()
    # A cell of 8x8 tokens lies in four windows of 7x7
    assert not shown.mask[:14, :14].any() and shown.mask[14:].all()
    assert any(patch.get_hatch() for patch in figure.axes[1].patches)


def test_a_point_is_found_again() -> None:
    features = torch.eye(12).reshape(12, 3, 4)
    moved = features.roll(1, 2)
    first, second = torch.rand(2, 3, 96, 128)
    figure = plot_correspondence(first, second, features, moved, (40.0, 70))
    assert titles(figure)[:3] == ['point', 'best place: 1.00', 'cosine similarity']
    # Cell (2, 1) went to (2, 2)
    marks = [
        [float(v[0]) for v in axis.lines[0].get_data()] for axis in figure.axes[:3]
    ]
    assert marks == [[40, 70], [80, 80], [80, 80]]
    similar = figure.axes[2].images[0].get_array()
    assert similar[2, 2] == 1 and similar.sum() == 1


def test_no_data_is_not_searched() -> None:
    features, image = torch.eye(4).reshape(4, 2, 2), torch.rand(1, 64, 64)
    valid = torch.ones(64, 64, dtype=torch.bool)
    valid[:32, :32] = False
    figure = plot_correspondence(
        image, image, features, features, (5, 5), second_valid=valid
    )
    similar = figure.axes[2].images[0].get_array()
    assert similar.mask.tolist() == [[True, False], [False, False]]
    assert titles(figure)[1] == 'best place: 0.00' and figure.axes[2].patches
    with pytest.raises(ValueError, match='no cell of the second image holds data'):
        plot_correspondence(
            image, image, features, features, (5, 5), second_valid=~torch.ones_like(valid)
        )  # fmt: skip
    with pytest.raises(ValueError, match='first image holds no data: choose another'):
        plot_correspondence(image, image, features, features, (5, 5), first_valid=valid)


def test_points_and_vectors_that_do_not_fit() -> None:
    image, features = torch.rand(1, 64, 64), torch.rand(4, 2, 2)
    with pytest.raises(ValueError, match=r'point=\(64, 0\).*64 columns and 64 rows'):
        plot_correspondence(image, image, features, features, (64, 0))
    with pytest.raises(ValueError, match='4 and 3 values: compute both with one'):
        plot_correspondence(image, image, features, features[:3], (0, 0))


def test_cells_of_a_resnet_see_what_lies_up_and_left() -> None:
    image, features = torch.rand(1, 96, 96), torch.rand(4, 3, 3)
    assert cell_at((33, 33), image, features) == (1, 1)
    assert cell_at((50, 17), image, features, -15.5) == (1, 2)
    assert cell_at((95, 95), image, features, -15.5) == (2, 2)
    assert centre_of((1, 0), image, features, -15.5) == (0.5, 32.5)


def test_fractions_are_told_in_three_digits() -> None:
    (axis,) = plot_label_efficiency({'a': {7 / 108: 0.5, 1: 0.6}}).axes
    assert [tick.get_text() for tick in axis.get_xticklabels()] == ['6.48 %', '100 %']


def test_label_efficiency() -> None:
    figure = plot_label_efficiency(
        {'CMID': {1.0: [0.9, 0.8], 0.1: [0.5, 0.7]}, 'random': {0.1: 0.3, 1.0: 0.6}},
        'mIoU',
    )
    (axis,) = figure.axes
    lines = axis.lines
    assert lines[0].get_xdata().tolist() == [0.1, 1]
    assert lines[0].get_ydata().tolist() == pytest.approx([0.6, 0.85])
    band = axis.collections[0].get_paths()[0].vertices[:, 1]
    assert band.max() == pytest.approx(0.85 + 0.1 / 2**0.5)
    # A band where there are several seeds only
    assert len(axis.collections) == 1
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ['CMID (2 seeds)', 'random']  # fmt: skip
    assert [tick.get_text() for tick in axis.get_xticklabels()] == ['10 %', '100 %']
    assert axis.get_ylabel() == 'mIoU' and axis.get_xscale() == 'log'
    with pytest.raises(ValueError, match=r'\[5\] are not in \(0, 1\]: divide percent'):
        plot_label_efficiency({'a': {5: 0.5}})
    with pytest.raises(ValueError, match='give each method a score'):
        plot_label_efficiency({'a': {}})


def test_what_has_no_class_is_grey() -> None:
    features, labels = blobs()
    labels = labels.masked_fill(labels == 1, -1)
    figure = plot_embedding(features, labels, ['a', 'b', 'c'], torch.rand(len(features), 3, 8, 8), thumbnails=9)  # fmt: skip
    (axis,) = figure.axes
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ['unlabelled', 'a', 'c']  # fmt: skip
    colours = [tuple(drawn.get_facecolor()[0]) for drawn in axis.collections]
    assert colours[1:] == [to_rgba('C0'), to_rgba('C2')]
    assert colours[0][0] == colours[0][1] == colours[0][2]
    pins = [each for each in axis.artists if isinstance(each, AnnotationBbox)]
    assert colours[0] in {tuple(pin.patch.get_edgecolor()) for pin in pins}
    nothing = plot_embedding(features, torch.full_like(labels, -1))
    assert [text.get_text() for text in nothing.legends[0].get_texts()] == ['unlabelled']  # fmt: skip
