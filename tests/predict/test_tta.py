# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

import pytest
import torch

from cmid_geo.ops.dihedral import Dihedral
from cmid_geo.predict.tta import DIHEDRALS, find_dihedrals


def test_sets() -> None:
    assert [len(find_dihedrals(name)) for name in ('none', 'flips', 'turns', 'all')] == [
        1, 4, 4, 8,
    ]  # fmt: skip
    image = torch.arange(4.0).view(2, 2)
    for name, several in DIHEDRALS.items():
        assert several[0] == Dihedral()
        different = {tuple(each.image(image).flatten().tolist()) for each in several}
        assert len(different) == len(several), name
        for each in several:
            assert torch.equal(each.inverse.image(each.image(image)), image)
    flipped = {tuple(d.image(image).flatten().tolist()) for d in DIHEDRALS['flips']}
    assert (1.0, 0.0, 3.0, 2.0) in flipped and (2.0, 3.0, 0.0, 1.0) in flipped
    with pytest.raises(ValueError, match="tta='x': choose one of"):
        find_dihedrals('x')
