# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from dotafiles import BOXES, NAMES, write_dota, write_image, write_labels
from torchgeo.datasets import DOTA

from cmid_geo.datamodules.oriented import DOTADataModule, OrientedDataModule
from cmid_geo.datasets.dota import OrientedChips, find_pairs, read_dota
from cmid_geo.ops.rotated_boxes import boxes_from_corners
from cmid_geo.tasks.oriented import OrientedDetection


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for index in range(4):
        write_image(tmp_path / 'images' / f'P{index}.png')
        write_labels(tmp_path / 'labelTxt' / f'P{index}.txt', BOXES if index else ())
    return tmp_path


@pytest.fixture
def dota(tmp_path: Path) -> Path:
    return write_dota(tmp_path)


class TestReader:
    def test_boxes_classes_and_difficulty(self, tmp_path: Path) -> None:
        write_labels(tmp_path / 'a.txt')
        found = read_dota(tmp_path / 'a.txt', NAMES)
        assert found.labels.tolist() == [2, 1, 2]
        assert found.difficult.tolist() == [False, True, False]
        boxes = boxes_from_corners(torch.from_numpy(found.corners).reshape(-1, 4, 2))
        assert boxes[0].tolist() == pytest.approx([20, 20, 24, 8, 0.5], abs=2e-3)

    def test_headers_are_skipped_where_there_are_any(self, tmp_path: Path) -> None:
        for header in (True, False):
            write_labels(tmp_path / 'a.txt', header=header)
            assert len(read_dota(tmp_path / 'a.txt', NAMES).labels) == 3
        (tmp_path / 'b.txt').write_text(
            '\ufeffimagesource:x\ngsd:null\n\n', encoding='utf-8'
        )
        assert read_dota(tmp_path / 'b.txt', NAMES).corners.shape == (0, 8)
        (tmp_path / 'c.txt').write_text('1 1 5 1 5 4 1 4 ship\n')
        assert read_dota(tmp_path / 'c.txt', NAMES).difficult.tolist() == [False]

    @pytest.mark.parametrize(
        ('line', 'message'),
        [
            ('1 1 5 1 5 4 1 ship 0', r"a.txt, line 2: '1 1 5 1 5 4 1 ship 0' is no box"),
            ('1 1 5 1 5 4 1 4', 'line 2: .* is no box'),
            ('1 1 5 1 5 4 1 4 ship 0 9', 'line 2: .* is no box'),
            ('1 1 5 1 5 4 1 x ship 0', 'line 2: .* is no box'),
            ('1 1 5 1 5 4 1 nan ship 0', 'with finite numbers'),
            ('1 1 5 1 5 4 1 4 ship hard', 'difficulty of 0 or 1'),
            ('1 1 5 1 5 4 1 4 tank 0', r"line 2: category 'tank' is not among \['plane', 'ship'\]"),
        ],
    )  # fmt: skip
    def test_bad_lines_are_named(self, tmp_path: Path, line: str, message: str) -> None:
        (tmp_path / 'a.txt').write_text(f'1 1 5 1 5 4 1 4 ship 0\n{line}\n')
        with pytest.raises(ValueError, match=message):
            read_dota(tmp_path / 'a.txt', NAMES)

    def test_pairs(self, folder: Path) -> None:
        assert [image.stem for image, _ in find_pairs(folder)] == [
            'P0',
            'P1',
            'P2',
            'P3',
        ]
        (folder / 'labelTxt' / 'P2.txt').unlink()
        with pytest.raises(
            ValueError, match='1 of 4 images have no labels, such as .*P2.txt'
        ):
            find_pairs(folder)
        with pytest.raises(ValueError, match='holds no images'):
            find_pairs(folder / 'labelTxt')


