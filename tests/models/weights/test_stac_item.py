# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""STAC items of exports, validated by pystac and, where it is installed, by stac-model."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import networks  # noqa: F401
import onnxruntime
import pystac
import pytest
import torch
from lightning.pytorch import Trainer
from pystac.extensions.mlm import ModelInput, ModelOutput
from pystac.validation.stac_validator import JsonSchemaSTACValidator

from cmid_geo import SemanticSegmentation
from cmid_geo.__main__ import main
from cmid_geo.models.weights import write_stac_item
from cmid_geo.models.weights.stac_item import SCHEMA
from cmid_geo.tasks import CMID

EXTENT = {
    'scenes': 2, 'bbox': [11.0, 47.5, 12.5, 48.25], 'start': '2019-06-01', 'end': '2021-09-30',
    'resolution': 10.0,
}  # fmt: skip
SQUARE = [[11.0, 47.5], [12.5, 47.5], [12.5, 48.25], [11.0, 48.25], [11.0, 47.5]]

NUMBERS = {'type': 'array', 'minItems': 1, 'items': {'type': 'integer', 'minimum': -1}}
ORDER = {'type': 'array', 'minItems': 1, 'uniqueItems': True, 'items': {'pattern': '^[a-z-_]+$'}}  # fmt: skip
TASKS = {'type': 'array', 'uniqueItems': True, 'items': {'enum': [
    'regression', 'classification', 'scene-classification', 'detection', 'object-detection', 'segmentation',
    'semantic-segmentation', 'instance-segmentation', 'panoptic-segmentation', 'similarity-search', 'generative',
    'image-captioning', 'super-resolution', 'downscaling',
]}}  # fmt: skip
STRUCTURE = {
    'required': ['shape', 'dim_order', 'data_type'],
    'properties': {'shape': NUMBERS, 'dim_order': ORDER, 'data_type': {'enum': ['uint8', 'uint16', 'float32']}},
}  # fmt: skip


def scaling(kind: str, *fields: str) -> dict[str, Any]:
    values = {name: {'type': 'number'} for name in fields}
    return {'required': ['type', *fields], 'properties': {'type': {'const': kind}} | values}  # fmt: skip


#: What the extension demands of an item, of the fields that ours have. The network has the whole of it.
RULES: dict[str, Any] = {
    '$schema': 'http://json-schema.org/draft-07/schema#', '$id': SCHEMA, 'type': 'object',
    'properties': {
        'stac_extensions': {'contains': {'const': SCHEMA}},
        'properties': {
            # With 'bands' in an input, STAC 1.1 describes them in the item
            'required': ['mlm:name', 'mlm:architecture', 'mlm:tasks', 'mlm:input', 'mlm:output', 'bands'],
            'properties': {
                'bands': {'type': 'array', 'minItems': 1, 'items': {'required': ['name']}},
                'mlm:name': {'type': 'string', 'pattern': r'^[a-zA-Z][a-zA-Z0-9_.\-\s]+[a-zA-Z0-9]$'},
                'mlm:architecture': {'type': 'string', 'minLength': 1},
                'mlm:framework': {'enum': ['PyTorch', 'ONNX']},
                'mlm:tasks': TASKS,
                'mlm:input': {'type': 'array', 'minItems': 1, 'items': {
                    'required': ['name', 'bands', 'input'],
                    'properties': {
                        'bands': {'type': 'array', 'minItems': 1, 'items': {'type': 'string', 'minLength': 1}},
                        'input': STRUCTURE,
                        'value_scaling': {'oneOf': [{'type': 'null'}, {'type': 'array', 'minItems': 1, 'items': {
                            'oneOf': [scaling('min-max', 'minimum', 'maximum'), scaling('z-score', 'mean', 'stddev')],
                        }}]},
                    },
                }},
                'mlm:output': {'type': 'array', 'minItems': 1, 'items': {
                    'required': ['name', 'tasks', 'result'],
                    'properties': {'tasks': TASKS, 'result': STRUCTURE, 'classification:classes': {
                        'type': 'array', 'minItems': 1, 'items': {
                            'required': ['value', 'name', 'description'],
                            'properties': {'value': {'type': 'integer'}, 'name': {'pattern': '^[0-9A-Za-z-_]+$'}},
                        },
                    }},
                }},
            },
            'patternProperties': {r'^(?!mlm:)': {}}, 'additionalProperties': False,
        },
        'assets': {'minProperties': 1, 'additionalProperties': {
            'required': ['roles', 'mlm:artifact_type', 'type'],
            'properties': {'roles': {'contains': {'const': 'mlm:model'}}},
            # The model as a whole is described in the item alone
            'not': {'anyOf': [{'required': [f'mlm:{n}']} for n in ('name', 'input', 'output', 'hyperparameters')]},
        }},
    },
}  # fmt: skip


