# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

from pathlib import Path

import pytest
import yaml
from dotafiles import write_dota

from cmid_geo.__main__ import main
from cmid_geo.models import get_weight

CONFIGS = Path(__file__).parent.parent / 'configs'
TINY = [
    '--trainer.accelerator=cpu', '--trainer.logger=false', '--trainer.precision=32-true',
    '--trainer.max_epochs=1', '--trainer.limit_train_batches=1', '--trainer.limit_val_batches=1',
    '--trainer.enable_model_summary=false', '--data.patch_size=64', '--data.overlap=16',
    '--data.num_workers=0', '--model.weights=null', '--model.warmup_steps=0',
    '--model.proposals=20', '--model.fpn_channels=16', '--model.head_channels=16',
]  # fmt: skip


@pytest.mark.parametrize('name', ['resnet50', 'swin_base'])
def test_configs_fit(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    config = CONFIGS / f'oriented_{name}.yaml'
    given = yaml.safe_load(config.read_text())['model']['init_args']
    assert get_weight(given['weights']).meta['model'] == given['backbone']
    # Of a few million parameters: checkpoints are written
    small = {'resnet50': 'resnet10t', 'swin_base': 'convnext_atto'}[name]
    main(['fit', f'--config={config}', f'--data.root={write_dota(tmp_path / "dota")}', *TINY,
          f'--model.backbone={small}'])  # fmt: skip
    names = {path.name for path in tmp_path.rglob('*.ckpt')}
    assert 'last.ckpt' in names and len(names) == 2
    for path in tmp_path.rglob('*.ckpt'):
        path.unlink()
