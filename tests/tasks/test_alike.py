# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""What holds for all tasks: signatures, precision, data, names of classes and bands, logs."""

import inspect
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
import torchgeo.tasks
from chips import SMALL, Chips
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader
from torchgeo.datamodules.utils import collate_fn_detection
from torchgeo.tasks import mixins

from cmid_geo import tasks
from cmid_geo.datamodules.base import collate_boxes
from cmid_geo.models import export_backbone
from cmid_geo.models.weights.sources import read_source
from cmid_geo.ops.value_range import ValueRange
from cmid_geo.predict.checkpoint import open_task

Trainers = Callable[..., Trainer]
TINY: dict[str, Any] = {'backbone': 'test_resnet', 'in_channels': 4}
#: Detectors are slow of what they find and of wide maps.
SPARE = {'fpn_channels': 64, 'detections_per_img': 10}


class Labelled(Chips):
    """Chips of four bands with labels for all tasks; of two dates on request."""

    def __init__(self, dates: bool = False) -> None:
        super().__init__(4, 4)
        self.dates = dates

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        image = self.chips[index]
        mask = torch.zeros(64, 64, dtype=torch.long)
        mask[:, 20:] = 1
        return {
            'image': torch.stack([image, image]) if self.dates else image,
            'mask': mask,
            'label': torch.tensor(1),
        }


class Boxed(Chips):
    """Chips of four bands with a box each."""

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {
            'image': self.chips[index],
            'bbox_xyxy': torch.tensor([[4.0, 4.0, 40.0, 30.0]]),
            'bbox': torch.tensor([[22.0, 17.0, 36.0, 26.0, 0.0]]),
            'label': torch.tensor([1]),
        }


def make(name: str, **options: Any) -> Any:
    torch.manual_seed(0)
    given: dict[str, Any] = {
        'CMID': SMALL | {'in_channels': 4, 'queue_size': 8},
        'Classification': {'model': 'test_resnet', 'in_channels': 4, 'num_classes': 2},
        'SemanticSegmentation': TINY | {'num_classes': 2, 'model': 'unet', 'auxiliary_weight': 0},
        'ChangeDetection': TINY,
        'ObjectDetection': TINY | SPARE | {'num_classes': 3},
        'OrientedDetection': TINY | SPARE | {'num_classes': 3, 'proposals': 100, 'warmup_epochs': 0},
    }[name]  # fmt: skip
    return getattr(tasks, name)(**(given | options))


def data_of(name: str) -> DataLoader:
    if name == 'ObjectDetection':
        return DataLoader(Boxed(4, 4), 2, collate_fn=collate_fn_detection)
    if name == 'OrientedDetection':
        return DataLoader(Boxed(4, 4), 2, collate_fn=collate_boxes)
    return DataLoader(Labelled(name == 'ChangeDetection'), 2)


DOWNSTREAM = ('Classification', 'SemanticSegmentation', 'ChangeDetection', 'ObjectDetection', 'OrientedDetection')  # fmt: skip
ALL = ('CMID', *DOWNSTREAM)


@pytest.mark.parametrize(
    'name', [n for n in tasks.__all__ if hasattr(torchgeo.tasks, n)]
)
def test_positions_of_arguments_are_torchgeo_s(name: str) -> None:
    ours, theirs = (
        list(inspect.signature(getattr(module, name)).parameters)
        for module in (tasks, torchgeo.tasks)
    )
    assert ours[: len(theirs)] == theirs


def test_there_is_something_to_compare_with_torchgeo() -> None:
    assert sum(hasattr(torchgeo.tasks, name) for name in tasks.__all__) >= 4


def test_change_has_no_labels_of_several() -> None:
    with pytest.raises(ValueError, match="num_labels=3 .*no task='multilabel'"):
        make('ChangeDetection', num_labels=3)


@pytest.mark.parametrize(
    ('stage', 'precision'),
    [
        ('fit', 'bf16-true'),
        ('validate', 'bf16-true'),
        ('test', 'bf16-true'),
        ('predict', 'bf16-true'),
        ('fit', '16-true'),
    ],
)
@pytest.mark.parametrize('name', ALL)
def test_half_precision_is_refused(
    name: str, stage: str, precision: str, make_trainer: Trainers
) -> None:
    run = getattr(make_trainer(precision=precision, max_steps=1), stage)
    mixed = precision.replace('true', 'mixed')
    with pytest.raises(
        ValueError,
        match=f"precision='{precision}': {name} .*choose precision='{mixed}'",
    ):
        run(make(name), data_of(name))


