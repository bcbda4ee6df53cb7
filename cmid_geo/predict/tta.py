# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Test-time augmentation by flips and quarter turns."""

from ..ops.dihedral import ALL, Dihedral

#: What is predicted and averaged under each name, first the image as it is.
DIHEDRALS: dict[str, tuple[Dihedral, ...]] = {
    'none': ALL[:1],
    'flips': (Dihedral(), Dihedral(0, True), Dihedral(2), Dihedral(2, True)),
    'turns': ALL[:4],
    'all': ALL,
}


def find_dihedrals(name: str) -> tuple[Dihedral, ...]:
    """Look up the rotations and flips of a name.

    Args:
        name: 'none', 'flips', 'turns' or 'all'.

    Returns:
        The rotations and flips.

    Raises:
        ValueError: If there is no such name.
    """
    if name not in DIHEDRALS:
        raise ValueError(f'tta={name!r}: choose one of {list(DIHEDRALS)}')
    return DIHEDRALS[name]
