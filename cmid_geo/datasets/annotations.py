# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""What COCO's files tell of boxes, and parts of it in which no class is lost."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt


def read_coco(annotations: str | Path) -> dict[str, Any]:
    """Read a file of COCO.

    Args:
        annotations: Its path.

    Returns:
        Its parts: ``images``, ``annotations`` and ``categories``.

    Raises:
        ValueError: If it is none.
    """
    try:
        listed = json.loads(Path(annotations).read_text(encoding='utf-8'))
    except (OSError, ValueError) as error:
        raise ValueError(
            f'cannot read {str(annotations)!r} ({error}): give the path of a JSON file of COCO'
        ) from error
    parts = ('images', 'annotations', 'categories')
    lacking = [
        part for part in parts if not isinstance(listed, dict) or part not in listed
    ]
    if lacking or not listed['images'] or not listed['categories']:
        raise ValueError(
            f'{str(annotations)!r} holds no {lacking or "images or categories"}: a file of COCO has '
            f'{parts}'
        )
    return listed


def boxes_by_image(
    listed: dict[str, Any], name: str
) -> tuple[list[npt.NDArray[np.float64]], list[npt.NDArray[np.int64]]]:
    """Sort boxes by image, without those of crowds.

    Args:
        listed: Parts of a file of COCO.
        name: Of the file, for messages.

    Returns:
        Boxes (N, 4) of each image as (x1, y1, x2, y2), and labels (N): 1 for the category of the
        least id, and so on.

    Raises:
        ValueError: If an annotation is no box, or of an image or category that is not listed.
    """
    ids = sorted(kind['id'] for kind in listed['categories'])
    label_of = {number: 1 + place for place, number in enumerate(ids)}
    place_of = {entry['id']: place for place, entry in enumerate(listed['images'])}
    boxes: list[list[Any]] = [[] for _ in place_of]
    labels: list[list[int]] = [[] for _ in place_of]
    for entry in listed['annotations']:
        where = f'annotation {entry.get("id")} of {name}'
        for key, known in (('image_id', place_of), ('category_id', label_of)):
            if entry[key] not in known:
                raise ValueError(
                    f'{where} has {key}={entry[key]}, which is not listed: correct or remove it'
                )
        x, y, width, height = entry['bbox']
        if not (all(map(math.isfinite, entry['bbox'])) and min(width, height) >= 0):
            raise ValueError(
                f'{where} has bbox={entry["bbox"]}: boxes are x, y, width and height in pixels, finite '
                'and not negative; correct or remove it'
            )
        if not entry.get('iscrowd'):
            boxes[place_of[entry['image_id']]].append((x, y, x + width, y + height))
            labels[place_of[entry['image_id']]].append(label_of[entry['category_id']])
    return (
        [np.array(each, np.float64).reshape(-1, 4) for each in boxes],
        [np.array(each, np.int64) for each in labels],
    )


def spread_fraction(
    counts: npt.NDArray[np.int64], fraction: float, seed: int = 0
) -> list[int]:
    """Draw a part of images so that each class keeps its share of them.

    An image counts for the class in it that fewest images have, those without boxes for
    background. What no drawn image has is then added.

    Args:
        counts: Boxes of each class (images, classes).
        fraction: Share to draw, in (0, 1].
        seed: Of the draw.

    Returns:
        Sorted indices; each class that any image has is among them.

    Raises:
        ValueError: If *fraction* is out of range.
    """
    if not 0 < fraction <= 1:
        raise ValueError(
            f'label_fraction={fraction} is a share of the images: give one above 0, up to 1'
        )
    has = counts > 0
    order = np.random.default_rng(seed).permutation(len(counts))
    rarity = np.where(has, has.sum(0), len(counts) + 1)
    group = np.where(has.any(1), rarity.argmin(1), -1)
    drawn: list[int] = []
    for kind in np.unique(group):
        members = order[group[order] == kind]
        wanted = math.floor(fraction * len(members) + 0.5)
        drawn += members[: max(int(kind >= 0), wanted)].tolist()
    for kind in range(counts.shape[1]):
        holders = order[has[order, kind]]
        if len(holders) and not has[drawn, kind].any():
            drawn.append(int(holders[0]))
    return sorted(drawn)
