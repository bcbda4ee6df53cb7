# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

import math

import numpy as np
import pytest
import torch

from cmid_geo.losses import ReconstructionLoss, focal_frequency, focal_l1


def image(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def slow_frequency(prediction, target) -> float:
    """With numpy's spectra, averaged after the transform."""
    spectra = [
        np.fft.fft2(x.numpy(), norm='ortho').mean(axis=0) for x in (prediction, target)
    ]
    distance = np.abs(spectra[0] - spectra[1]) ** 2
    weight = np.log1p(np.sqrt(distance))
    return float((weight / weight.max() * distance).mean())


def test_focal_l1_equals_its_formula() -> None:
    p, x = image(40), image(40)
    a = (p - x).abs()
    expected = a * (2 * torch.sigmoid(0.3 * a) - 1) ** 1.5
    torch.testing.assert_close(focal_l1(p, x, alpha=0.3, gamma=1.5), expected)
    assert focal_l1(p, x).dtype == torch.float64


def test_focal_l1_without_focus_is_l1() -> None:
    p, x = image(40), image(40)
    torch.testing.assert_close(focal_l1(p, x, gamma=0.0), (p - x).abs())


def test_focal_l1_has_a_slope_where_it_is_right() -> None:
    for gamma in (0.0, 0.5, 1.0):
        p = torch.zeros(3, requires_grad=True)
        focal_l1(p, torch.zeros(3), gamma=gamma).sum().backward()
        assert p.grad is not None and p.grad.isfinite().all()


def test_focal_frequency_equals_numpy() -> None:
    p, x = image(4, 3, 16, 24), image(4, 3, 16, 24)
    assert focal_frequency(p, x).item() == pytest.approx(slow_frequency(p, x))


def test_focal_frequency_of_one_wave() -> None:
    # A cosine of amplitude 1 over 8x8 pixels: two frequencies of magnitude 8 / 2
    wave = torch.cos(2 * math.pi * torch.arange(8, dtype=torch.float64) / 8).expand(
        1, 1, 8, 8
    )
    assert focal_frequency(wave, torch.zeros_like(wave)).item() == pytest.approx(
        2 * 16 / 64
    )
    assert focal_frequency(wave, wave) == 0


def test_focal_frequency_weight_carries_no_gradient() -> None:
    p, x = image(2, 1, 8, 8).requires_grad_(), image(2, 1, 8, 8)
    focal_frequency(p, x).backward()
    with torch.no_grad():
        d = torch.fft.fft2((p - x).mean(0), norm='ortho')
        w = torch.log1p(d.abs())
        expected = (
            torch.fft.ifft2(w / w.max() * d, norm='ortho').real * 2 / d.numel() / 2
        )
    torch.testing.assert_close(p.grad, expected.expand(2, 1, 8, 8))


def slow_loss(p, x, mask, valid) -> float:
    batch, bands, height, width = x.shape
    size = height // mask.shape[1]
    total, count = 0.0, 0
    mixed = torch.zeros_like(x)
    truth = torch.zeros_like(x)
    for b in range(batch):
        for r in range(height):
            for c in range(width):
                if not valid[b, r, c]:
                    continue
                hidden = bool(mask[b, r // size, c // size])
                count += hidden
                for k in range(bands):
                    a = abs(p[b, k, r, c] - x[b, k, r, c]).item()
                    if hidden:
                        total += a * (2 / (1 + math.exp(-0.2 * a)) - 1)
                    w = 1.0 if hidden else 0.001
                    blend = 0.5 * p[b, k, r, c] + 0.5 * x[b, k, r, c]
                    mixed[b, k, r, c] = w * p[b, k, r, c] + (1 - w) * blend
                    truth[b, k, r, c] = x[b, k, r, c]
    return total / (count + 1e-5) / bands + slow_frequency(mixed, truth)


@pytest.mark.parametrize('all_valid', [True, False])
def test_reconstruction_equals_slow_loop(all_valid: bool) -> None:
    p, x = image(2, 3, 8, 8), image(2, 3, 8, 8)
    mask = torch.rand(2, 2, 2) < 0.6
    valid = (
        torch.ones(2, 8, 8, dtype=torch.bool)
        if all_valid
        else torch.rand(2, 8, 8) < 0.7
    )
    loss = ReconstructionLoss()(p, x, mask, None if all_valid else valid)
    assert loss.dtype == torch.float64
    assert loss.item() == pytest.approx(slow_loss(p, x, mask, valid))


def test_perfect_prediction_costs_nothing() -> None:
    x = image(2, 3, 8, 8)
    assert ReconstructionLoss()(x, x, torch.ones(2, 2, 2, dtype=torch.bool)) == 0


def test_invalid_pixels_count_in_nothing() -> None:
    p, x = image(2, 3, 8, 8).requires_grad_(), image(2, 3, 8, 8)
    mask, valid = torch.ones(2, 2, 2, dtype=torch.bool), torch.rand(2, 8, 8) < 0.7
    loss = ReconstructionLoss()(p, x, mask, valid)
    (before,) = torch.autograd.grad(loss, p)
    changed = x.where(valid[:, None], torch.nan)
    again = ReconstructionLoss()(p, changed, mask, valid)
    (after,) = torch.autograd.grad(again, p)
    assert torch.equal(loss, again) and torch.equal(before, after)
    assert not before.movedim(1, -1)[~valid].any()
    assert before.movedim(1, -1)[valid].any()


def test_visible_pixels_count_in_the_spectrum_only_by_their_share() -> None:
    p, x = image(1, 1, 8, 8).requires_grad_(), image(1, 1, 8, 8)
    mask = torch.tensor([[[True, False], [False, False]]])
    ReconstructionLoss(spectral_weight=0.0)(p, x, mask).backward()
    assert p.grad is not None
    assert p.grad[..., :4, :4].any() and not p.grad[..., 4:, :].any()
    p.grad = None
    ReconstructionLoss(visible_weight=0.0)(p, x, mask).backward()
    assert not p.grad[..., 4:, :].any()
    p.grad = None
    ReconstructionLoss()(p, x, mask).backward()
    assert p.grad[..., 4:, :].any()


def test_half_precision_is_computed_in_float32() -> None:
    p, x = image(2, 3, 8, 8).bfloat16(), image(2, 3, 8, 8).bfloat16()
    mask = torch.ones(2, 2, 2, dtype=torch.bool)
    with torch.autocast('cpu', torch.bfloat16):
        loss = ReconstructionLoss()(p, x, mask)
    torch.testing.assert_close(loss, ReconstructionLoss()(p.float(), x.float(), mask))
