# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

import math
from collections.abc import Callable
from dataclasses import replace

import jaxtyping
import pytest
import torch
from chips import Chips
from lightning.pytorch import Trainer
from torch import nn
from torch.utils.data import DataLoader

from cmid_geo.losses import info_nce, nearest_cells, take_cells
from cmid_geo.tasks import CMID
from cmid_geo.transforms import TwoViews, View, hide_cells

Make = Callable[..., CMID]


RANKS = 'rankme_student', 'rankme_teacher', 'lidar_student', 'lidar_teacher'


def views(task: CMID, batch: int = 4, bands: int = 3) -> tuple[View, View]:
    chips = Chips(batch, bands).chips
    torch.manual_seed(1)
    return task.augmentations(chips)


def filled(task: CMID) -> CMID:
    task.queue.enqueue(nn.functional.normalize(torch.randn(30, 8), dim=1))
    return task


def test_defaults_are_the_papers(monkeypatch: pytest.MonkeyPatch) -> None:
    given = CMID(model='resnet_test').hparams
    expected = {
        'in_channels': 3, 'size': 224, 'queue_size': 65536, 'mask_ratio': 0.6,
        'hidden_dim': 2048, 'output_dim': 256, 'num_prototypes': 2048, 'temperature': 0.2,
        'student_temp': 0.1, 'teacher_temp_start': 0.04, 'teacher_temp': 0.07,
        'teacher_temp_epochs': 50, 'momentum': 0.996, 'momentum_end': 1.0, 'center_momentum': 0.9,
        'alpha': 0.2, 'gamma': 1.0, 'spectral_weight': 1.0, 'visible_weight': 0.001,
        'reconstruction_weight': 1.0, 'global_weight': 1.0, 'local_weight': 1.0, 'lr': 1e-3,
        'lr_end': 1e-6, 'lr_batch_size': 64, 'weight_decay': 0.02, 'betas': (0.98, 0.92, 0.99),
        'warmup_epochs': 10,
    }  # fmt: skip
    assert {name: given[name] for name in expected} == expected
    # 20 of the 49 cells of its views, see tests/losses/test_matching.py
    assert given['matches'] is None


