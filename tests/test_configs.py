# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Configurations of the downstream tasks, as a user starts them."""

from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from rasterfiles import noise, write

from cmid_geo.__main__ import main

CONFIGS = Path(__file__).parent.parent / 'configs'
#: Makes any of them small; the weights cannot be fetched here.
TINY = [
    '--trainer.accelerator=cpu', '--trainer.precision=32-true', '--trainer.fast_dev_run=true',
    '--trainer.enable_model_summary=false', '--model.weights=null', '--data.num_workers=0',
    '--data.batch_size=2',
]  # fmt: skip
SWIN = 'swin_test'


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ('name', 'model'), [('resnet50', 'test_resnet'), ('swin_base', SWIN)]
)
def test_classify(name: str, model: str, folder: Path) -> None:
    for label in ('a', 'b'):
        (folder / 'train' / label).mkdir(parents=True)
        for number in range(20):
            image = Image.fromarray(np.full((40, 40, 3), number, np.uint8))
            image.save(folder / 'train' / label / f'{number}.png')
    config = CONFIGS / f'classification_{name}.yaml'
    assert (
        'MILLIONAID_RGB'
        in yaml.safe_load(config.read_text())['model']['init_args']['weights']
    )
    main(['fit', f'--config={config}', *TINY, f'--data.root={folder}', '--data.size=64',
          f'--model.model={model}', '--data.label_fraction=0.5'])  # fmt: skip


@pytest.mark.parametrize(
    ('name', 'backbone'), [('resnet50', 'test_resnet'), ('swin_base', SWIN)]
)
def test_segment(
    name: str, backbone: str, folder: Path, capsys: pytest.CaptureFixture
) -> None:
    write(folder / 'images' / 'a.tif', noise(3, 128, 128))
    write(folder / 'masks' / 'a.tif', noise(1, 128, 128) // 40)
    main(['fit', f'--config={CONFIGS / f"segmentation_{name}.yaml"}', *TINY, '--data.patch_size=64',
          f'--data.images={folder / "images"}', f'--data.masks={folder / "masks"}',
          '--data.length=4', f'--model.backbone={backbone}', '--data.label_fraction=0.5',
          '--model.decoder_options={decoder_channels: 16}'])  # fmt: skip
    assert 'of 4 labelled chips are trained on' in capsys.readouterr().out