class TestChips:
    def test_pixels_and_boxes_are_where_the_window_is(self, folder: Path) -> None:
        chips = OrientedChips(find_pairs(folder), NAMES, 48, 16)
        assert len(chips) == 4 * 3 * 2
        seen = 0
        with warnings.catch_warnings():
            warnings.simplefilter('error')
            samples = [chips[index] for index in range(len(chips))]
        for sample in samples:
            col, row, width, height = sample['window'].tolist()
            assert (width, height) == (48, 48) and sample['image'].shape == (3, 48, 48)
            inside = min(48, 100 - col), min(48, 70 - row)
            assert sample['image'][0, 0, : inside[0]].tolist() == list(
                range(col, col + inside[0])
            )
            assert sample['image'][1, : inside[1], 0].tolist() == list(
                range(row, row + inside[1])
            )
            for box, label in zip(sample['bbox'], sample['label'], strict=True):
                x, y, w, _, _ = boxes_from_corners(box.reshape(1, 4, 2))[0].tolist()
                known = [b for name, b, _ in BOXES if NAMES.index(name) + 1 == label]
                assert any(
                    (x + col, y + row, w) == pytest.approx(b[:3], abs=0.01)
                    for b in known
                )
                seen += 1
        assert seen >= 9
        assert {sample['index'].item() for sample in samples} == {0, 1, 2, 3}

    def test_shares_decide(self, tmp_path: Path) -> None:
        write_image(tmp_path / 'images' / 'a.png', 64, 32)
        # 40, 70 and 100 percent in the left chip; the rest in the right one; one has no area
        boxes = [('ship', (x, 10, 20.0, 6, 0), 0) for x in (34.0, 28, 20)] + [
            ('ship', (9, 9, 5.0, 0, 0), 0)
        ]
        write_labels(tmp_path / 'labelTxt' / 'a.txt', boxes)
        pairs = find_pairs(tmp_path)
        counts = {
            share: [len(sample['bbox']) for sample in OrientedChips(pairs, NAMES, 32, 0, min_share=share)]
            for share in (0.25, 0.7, 1.0)
        }  # fmt: skip
        assert counts == {0.25: [3, 2], 0.7: [2, 0], 1.0: [1, 0]}
        whole = OrientedChips(pairs, NAMES, 32, 0)[0]['bbox']
        assert whole[:, ::2].max() == 38  # beyond the chip, not cut

    def test_small_images_are_filled_up(self, folder: Path) -> None:
        sample = OrientedChips(find_pairs(folder), NAMES, 128, 0)[1]
        assert sample['image'].shape == (3, 128, 128)
        assert (
            not sample['image'][:, 70:].any() and not sample['image'][:, :, 100:].any()
        )
        assert len(sample['bbox']) == 3 and sample['difficult'].tolist() == [
            False,
            True,
            False,
        ]

    def test_empty_chips(self, folder: Path) -> None:
        chips = OrientedChips(find_pairs(folder), NAMES, 48, 16, skip_empty=True)
        assert {chips[i]['index'].item() for i in range(len(chips))} == {1, 2, 3}
        empty = OrientedChips(find_pairs(folder), NAMES, 48, 16)[0]
        assert empty['bbox'].shape == (0, 8) and empty['label'].dtype == torch.long

    def test_bands(self, tmp_path: Path) -> None:
        write_image(tmp_path / 'images' / 'a.png', mode='L')
        write_labels(tmp_path / 'labelTxt' / 'a.txt')
        gray = OrientedChips(find_pairs(tmp_path), NAMES, 64, 0)[0]['image']
        assert torch.equal(gray[0], gray[1]) and gray[0].max() == 63
        write_image(tmp_path / 'images' / 'a.png')
        swapped = OrientedChips(find_pairs(tmp_path), NAMES, 64, 0, bands=(2, 1))[0][
            'image'
        ]
        assert swapped[0, :, 0].tolist() == list(range(64))
        with pytest.raises(ValueError, match=r'a.png has 3 bands but bands=\(1, 4\)'):
            OrientedChips(find_pairs(tmp_path), NAMES, 64, 0, bands=(1, 4))[0]

    def test_bad_numbers_and_files(self, folder: Path) -> None:
        pairs = find_pairs(folder)
        for options in ({'overlap': 64}, {'overlap': -1}, {'min_share': 0.0}):
            with pytest.raises(ValueError, match='patch_size=64'):
                OrientedChips(
                    pairs, NAMES, **({'patch_size': 64, 'overlap': 0} | options)
                )
        (folder / 'images' / 'P1.png').write_bytes(b'no image')
        with pytest.raises(ValueError, match=r'cannot read .*P1.png.*: replace it'):
            OrientedChips(pairs, NAMES, 64, 0)