@pytest.mark.parametrize('name', ['resnet_test', 'convnext_atto'])
@pytest.mark.parametrize('cell', [32, 16])
def test_matched_cells_see_the_same_ground(name: str, cell: int) -> None:
    """Of views that are flipped and turned, too, and of small ones."""
    small = {'queue_size': 8, 'hidden_dim': 8, 'output_dim': 8, 'num_prototypes': 8}
    task = CMID(name, size=96, cell=cell, **small)
    offset = task.student.backbone.field_offset
    # A chip that shows its own coordinates
    y, x = torch.meshgrid(torch.arange(128.0), torch.arange(128.0), indexing='ij')
    chips = (torch.stack([x, y, 0 * x]) / 256).expand(256, 3, 128, 128)
    task.mean.zero_(), task.std.fill_(1)
    torch.manual_seed(0)
    first, _ = task.augmentations(chips)
    torch.manual_seed(1)
    second, _ = task.augmentations(chips)
    cells, partners = nearest_cells(
        first.positions, second.positions, task.hparams['matches']
    )
    apart = []
    for view, chosen in ((first, cells), (second, partners)):
        # What the network sees, of the view's own pixels
        where = torch.arange(96 // cell) * cell + (cell - 1) / 2 + offset
        low = where.floor().long().clamp(0, 95)
        high = where.ceil().long().clamp(0, 95)
        parts = [view.image[:, :2, a][..., b] for a in (low, high) for b in (low, high)]
        ground = torch.stack(parts).mean(0).flatten(2).mT * 256
        apart.append(take_cells(ground, chosen))
    distance = (apart[0] - apart[1]).norm(dim=-1)
    assert cells.shape == (256, (96 // cell) ** 2 * 20 // 49)
    # A view's cell of 32 pixels is 18 to 34 pixels of the chip wide
    assert (distance > cell / 2).float().mean() < 0.15


def test_losses_equal_the_method_written_out(make_task: Make) -> None:
    """The paper's sums, image by image, from the parts that have tests of their own."""
    task = filled(make_task())
    first, second = views(task)
    torch.manual_seed(2)
    compared = task.compare(first, second)
    seen = [task.student(hide_cells(v.image, v.mask), v.mask) for v in (first, second)]
    whole = [task.teacher(v.image) for v in (first, second)]
    globe, local, pixels = [], [], []
    for here, there, view, other in ((0, 1, first, second), (1, 0, second, first)):
        queue = task.queue.keys
        globe.append(info_nce(seen[here].embedding, whole[there].embedding, queue, 0.2))
        pixels.append(
            task.rebuild(task.decoder(seen[here].features), view.image, view.mask)
        )
        students, teachers = [], []
        for b in range(4):
            distance = torch.cdist(view.positions[b], other.positions[b])
            nearest, partner = distance.min(1)
            for cell in nearest.argsort()[:1]:  # 20 of 49, of 4
                students.append(seen[here].cells[b, cell])
                teachers.append(whole[there].cells[b, partner[cell]])
        guess = task.student.prototypes(torch.stack(students))
        scores = task.teacher.prototypes(torch.stack(teachers))
        local.append(task.assign(guess, scores, 0.07))
    expected = torch.stack([sum(pixels), sum(globe), sum(local)]) / 2
    torch.testing.assert_close(compared.losses, expected, rtol=1e-4, atol=1e-5)


def test_small_views_join_the_global_loss_alone(make_task: Make) -> None:
    """It is then the mean over all pairs of a student's and a teacher's view."""
    task = filled(make_task(local_views=3)).eval()
    first, second = views(task)
    chips = Chips(4).chips
    torch.manual_seed(2)
    small = task.draw_local(chips, None)
    assert [view.image.shape for view in small] == [(4, 3, 32, 32)] * 3
    assert not any(view.mask.any() for view in small)
    compared = task.compare(first, second, small)
    plain = task.compare(first, second)
    torch.testing.assert_close(compared.losses[[0, 2]], plain.losses[[0, 2]])
    whole = [task.teacher(v.image).embedding for v in (first, second)]
    more = [
        info_nce(task.student(view.image).embedding, key, task.queue.keys, 0.2)
        for view in small
        for key in whole
    ]
    expected = (2 * plain.losses[1] + sum(more)) / (2 + 6)
    torch.testing.assert_close(compared.losses[1], expected)


def test_small_views_are_cut_from_a_small_part_of_the_chip(make_task: Make) -> None:
    task = make_task(local_views=2, mean=[0.0] * 3, std=[1.0] * 3)
    y, x = torch.meshgrid(torch.arange(128.0), torch.arange(128.0), indexing='ij')
    chips = (torch.stack([x, y, 0 * x]) / 256).expand(64, 3, 128, 128)
    torch.manual_seed(0)
    image = task.draw_local(chips, None)[0].image[:, :2].flatten(2) * 256
    width, height = (image.amax(2) - image.amin(2)).unbind(1)
    share = (width + 1) * (height + 1) / 128**2
    assert 0.04 < share.min() < 0.1 and 0.25 < share.max() < 0.32
    # Of other sizes too about half a view's side, in whole cells
    for size, cell, side in ((224, 32, 96), (96, 32, 32), (32, 32, 32), (64, 16, 32)):
        own = make_task(model='vit_test', local_views=1, size=size, cell=cell)
        assert own.local_augmentations.size == side
    with pytest.raises(ValueError, match='local_views=-1'):
        make_task(local_views=-1)


def test_a_small_view_without_data_counts_in_nothing(make_task: Make) -> None:
    task = filled(make_task(model='vit_test', local_views=1))
    first, second = views(task)
    torch.manual_seed(2)
    (small,) = task.draw_local(Chips(4).chips, None)
    nowhere = replace(small, valid=small.valid & (torch.arange(4) < 3)[:, None, None])
    cut = View(*(each[:3] for each in vars(nowhere).values()))
    ends = [View(*(each[:3] for each in vars(v).values())) for v in (first, second)]
    task.hparams.update(reconstruction_weight=0.0, local_weight=0.0)
    four, three = task.compare(first, second, [nowhere]), task.compare(*ends, [cut])
    both = [task.compare(first, second), task.compare(*ends)]
    # What the small views add does not hang on the fourth
    added = [2 * with_it.losses[1] - without.losses[1] for with_it, without in zip((four, three), both)]  # fmt: skip
    torch.testing.assert_close(*added)


def test_a_changed_teacher_changes_the_loss(make_task: Make) -> None:
    task = filled(make_task())
    pair = views(task)
    before = task.compare(*pair).losses
    with torch.no_grad():
        for parameter in task.teacher.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    after = task.compare(*pair).losses
    assert after[0] == before[0], 'the reconstruction is the student alone'
    assert after[1] != before[1] and after[2] != before[2]


def test_gradients_reach_all_of_the_student_and_nothing_else(make_task: Make) -> None:
    for model in ('resnet_test', 'convnext_atto', 'vit_test'):
        task = filled(make_task(model=model))
        task.compare(*views(task)).losses.sum().backward()
        lacking = [
            n for n, p in task.named_parameters() if p.requires_grad and p.grad is None
        ]
        assert not lacking
        reached = [n for n, p in task.teacher.named_parameters() if p.grad is not None]
        assert not reached and not task.queue.keys.requires_grad


def test_the_step_has_no_side_effects(make_task: Make) -> None:
    task = filled(make_task(model='vit_test'))
    before = {k: v.clone() for k, v in task.state_dict().items()}
    batch = {'image': Chips(4).chips}
    outputs = task.training_step(batch, 0)
    assert all(torch.equal(before[k], v) for k, v in task.state_dict().items())
    assert outputs['keys'].shape == (2, 4, 8)
    assert outputs['scores'].shape == (1, 12)
    torch.testing.assert_close(outputs['loss'], outputs['losses'].sum())


def test_loss_weights(make_task: Make) -> None:
    task = make_task(reconstruction_weight=2.0, global_weight=3.0, local_weight=5.0)
    assert task.weigh(torch.tensor([1.0, 10.0, 100.0])) == 532


def test_no_data_changes_no_loss_and_no_gradient(make_task: Make) -> None:
    chips = Chips(4).chips
    valid = torch.ones(4, 64, 64, dtype=torch.bool)
    valid[:, :25] = False
    valid[3] = False
    results = []
    for value in (0.0, -9999.0, float('nan')):
        task = filled(make_task())
        torch.manual_seed(3)
        image = chips.where(valid[:, None], value)
        outputs = task.training_step({'image': image, 'valid': valid}, 0)
        outputs['loss'].backward()
        gradient = torch.cat([p.grad.flatten() for p in task.student.parameters()])
        results.append(
            (outputs['loss'].item(), gradient, outputs['keys'], outputs['scores'])
        )
    for other in results[1:]:
        assert other[0] == results[0][0]
        assert all(torch.equal(a, b) for a, b in zip(other[1:], results[0][1:]))
    assert math.isfinite(results[0][0])


def test_a_chip_without_data_counts_in_nothing(make_task: Make) -> None:
    task = filled(make_task(model='vit_test'))
    first, second = views(task)
    nowhere = torch.zeros(1, 64, 64, dtype=torch.bool)
    cut = [replace(v, valid=torch.cat([v.valid[:3], nowhere])) for v in (first, second)]
    kept = [
        View(v.image[:3], v.mask[:3], v.positions[:3], v.valid[:3])
        for v in (first, second)
    ]
    with_it, without = task.compare(*cut).losses, task.compare(*kept).losses
    torch.testing.assert_close(with_it[1:], without[1:])
    # Spectra are averaged over the batch: three quarters of a difference, squared and weighted
    assert with_it[0] < without[0]


def test_standardises_features_by_its_own_values(make_task: Make) -> None:
    task = make_task(mean=[0.1, 0.2, 0.3], std=[0.5, 0.6, 0.7]).eval()
    image = torch.rand(2, 3, 64, 64)
    mean, std = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.5, 0.6, 0.7])
    expected = task.student.backbone((image - mean[:, None, None]) / std[:, None, None])
    torch.testing.assert_close(task(image), expected)
    pooled = task.predict_step({'image': image}, 0)
    torch.testing.assert_close(pooled, expected.mean((2, 3)))
    first, _ = task.augmentations(
        image, geometries=(torch.eye(3).double().expand(2, 3, 3),) * 2
    )
    torch.testing.assert_close(
        first.image * std[:, None, None] + mean[:, None, None], image
    )


def test_small_views_train(make_task: Make, make_trainer: Callable[..., Trainer], loader: DataLoader) -> None:  # fmt: skip
    """With several dates too, of which each view gets its own, and invalid pixels."""
    trainer, task = make_trainer(max_epochs=1), make_task(local_views=3)
    trainer.fit(task, loader)
    assert trainer.callback_metrics['train_loss'].isfinite()
    task = filled(make_task(local_views=3))
    chips, valid = torch.rand(4, 2, 3, 64, 64), torch.rand(4, 2, 64, 64) > 0.5
    torch.manual_seed(0)
    outputs = task.training_step({'image': chips, 'valid': valid}, 0)
    filling = chips.where(valid[:, :, None], float('nan'))
    torch.manual_seed(0)
    again = task.training_step({'image': filling, 'valid': valid}, 0)
    assert outputs['loss'].isfinite() and again['loss'] == outputs['loss']


def test_own_augmentations_are_used(make_task: Make) -> None:
    class Same(nn.Module):
        def forward(
            self, chips: torch.Tensor, valid: torch.Tensor | None = None
        ) -> tuple[View, View]:
            view = TwoViews(64)(chips, valid)[0]
            return view, view

    task = make_task(augmentations=Same(), mask_ratio=0.0)
    outputs = task.training_step({'image': torch.rand(4, 3, 64, 64)}, 0)
    torch.testing.assert_close(outputs['keys'][0], outputs['keys'][1])


def test_validation_sees_the_same_views_each_time(
    make_task: Make, make_trainer: Callable[..., Trainer], loader: DataLoader
) -> None:
    task, results = make_task(), []
    for seed in (0, 1):
        torch.manual_seed(seed)
        results.append(make_trainer().validate(task, loader, verbose=False)[0])
    assert results[0] == results[1]
    assert set(results[0]) == {
        'val_reconstruction',
        'val_global',
        'val_local',
        'val_loss',
        *RANKS,
    }
    assert make_trainer().test(task, loader, verbose=False)[0].keys() == {
        'test_reconstruction', 'test_global', 'test_local', 'test_loss'
    }  # fmt: skip
    features = make_trainer().predict(task, loader)
    assert features is not None and features[0].shape == (4, 96)


def test_everything_is_logged(
    make_task: Make, make_trainer: Callable[..., Trainer], loader: DataLoader
) -> None:
    trainer = make_trainer(max_epochs=2)
    trainer.fit(make_task(), loader)
    logged = trainer.callback_metrics
    for name in (
        'train_loss', 'train_reconstruction', 'train_global', 'train_local', 'teacher_momentum',
        'teacher_temp', 'lr', 'images_per_second', 'embedding_std', 'embedding_cosine',
        'assignment_entropy', 'teacher_entropy', 'key_rank', 'fresh_rank',
        'global_chance',
    ):  # fmt: skip
        assert logged[name].isfinite(), name
    assert logged['global_chance'] == pytest.approx(math.log(25))
    assert 1 <= logged['key_rank'] <= 25
    assert logged['teacher_temp'] == pytest.approx(0.07)


@pytest.mark.parametrize(
    'model', ['resnet_test', 'swin_test', 'vit_test', 'convnext_atto']
)
def test_families_train_on_any_bands_and_dates(
    model: str, make_task: Make, make_trainer: Callable[..., Trainer]
) -> None:
    task = make_task(model=model, in_channels=5)
    before = [p.clone() for p in task.teacher.parameters()]
    chips = Chips(8, 5).chips.unsqueeze(1).expand(8, 2, 5, 64, 64)
    loader = DataLoader([{'image': c} for c in chips], batch_size=4)
    make_trainer(max_steps=3, max_epochs=2, limit_train_batches=2).fit(
        make_task(model=model, in_channels=5, queue_size=16), loader
    )
    trainer = make_trainer(max_steps=2)
    task = make_task(model=model, in_channels=5, queue_size=16)
    trainer.fit(task, loader)
    assert trainer.callback_metrics['train_loss'].isfinite()
    moved = [not torch.equal(a, b) for a, b in zip(before, task.teacher.parameters())]
    assert any(moved) and int(task.queue.seen) == 16


@pytest.mark.parametrize(
    'options', [{'precision': 'bf16-mixed'}, {'accumulate_grad_batches': 2}]
)
def test_mixed_precision_and_accumulation(
    options: dict,
    make_task: Make,
    make_trainer: Callable[..., Trainer],
    loader: DataLoader,
) -> None:
    task, trainer = make_task(), make_trainer(max_epochs=1, **options)
    trainer.fit(task, loader)
    assert trainer.callback_metrics['train_loss'].isfinite()
    assert task.queue.keys.dtype == torch.float32
    torch.testing.assert_close(task.queue.keys.norm(dim=1), torch.ones(24))


@pytest.mark.parametrize(
    ('precision', 'model', 'cell', 'expected'),
    [
        ('32-true', 'resnet_test', 32, False),
        ('bf16-mixed', 'resnet_test', 32, True),
        ('bf16-mixed', 'resnet_test', 16, False),
        ('bf16-mixed', 'vit_test', 32, False),
    ],
)
def test_convolutions_in_bfloat16_have_channels_last(
    precision: str, model: str, cell: int, expected: bool, make_task: Make,
    make_trainer: Callable[..., Trainer], loader: DataLoader,
) -> None:  # fmt: skip
    task = make_task(model=model, cell=cell)
    make_trainer(max_steps=1, precision=precision).fit(task, loader)
    weights = [
        p
        for p in task.student.parameters()
        if p.ndim == 4 and p.shape[2] > 1 < p.shape[1]
    ]
    assert weights
    layouts = {p.is_contiguous(memory_format=torch.channels_last) for p in weights}
    assert layouts == {expected}


def test_compiles(
    make_task: Make, make_trainer: Callable[..., Trainer], loader: DataLoader
) -> None:
    task = make_task()
    trainer = make_trainer(max_steps=2)
    # A compiler would follow the checks of types, too
    jaxtyping.config.update('jaxtyping_disable', True)
    try:
        trainer.fit(torch.compile(task, backend='eager'), loader)
    finally:
        jaxtyping.config.update('jaxtyping_disable', False)
    assert int(task.queue.seen) == 16
    plain = make_task()
    make_trainer(max_steps=2).fit(plain, loader)
    torch.testing.assert_close(task.queue.keys, plain.queue.keys, rtol=1e-3, atol=1e-4)