@pytest.mark.parametrize('stage', ['fit', 'validate', 'test', 'predict'])
def test_a_stage_without_data(stage: str, make_trainer: Trainers) -> None:
    with pytest.raises(
        ValueError, match=f'nothing to {stage} on: give --data, .*datamodule='
    ):
        getattr(make_trainer(max_steps=1), stage)(make('Classification'))


@pytest.mark.parametrize('name', ['Classification', 'SemanticSegmentation'])
@pytest.mark.parametrize(
    ('options', 'count'),
    [
        ({'num_classes': 3}, '3'),
        ({'task': 'multilabel', 'num_labels': 3, 'loss': 'bce'}, '3'),
        ({'task': 'binary', 'loss': 'bce', 'num_classes': None}, '1 or 2'),
    ],
)
def test_labels_of_another_count(
    name: str, options: dict[str, Any], count: str
) -> None:
    names = ['a', 'b', 'c', 'd']
    with pytest.raises(ValueError, match=f'are 4 names but .* has {count}: give one a'):
        make(name, labels=names, **options)
    assert make(name, labels=names[: int(count[-1])], **options)


@pytest.mark.parametrize('name', ALL)
def test_processes_agree_on_what_is_logged_of_an_epoch(
    name: str, make_trainer: Trainers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Metrics gather by themselves when computed; a number of one process's batch does not."""
    logged: dict[str, bool] = {}
    log = LightningModule.log

    def watch(self: Any, name: str, value: Any, *args: Any, **options: Any) -> None:
        # TorchGeo's mixin logs what its metrics computed
        callers = (frame for frame, _ in traceback.walk_stack(None))
        if not any(f.f_code.co_filename == mixins.__file__ for f in callers):
            logged[name] = options.get('sync_dist', False)
        log(self, name, value, *args, **options)

    monkeypatch.setattr(LightningModule, 'log', watch)
    data, task = data_of(name), make(name)
    for stage in ('validate', 'test'):
        getattr(make_trainer(), stage)(task, data, verbose=False)
    assert any(key.startswith('val_') for key in logged)
    assert [key for key, agreed in logged.items() if not agreed] == []


# ------------------------------------------------------------------ bands


def delivering(bands: tuple[str | int, ...]) -> Any:
    """A datamodule, as far as tasks ask it for bands."""
    count = len(bands)
    return SimpleNamespace(
        value_range=ValueRange(
            bands, (0.0,) * count, (255.0,) * count, (0.5,) * count, (0.2,) * count
        )
    )  # fmt: skip


def set_up(task: Any, datamodule: Any, trainer: Trainer) -> Any:
    """As a fit begins."""
    task.trainer = trainer
    trainer.fit_loop._data_source.instance = datamodule
    trainer.datamodule = datamodule
    task.setup('fit')
    return task


BGRN = ('B02', 'B03', 'B04', 'B08')
RGBN = ('B04', 'B03', 'B02', 'B08')


@pytest.mark.parametrize('name', ALL)
def test_a_checkpoint_knows_the_bands_of_its_data(
    name: str, make_trainer: Trainers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, data = make_trainer(max_steps=1), data_of(name)
    kind = type(make(name))
    setup = kind.setup

    def given(self: Any, stage: str) -> None:
        self.trainer.datamodule = delivering(RGBN)
        setup(self, stage)
        self.trainer.datamodule = None

    monkeypatch.setattr(kind, 'setup', given)
    trainer.fit(make(name), data)
    trainer.save_checkpoint(tmp_path / 'task.ckpt', weights_only=True)
    saved = torch.load(tmp_path / 'task.ckpt', weights_only=True)
    assert saved['hyper_parameters']['bands'] == list(RGBN)
    monkeypatch.undo()
    # Which maps and exports open
    assert open_task(tmp_path / 'task.ckpt').hparams['bands'] == list(RGBN)
    # Restored into a task that knows none, and into one that knows others
    task = make(name)
    make_trainer().validate(task, data, ckpt_path=tmp_path / 'task.ckpt', verbose=False)
    assert task.hparams['bands'] == list(RGBN)
    other = make(name, bands=list(BGRN))
    with pytest.raises(ValueError, match='the run has bands .* the checkpoint knows'):
        make_trainer().validate(
            other, data, ckpt_path=tmp_path / 'task.ckpt', verbose=False
        )


@pytest.mark.parametrize('name', ALL)
def test_data_of_other_bands_than_the_task_knows(
    name: str, make_trainer: Trainers
) -> None:
    task = make(name, bands=['red', 'green', 'blue', 'nir'])
    set_up(task, delivering(RGBN), make_trainer())
    task.on_fit_start()
    task.trainer.datamodule = delivering(BGRN)
    for hook in (task.on_fit_start, task.on_validation_start, task.on_predict_start):
        with pytest.raises(ValueError, match="'B08'] but .* knows .*: give the same"):
            hook()
    # Of files that name none the order is all that there is
    task.trainer.datamodule = delivering((1, 2, 3, 4))
    with pytest.warns(UserWarning, match='do not name their bands.* in this order'):
        task.on_test_start()


def test_positions_stand_for_bands_without_names(make_trainer: Trainers) -> None:
    datamodule = delivering((4, 3, 2, 8))
    task = set_up(make('ChangeDetection'), datamodule, make_trainer())
    assert task.hparams['bands'] == [4, 3, 2, 8]
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        task.on_test_start()
    # One range for bands of any number tells no names, TorchGeo's datamodules do
    task = set_up(make('Classification'), delivering(('all',)), make_trainer())
    assert task.hparams['bands'] is None
    theirs = SimpleNamespace(bands=BGRN)
    task = set_up(make('ChangeDetection'), theirs, make_trainer())
    assert task.hparams['bands'] == list(BGRN)


@pytest.mark.parametrize('name', ALL)
def test_names_of_fewer_bands(name: str, make_trainer: Trainers) -> None:
    task = make(name, bands=['red', 'green', 'blue'])
    with pytest.raises(ValueError, match='are 3 names for in_channels=4: name each'):
        set_up(task, delivering(RGBN), make_trainer())


def weights_of(folder: Path, bands: list[str] | None, name: str = 'test_resnet') -> str:
    """A backbone's file whose filters, mean and std tell the band: 1, 2, 3, ..."""
    count = len(bands or RGBN)
    network = timm.create_model(name, in_chans=count, num_classes=0)
    first = next(m for m in network.modules() if isinstance(m, torch.nn.Conv2d))
    numbers = torch.arange(1.0, count + 1)
    first.weight.data.copy_(numbers.view(1, -1, 1, 1).expand_as(first.weight))
    about = {'model': name, 'bands': bands, 'in_channels': count,
             'mean': (numbers / 10).tolist(), 'std': numbers.tolist()}  # fmt: skip
    state = {f'model.{k}': v for k, v in network.state_dict().items()}
    torch.save({'hyper_parameters': about, 'state_dict': state}, folder / 'b.ckpt')
    return str(folder / 'b.ckpt')


def filters(task: Any) -> list[float]:
    network = task.backbone_module().modules()
    first = next(each for each in network if isinstance(each, torch.nn.Conv2d))
    return first.weight[0, :, 0, 0].tolist()


@pytest.mark.parametrize('name', DOWNSTREAM)
def test_filters_follow_the_names_of_the_data(
    name: str, make_trainer: Trainers, tmp_path: Path
) -> None:
    weights = weights_of(tmp_path, ['red', 'green', 'blue', 'nir'])
    told = make(name, weights=weights, bands=list(BGRN))
    learned = set_up(make(name, weights=weights), delivering(BGRN), make_trainer())
    for task in (told, learned):
        assert filters(task) == [3, 2, 1, 4]
        assert task.mean.tolist() == pytest.approx([0.3, 0.2, 0.1, 0.4])
        assert task.std.tolist() == [3, 2, 1, 4]
    # Once: a second fit finds them in order
    learned.setup('fit')
    assert filters(learned) == [3, 2, 1, 4]
    alike = set_up(make(name, weights=weights), delivering(RGBN), make_trainer())
    assert filters(alike) == [1, 2, 3, 4]


def test_filters_of_other_bands_are_refused(
    make_trainer: Trainers, tmp_path: Path
) -> None:
    weights = weights_of(tmp_path, ['R', 'G', 'B'])
    with pytest.raises(ValueError, match=r"ChangeDetection\(bands=\['B02', 'B03'"):
        set_up(
            make('ChangeDetection', weights=weights), delivering(BGRN), make_trainer()
        )
    told = make('ChangeDetection', weights=weights, bands=list(BGRN))
    assert filters(told) == [3, 2, 1, 0]
    # A band that is not there has the mean of the others
    assert told.mean.tolist() == pytest.approx([0.3, 0.2, 0.1, 0.2])
    # Bands over and over, as timm has them, cross nothing here
    fits = set_up(
        make('ChangeDetection', weights=weights), delivering(RGBN), make_trainer()
    )
    assert filters(fits) == pytest.approx([0.75, 1.5, 2.25, 0.75])
    task = make('ChangeDetection', weights=weights)
    with pytest.warns(UserWarning, match='filters were taken in order'):
        set_up(task, delivering(('VV', 'VH', 'HH', 'HV')), make_trainer())


@pytest.mark.parametrize('name', DOWNSTREAM)
@pytest.mark.parametrize('bands', [[1, 2, 3, 4], ['VV', 'VH', 'HH', 'HV']])
def test_what_an_earlier_fit_learned_of_bands_is_no_obstacle(
    name: str, bands: list[Any], tmp_path: Path
) -> None:
    """The command gives a checkpoint's hyperparameters along with the user's weights."""
    weights = weights_of(tmp_path, ['red', 'green', 'blue', 'nir'])
    if isinstance(bands[0], str):
        with pytest.warns(UserWarning, match=r"name \['red'.*taken in order for \['VV"):
            task = make(name, weights=weights, bands=bands)
    else:
        task = make(name, weights=weights, bands=bands)
    assert filters(task) == [1, 2, 3, 4]
    assert task.hparams['bands'] == bands


def test_bands_that_earlier_versions_counted_are_positions(tmp_path: Path) -> None:
    """'B1', 'B2', ... stood for bands that their files did not name."""
    counted = ['B1', 'B2', 'B3', 'B4']
    trainer = Trainer(accelerator='cpu', logger=False, enable_checkpointing=False)
    task = make('CMID', bands=counted)
    trainer.strategy.connect(task)
    path = tmp_path / 'task.ckpt'
    trainer.save_checkpoint(path, weights_only=True)
    # Names, where a file of today says so: Landsat's are such
    assert open_task(path).hparams['bands'] == counted
    content = torch.load(path, weights_only=True)
    del content['cmid_geo_version']
    torch.save(content, path)
    assert open_task(path).hparams['bands'] == [1, 2, 3, 4]
    assert read_source(path).metadata['bands'] == [1, 2, 3, 4]
    again = make('CMID')
    again.on_load_checkpoint(content)
    assert again.hparams['bands'] == [1, 2, 3, 4]
    exported = export_backbone(task, tmp_path / 'backbone.ckpt')
    assert read_source(exported).metadata['bands'] == counted
    content = torch.load(exported, weights_only=True)
    del content['hyper_parameters']['global_pool']
    assert read_source(content).metadata['bands'] == [1, 2, 3, 4]


def test_weights_that_name_no_bands_are_taken_in_order(tmp_path: Path) -> None:
    weights = weights_of(tmp_path, None)
    with pytest.warns(UserWarning, match='the weights do not name their bands'):
        task = make('ChangeDetection', weights=weights, bands=list(BGRN))
    assert filters(task) == [1, 2, 3, 4] and task.hparams['bands'] == list(BGRN)


def test_pretraining_goes_on_with_the_same_bands(
    make_trainer: Trainers, tmp_path: Path
) -> None:
    weights = weights_of(tmp_path, ['red', 'green', 'blue', 'nir'], 'resnet_test')
    match = r"SceneDataModule\(bands=\['B04', 'B03', 'B02', 'B08'\]\)"
    with pytest.raises(ValueError, match=match):
        set_up(make('CMID', weights=weights), delivering(BGRN), make_trainer())
    task = set_up(make('CMID', weights=weights), delivering(RGBN), make_trainer())
    assert task.hparams['bands'] == list(RGBN)