def validate(content: dict[str, Any]) -> pystac.Item:
    """Validate by pystac: STAC's own schema comes with it, the extension's is the rules above."""
    validator = JsonSchemaSTACValidator()
    validator.schema_cache[SCHEMA] = RULES
    item = pystac.Item.from_dict(copy.deepcopy(content))
    assert SCHEMA in item.stac_extensions
    assert item.validate(validator)[-1] == SCHEMA
    for given in content['properties']['mlm:input']:
        ours = ModelInput(given)
        assert len(ours.bands) == ours.input.shape[1]
        assert len(ours.input.shape) == len(ours.input.dim_order)
    for given in content['properties']['mlm:output']:
        result = ModelOutput(given).result
        assert len(result.shape) == len(result.dim_order)
    return item


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.with_name(f'{path.name}.stac.json').read_text())


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    def save(task: Any, extent: Any = EXTENT) -> Path:
        task.training_data = extent
        path = tmp_path / 'task.ckpt'
        trainer = Trainer(accelerator='cpu', logger=False, enable_checkpointing=False)
        trainer.strategy.connect(task)
        trainer.save_checkpoint(path, weights_only=True)
        return path

    return save


@pytest.fixture
def pretrained(make_task: Callable[..., CMID]) -> CMID:
    task = make_task(in_channels=4)
    task.hparams['bands'] = ['red', 'green', 'blue', 'nir']
    with torch.no_grad():
        task.low.copy_(torch.tensor([10.0, 20, 30, 40]))
        task.high.copy_(torch.tensor([1000.0, 2000, 3000, 4000]))
        task.mean.copy_(torch.tensor([0.2, 0.3, 0.4, 0.5]))
        task.std.fill_(0.25)
    return task