class TestFolders:
    def make(self, folder: Path, **options: Any) -> OrientedDataModule:
        defaults = {
            'train': str(folder),
            'val': str(folder),
            'classes': NAMES,
            'patch_size': 64,
            'overlap': 20,
        }
        return OrientedDataModule(**(defaults | options))

    def test_batches_are_scaled_lists(self, folder: Path) -> None:
        module = self.make(folder, low=[0, 0, 5], high=[100, 50, 9], batch_size=4)
        module.setup('fit')
        batch = next(iter(module.val_dataloader()))
        assert batch['image'].max() > 60
        scaled = module.on_after_batch_transfer(batch, 0)
        assert scaled['image'].shape == (4, 3, 64, 64) and len(scaled['bbox']) == 4
        assert scaled['image'][0, 0, 0, :3].tolist() == pytest.approx([0, 0.01, 0.02])
        assert scaled['image'][0, 1, 60, 0] == 1 and scaled['image'][0, 2, 0, 0] == 0.5
        OrientedDetection(backbone='resnet_test', num_classes=3).check_labels(scaled)

    def test_training_skips_empty_chips_and_validation_does_not(
        self, folder: Path
    ) -> None:
        module = self.make(folder)
        module.setup('fit')
        module.setup('test')
        train, val = module.train_dataset, module.val_dataset
        assert all(len(train[i]['bbox']) for i in range(len(train)))
        assert len(val) == len(module.test_dataset) == 4 * 4 > len(train)

    def test_fits_tests_and_turns(
        self, folder: Path, tmp_path: Path, monkeypatch: Any
    ) -> None:
        from lightning.pytorch import Trainer

        module = self.make(folder, batch_size=2)
        task = OrientedDetection(
            backbone='resnet_test', num_classes=3, fpn_channels=16, head_channels=16, proposals=20,
            warmup_steps=0,
        )  # fmt: skip
        turned, turns = [], module.augmentation.forward
        monkeypatch.setattr(
            module.augmentation,
            'forward',
            lambda batch: turned.append(1) or turns(batch),
        )
        trainer = Trainer(
            max_steps=2, accelerator='cpu', logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, limit_val_batches=2,
            limit_test_batches=2,
        )  # fmt: skip
        trainer.fit(task, datamodule=module)
        assert len(turned) == 2
        assert task.high.tolist() == [255] * 3
        found = trainer.test(task, datamodule=module, verbose=False)
        assert 'test_map_50' in found[0] and len(turned) == 2

    def test_other_bands_are_refused_clearly(self, folder: Path) -> None:
        from lightning.pytorch import Trainer

        task = OrientedDetection(backbone='resnet_test', num_classes=3, in_channels=4)
        trainer = Trainer(fast_dev_run=True, accelerator='cpu', logger=False)
        with pytest.raises(
            ValueError, match=r'3 bands but OrientedDetection\(in_channels=4\)'
        ):
            trainer.fit(task, datamodule=self.make(folder))

    def test_more_classes_than_the_task_knows(self, folder: Path) -> None:
        from lightning.pytorch import Trainer

        task = OrientedDetection(
            backbone='resnet_test',
            num_classes=2,
            warmup_steps=0,
            fpn_channels=16,
            head_channels=16,
            proposals=20,
        )
        trainer = Trainer(
            max_steps=9, accelerator='cpu', logger=False, enable_checkpointing=False
        )
        with pytest.raises(ValueError, match=r'label holds \[2\] but num_classes=2'):
            trainer.fit(task, datamodule=self.make(folder, batch_size=4))

    def test_bad_numbers_are_refused(self, folder: Path) -> None:
        with pytest.raises(
            ValueError,
            match='high has 2 values for 3 bands.*give one number for all, or one a band',
        ):
            self.make(folder, high=[1.0, 2.0])
        with pytest.raises(ValueError, match='low=255.0 must be less than high'):
            self.make(folder, low=255.0)
        with pytest.raises(
            ValueError, match='training chips of 4 images are less than a batch of 99'
        ):
            self.make(folder, batch_size=99).setup('fit')
        with pytest.raises(
            ValueError,
            match=r'train=None: there is nothing to train on: give OrientedDataModule\(train=',
        ):
            self.make(folder, train=None).setup('fit')


class TestDOTA:
    def test_boxes_are_those_of_torchgeo(self, dota: Path) -> None:
        module = DOTADataModule(str(dota), patch_size=128, overlap=0, augment=False)
        module.setup('fit')
        theirs = DOTA(str(dota), 'train', '1.0')
        assert len(module.train_dataset) == len(theirs) == 3
        for index in range(3):
            ours, sample = module.train_dataset[index], theirs[index]
            torch.testing.assert_close(ours['bbox'], sample['bbox'])
            assert torch.equal(ours['label'], sample['labels'] + 1)
            assert torch.equal(ours['image'][:, :70, :100], sample['image'])
        assert (
            module.classes[ours['label'][0] - 1] == 'ship' and len(module.classes) == 15
        )

    def test_splits(self, dota: Path) -> None:
        module = DOTADataModule(str(dota), patch_size=128, overlap=0)
        for stage in ('fit', 'test', 'predict'):
            module.setup(stage)
        train = {image.stem for image, _ in module.train_dataset.pairs}
        val = {image.stem for image, _ in module.val_dataset.pairs}
        assert train == {'Ptrain0', 'Ptrain1', 'Ptrain2'} and val == {
            'Pval0',
            'Pval1',
            'Pval2',
        }
        assert {image.stem for image, _ in module.test_dataset.pairs} == val

    def test_few_labels(self, dota: Path) -> None:
        module = DOTADataModule(
            str(dota), patch_size=128, overlap=0, label_fraction=0.34, batch_size=1
        )
        module.setup('fit')
        assert len(module.train_dataset) == 1 and len(module.val_dataset) == 3

    def test_missing_data(self, tmp_path: Path) -> None:
        from torchgeo.datasets import DatasetNotFoundError

        with pytest.raises(DatasetNotFoundError):
            DOTADataModule(str(tmp_path / 'nowhere')).setup('fit')
