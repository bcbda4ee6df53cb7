# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

import pytest
import torch

from cmid_geo.ops.value_range import ValueRange, normalize, scale

RANGE = ValueRange(('red', 2), (0.0, 10.0), (4.0, 30.0), (0.5, 0.25), (0.5, 0.125))
RAW = torch.tensor([[-1.0, 0, 1, 4, 5], [0.0, 10, 15, 30, 99]])[:, :, None]


def test_scale_by_hand() -> None:
    expected = torch.tensor([[0.0, 0, 0.25, 1, 1], [0.0, 0, 0.25, 1, 1]])[:, :, None]
    assert torch.equal(scale(RAW, RANGE.low, RANGE.high), expected)
    assert torch.equal(RANGE.scale(RAW), expected)
    assert torch.equal(scale(RAW[None, None], RANGE.low, RANGE.high)[0, 0], expected)


def test_normalize_by_hand() -> None:
    scaled = torch.tensor([[0.0, 0.5, 1], [0.25, 0.5, 0]])[:, :, None]
    expected = torch.tensor([[-1.0, 0, 1], [0, 2, -2]])[:, :, None]
    assert torch.equal(normalize(scaled, RANGE.mean, RANGE.std), expected)
    assert torch.equal(RANGE.normalize(scaled), expected)


@pytest.mark.parametrize('limits', [(0, 255), ((0.0,), (255.0,)), (torch.tensor([0.0]), torch.tensor([255.0]))])  # fmt: skip
def test_one_number_stands_for_all_bands(limits: tuple) -> None:
    image = torch.tensor([0, 51, 255], dtype=torch.uint8).view(3, 1, 1)
    torch.testing.assert_close(scale(image, *limits).flatten(), torch.tensor([0, 0.2, 1]))  # fmt: skip


def test_types_stay_and_integers_become_floats() -> None:
    assert scale(RAW.double(), 0, 1).dtype == torch.float64
    assert normalize(RAW.bfloat16(), 0, 1).dtype == torch.bfloat16
    large = torch.tensor([65535], dtype=torch.int32).view(1, 1, 1)
    assert scale(large, 0, 65535).dtype == torch.float32 and scale(large, 0, 65535) == 1


def test_metadata_there_and_back() -> None:
    metadata = RANGE.to_metadata()
    assert metadata['bands'] == ['red', 2] and metadata['high'] == [4.0, 30.0]
    assert ValueRange.from_metadata(metadata | {'model': 'resnet50'}) == RANGE
    assert ValueRange.from_metadata({'low': [0.0], 'high': None}) is None
    bare = ValueRange.from_metadata({'low': [0.0], 'high': [1.0]})
    assert bare == ValueRange((), (0.0,), (1.0,))


def test_the_table_has_a_line_a_band() -> None:
    lines = str(RANGE).splitlines()
    assert len(lines) == 3 and lines[0].split() == ['band', 'low', 'high', 'mean', 'std']  # fmt: skip
    assert lines[1].split() == ['red', '0', '4', '0.5000', '0.5000']