@pytest.mark.parametrize(
    ('name', 'framework', 'role'),
    [
        ('backbone.ckpt', 'PyTorch', 'mlm:weights'),
        ('backbone.safetensors', 'PyTorch', 'mlm:weights'),
        ('backbone.onnx', 'ONNX', 'mlm:compiled'),
        ('backbone.ts', 'PyTorch', 'mlm:compiled'),
    ],
)
def test_a_backbone_has_an_item(
    name: str, framework: str, role: str, pretrained: CMID, save: Callable[..., Path],
    tmp_path: Path, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    path = tmp_path / 'out' / name
    main(['export', str(save(pretrained)), str(path)])
    assert f'and {name}.stac.json' in capsys.readouterr().out
    assert {each.name for each in path.parent.iterdir()} == {name, f'{name}.stac.json'}
    item = validate(read(path))
    assert item.stac_extensions == [SCHEMA] and read(path)['stac_version'] == '1.1.0'
    assert item.geometry == {'type': 'Polygon', 'coordinates': [SQUARE]}
    assert item.bbox == EXTENT['bbox'] and item.datetime is None
    about = item.properties
    assert about['start_datetime'] == '2019-06-01T00:00:00Z'
    assert about['end_datetime'] == '2021-09-30T23:59:59Z'
    assert about['mlm:architecture'] == 'resnet_test'
    assert about['mlm:framework'] == framework
    (taken,), (given,) = about['mlm:input'], about['mlm:output']
    assert taken['bands'] == ['red', 'green', 'blue', 'nir']
    assert taken['input']['shape'] == [-1, 4, -1, -1]
    dim = pretrained.student.backbone.num_features
    assert given['result']['shape'] == [-1, dim, -1, -1]
    asset = item.assets['model']
    assert asset.href == f'./{name}' and asset.roles == ['mlm:model', role]
    # Of tensors, what makes raw values the network's; programs do that themselves
    raw = torch.tensor([500.0, 600, 700, 800])
    if role == 'mlm:weights':
        found = [
            (x - s['mean']) / s['stddev'] for x, s in zip(raw, taken['value_scaling'])
        ]
        low, high, mean, std = (getattr(pretrained, n) for n in ('low', 'high', 'mean', 'std'))  # fmt: skip
        expected = ((raw - low) / (high - low) - mean) / std
        assert torch.allclose(torch.stack(found), expected, atol=1e-5)
    else:
        assert taken['value_scaling'] is None


@pytest.mark.parametrize('extent', [None, {**EXTENT, 'bbox': None}, {**EXTENT, 'start': None, 'end': None}])  # fmt: skip
def test_what_is_not_known_of_the_training_is_not_made_up(
    extent: Any, pretrained: CMID, save: Callable[..., Path], tmp_path: Path
) -> None:
    path = tmp_path / '1.ckpt'
    main(['export', str(save(pretrained, extent)), str(path)])
    content = read(path)
    item = validate(content)
    placed = extent is not None and extent['bbox'] is not None
    assert (item.geometry is not None) == ('bbox' in content) == placed
    dated = extent is not None and extent['start'] is not None
    assert (item.datetime is None) == ('start_datetime' in content['properties']) == dated  # fmt: skip
    assert dated or content['properties']['datetime'] == content['properties']['created']  # fmt: skip


@pytest.mark.parametrize('divisor', [1, 255])
def test_a_task_for_qgis_has_an_item(
    divisor: int, save: Callable[..., Path], tmp_path: Path
) -> None:
    labels = ['open water', 'wood', 'town']
    task = SemanticSegmentation('unet', 'resnet_test', in_channels=3, num_classes=3, labels=labels)  # fmt: skip
    task.low.fill_(100)
    task.high.fill_(4000)
    path = tmp_path / 'out' / 'land.onnx'
    main(['export', str(save(task)), str(path), '--size', '64', '--divisor', str(divisor)])  # fmt: skip
    item = validate(read(path))
    assert item.bbox == EXTENT['bbox']
    about = item.properties
    assert about['mlm:architecture'] == 'unet on resnet_test'
    assert about['mlm:tasks'] == ['semantic-segmentation']
    (taken,), (given,) = about['mlm:input'], about['mlm:output']
    assert [band['name'] for band in about['bands']] == taken['bands']
    assert taken['bands'] == ['band 1', 'band 2', 'band 3']
    classes = given['classification:classes']
    assert [each['description'] for each in classes] == labels
    assert [each['name'] for each in classes] == ['open_water', 'wood', 'town']
    # The item tells how the program is run
    session = onnxruntime.InferenceSession(path)
    image = torch.randint(0, 5000, [2, *taken['input']['shape'][1:]]).float()
    for step in taken['value_scaling'] or ():
        image = (image - step['minimum']) / (step['maximum'] - step['minimum'])
    (found,) = session.run([given['name']], {taken['name']: image.numpy()})
    assert list(found.shape[1:]) == given['result']['shape'][1:]
    assert (taken['value_scaling'] is None) == (divisor == 1)
    if divisor > 1:
        assert taken['value_scaling'][0]['maximum'] == pytest.approx(255)


def test_stac_model_reads_it(pretrained: CMID, save: Callable[..., Path], tmp_path: Path) -> None:  # fmt: skip
    stac_model = pytest.importorskip('stac_model.schema', reason='pip install stac-model: it checks the extension')  # fmt: skip
    path = tmp_path / 'backbone.safetensors'
    main(['export', str(save(pretrained)), str(path)])
    about = read(path)['properties']
    known = stac_model.MLModelProperties.model_validate(about)
    (taken,), (given,) = known.input, known.output
    assert taken.input.shape == [-1, 4, -1, -1] and len(taken.value_scaling) == 4
    assert {each.type for each in taken.value_scaling} == {'z-score'}
    assert given.tasks == {'similarity-search'} and known.framework == 'PyTorch'
    with pytest.raises(ValueError, match='dim_order'):
        stac_model.MLModelProperties.model_validate({**about, 'mlm:input': [{**about['mlm:input'][0], 'input': {'shape': [1]}}]})  # fmt: skip


@pytest.mark.parametrize(
    ('place', 'value'),
    [
        (('properties', 'mlm:name'), '1'),
        (('properties', 'mlm:inputs'), []),
        (('properties', 'datetime'), None),
        (('properties', 'mlm:input', 0, 'value_scaling', 0), {'type': 'z-score', 'mean': 1}),
        (('assets', 'model', 'roles'), ['data']),
        (('bbox',), None),
    ],
)  # fmt: skip
def test_the_rules_have_teeth(
    place: tuple[Any, ...], value: Any, pretrained: CMID, save: Callable[..., Path],
    tmp_path: Path,
) -> None:  # fmt: skip
    path = tmp_path / 'backbone.ckpt'
    main(['export', str(save(pretrained, {**EXTENT, 'start': None})), str(path)])
    content = part = read(path)
    validate(content)
    for key in place[:-1]:
        part = part[key]
    part[place[-1]] = value
    with pytest.raises((pystac.STACError, pystac.STACValidationError)):
        validate(content)


def test_a_file_that_tells_nothing_is_refused(tmp_path: Path) -> None:
    path = tmp_path / 'raw.ckpt'
    torch.save({'weight': torch.zeros(1)}, path)
    with pytest.raises(ValueError, match='by cmid-geo export'):
        write_stac_item(path)
