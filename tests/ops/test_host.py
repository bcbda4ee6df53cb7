# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

from typing import Any

import pytest
import torch

from cmid_geo.ops.host import fast_precision, has_bfloat16


@pytest.mark.parametrize(
    ('known', 'expected'),
    [
        ({'architecture': 'x86_64', 'avx512_f': True, 'avx512_bf16': False}, False),
        ({'architecture': 'x86_64', 'avx512_bf16': True}, True),
        ({'architecture': 'x86_64', 'amx_bf16': True}, True),
        ({'architecture': 'arm64', 'neon': True}, False),
        ({'architecture': 'arm64', 'bf16': True}, True),
    ],
)
def test_bfloat16_is_what_the_processor_says(
    known: dict[str, Any], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, 'get_capabilities', lambda: known, raising=False)
    monkeypatch.setattr(torch.backends.mkldnn, 'is_available', lambda: True)
    assert has_bfloat16() is expected
    monkeypatch.setattr(torch.backends.mkldnn, 'is_available', lambda: False)
    assert not has_bfloat16()


def test_a_torch_that_cannot_tell_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, 'get_capabilities', raising=False)
    assert not has_bfloat16()


@pytest.mark.parametrize('quick', [False, True])
def test_the_precision_is_that_of_the_device_that_trains(
    quick: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = 'bf16-mixed' if quick else '32-true'
    monkeypatch.setattr('cmid_geo.ops.host.has_bfloat16', lambda: quick)
    assert fast_precision(on_cpu=True) == expected
    monkeypatch.setattr(torch.accelerator, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'is_bf16_supported', lambda **_: quick)
    monkeypatch.setattr('cmid_geo.ops.host.has_bfloat16', lambda: not quick)
    assert fast_precision() == expected
    # An accelerator of another kind
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    assert fast_precision() == '32-true'
