# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

import pytest
import torch
import torch.nn.functional as F

from cmid_geo.models import (
    Encoder,
    KeyQueue,
    PixelDecoder,
    Projector,
    PrototypeHead,
    create_backbone,
    make_teacher,
    update_teacher,
)


def encoder() -> Encoder:
    return Encoder(
        create_backbone('resnet_test'),
        Projector(512, 16, 8),
        PrototypeHead(512, 16, 8, 12),
    )


def test_teacher_shares_nothing_and_gets_no_gradient() -> None:
    student = encoder()
    teacher = make_teacher(student)
    storage = {t.untyped_storage().data_ptr() for t in student.state_dict().values()}
    assert not storage & {
        t.untyped_storage().data_ptr() for t in teacher.state_dict().values()
    }
    assert not any(p.requires_grad for p in teacher.parameters())
    assert all(p.requires_grad for p in student.parameters())
    assert teacher.training
    assert all(
        torch.equal(a, b) for a, b in zip(student.parameters(), teacher.parameters())
    )


def test_moving_average_by_hand() -> None:
    student, teacher = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    old, new = teacher.weight.clone(), student.weight.clone()
    update_teacher(teacher, student, 0.9)
    torch.testing.assert_close(teacher.weight, 0.9 * old + 0.1 * new)
    assert torch.equal(student.weight, new)
    update_teacher(teacher, student, 1.0)
    torch.testing.assert_close(teacher.weight, 0.9 * old + 0.1 * new)


def test_buffers_of_the_teacher_are_its_own() -> None:
    student, teacher = torch.nn.BatchNorm1d(2), torch.nn.BatchNorm1d(2)
    student.running_mean.fill_(5)
    update_teacher(teacher, student, 0.0)
    assert not teacher.running_mean.any()


@pytest.mark.parametrize(('size', 'batch'), [(10, 4), (10, 10), (7, 20), (8, 4)])
def test_queue_holds_the_last_keys(size: int, batch: int) -> None:
    queue, written = KeyQueue(size, 3), torch.empty(0, 3)
    for _ in range(7):
        keys = torch.randn(batch, 3)
        queue.enqueue(keys)
        written = torch.cat([written, keys])
        filled = int(queue.filled)
        assert filled == min(len(written), size)
        last = written[-size:]
        assert {tuple(k.tolist()) for k in queue.keys[:filled]} == {
            tuple(k.tolist()) for k in last
        }
        # Key i of the stream lies in row i % size
        assert torch.equal(queue.keys[(len(written) - 1) % size], written[-1])
        assert int(queue.cursor) == len(written) % size


def test_queue_is_kept_by_checkpoints() -> None:
    queue = KeyQueue(5, 3)
    queue.enqueue(torch.randn(7, 3))
    other = KeyQueue(5, 3)
    other.load_state_dict(queue.state_dict())
    assert torch.equal(other.keys, queue.keys) and other.seen == 7
    with pytest.raises(ValueError, match='queue_size=0.*use 1 or more'):
        KeyQueue(0, 3)


def test_projector_averages_cells_and_gives_unit_vectors() -> None:
    projector, features = Projector(6, 16, 8), torch.randn(4, 6, 3, 3)
    embedding = projector(features)
    torch.testing.assert_close(embedding.norm(dim=1), torch.ones(4))
    shuffled = features.flatten(2)[:, :, torch.randperm(9)].unflatten(2, (3, 3))
    torch.testing.assert_close(projector(shuffled), embedding)


def test_prototype_head_gives_cosines() -> None:
    head, cells = PrototypeHead(6, 16, 8, 12), torch.randn(20, 6)
    scores = head(cells)
    vectors = head.layers(cells)
    expected = [
        [F.cosine_similarity(v, d, dim=0) for d in head.directions] for v in vectors
    ]
    torch.testing.assert_close(scores, torch.tensor(expected))
    with torch.no_grad():
        head.directions.mul_(7)
    torch.testing.assert_close(head(cells), scores)


def test_prototype_head_normalises_over_cells_only_for_convolutions() -> None:
    kinds = [
        [type(m).__name__ for m in PrototypeHead(6, batch_norm=b).layers]
        for b in (True, False)
    ]
    assert kinds[0] == [
        'Linear',
        'BatchNorm1d',
        'GELU',
        'Linear',
        'BatchNorm1d',
        'GELU',
        'Linear',
    ]
    assert kinds[1] == ['Linear', 'GELU', 'Linear', 'GELU', 'Linear']


def test_decoder_rebuilds_each_cell_from_its_own_vector() -> None:
    decoder, features = PixelDecoder(6, bands=4), torch.rand(1, 6, 2, 3)
    assert not decoder(features).any(), 'it starts from the mean'
    torch.nn.init.normal_(decoder.layers[0].weight)
    features = torch.zeros(1, 6, 2, 3)
    blank = decoder(features)
    assert blank.shape == (1, 4, 64, 96)
    features[0, :, 1, 2] = 1.0
    changed = (decoder(features) != blank).any(1)[0]
    assert changed[32:, 64:].all() and changed.sum() == 32 * 32
