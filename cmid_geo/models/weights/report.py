# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""What the loader says."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class LoadReport:
    """What came of loading weights into a backbone.

    Attributes:
        source: Name of the weights.
        target: Name of the network.
        total: Number of tensors that the network's backbone has.
        loaded: Names of those that were loaded, as the network has them.
        adapted: How the tensors that did not fit as they were have been made to fit.
        heads: Names of tensors behind the features that fitted and were loaded too.
        skipped: Names of all other tensors of both sides, and why.
        about: What is known of the weights: ``bands``, ``mean``, ``std``, ...
    """

    source: str
    target: str
    total: int
    loaded: tuple[str, ...]
    adapted: dict[str, str]
    heads: tuple[str, ...]
    skipped: dict[str, str]
    about: dict[str, Any]

    def __str__(self) -> str:
        """Say it in a few lines."""
        lines = [
            f'{len(self.loaded)} of {self.total} tensors of {self.target} loaded from {self.source}'
        ]
        also = dict.fromkeys(self.heads, 'behind the features')
        for title, items in (
            ('adapted', self.adapted),
            ('also loaded', also),
            ('skipped', self.skipped),
        ):
            reasons: dict[str, list[str]] = {}
            for name, reason in items.items():
                reasons.setdefault(reason, []).append(name)
            for reason, names in reasons.items():
                more = f' and {len(names) - 3} more' if len(names) > 3 else ''
                lines.append(f'  {title}: {", ".join(names[:3])}{more}: {reason}')
        return '\n'.join(lines)
