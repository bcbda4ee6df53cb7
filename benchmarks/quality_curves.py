# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Accuracy over cost of what quality.py trained: a table, a file of all numbers and a figure.

    python benchmarks/quality_curves.py runs/480 runs/1920 --csv benchmarks/results/quality.csv --figure docs/quality.png
    python benchmarks/quality_curves.py benchmarks/results/quality.csv --figure docs/quality.png

Scores are those of the exported file on the held-out training images. The figure draws a line
through the trial of each method that ran most often, with the range of its seeds, or the best one
of those that ran as often; all other trials are dots.
"""

import argparse
import csv
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

#: Names of methods, in the order of their colours.
METHODS = {
    'cmid': 'CMID', 'simclr': 'SimCLR', 'mocov2': 'MoCo v2', 'mocov3': 'MoCo v3', 'byol': 'BYOL',
    'dino': 'DINO', 'mae': 'MAE (ViT)', 'random': 'random weights', 'stats': 'image statistics',
}  # fmt: skip
SCORES = ('linear', 'linear_10', 'knn')


def number(text: str) -> float:
    """Whole numbers stay whole, so that a file written again is the same."""
    return float(text) if '.' in text else int(text)


def rows_of(path: Path) -> list[dict[str, Any]]:
    """Results of a folder of trials, or of a file written from them before."""
    if path.is_file():
        with path.open(newline='') as file:
            return [
                {
                    k: v if k in ('trial', 'method') else number(v)
                    for k, v in row.items()
                }
                for row in csv.DictReader(file)
            ]
    rows = []
    for file in sorted(path.glob('*.json')):
        found = json.loads(file.read_text())
        # Pixels have no exported file
        scores = found.get('exported', found['student'])
        seconds, epochs = found.get('seconds', 0.0), found.get('epochs', 0.0)
        row = {'trial': found['name'], 'method': found['method'], 'seed': found['seed']}
        row |= {'seconds': round(seconds), 'epochs': round(epochs, 2)}
        row |= {name: round(100 * scores[name], 2) for name in SCORES}
        rows.append(row | {'rank_me': round(scores['rank_me'], 1)})
    return rows


def budget(row: dict[str, Any]) -> int:
    """Seconds meant, as trials end within a few per cent of them: 30 and its fourfolds."""
    if not row['seconds']:
        return 0
    return 30 * 4 ** round(float(np.log(row['seconds'] / 30) / np.log(4)))


def groups_of(rows: list[dict[str, Any]]) -> dict[tuple[str, str, int], list[Any]]:
    """Seeds of the same trial and budget."""
    groups: dict[tuple[str, str, int], list[Any]] = defaultdict(list)
    for row in rows:
        groups[row['method'], row['trial'], budget(row)].append(row)
    return groups


def mean(group: list[Any], name: str) -> float:
    return float(np.mean([row[name] for row in group]))


def table(groups: dict[tuple[str, str, int], list[Any]]) -> None:
    """Print all trials in Markdown, by budget and the best linear probe first."""
    print(
        '| seconds | trial | seeds | epochs | linear | linear, 10 % | kNN-5 | RankMe |'
    )
    print('| ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: |')

    def order(key: tuple[str, str, int]) -> tuple[int, float]:
        return key[2], -mean(groups[key], 'linear')

    for key in sorted(groups, key=order):
        group, (_, trial, seconds) = groups[key], key
        cells = [seconds, trial, len(group), f'{mean(group, "epochs"):.1f}']
        for name in SCORES:
            values = [row[name] for row in group]
            spread = f' ± {np.std(values, ddof=1):.1f}' if len(values) > 1 else ''
            cells.append(f'{np.mean(values):.1f}{spread}')
        cells.append(f'{mean(group, "rank_me"):.0f}')
        print('| ' + ' | '.join(map(str, cells)) + ' |')


def draw(groups: dict[tuple[str, str, int], list[Any]], path: Path) -> None:
    """Linear probe and neighbours over seconds, a line a method."""
    shown = 'linear', 'knn'
    figure, axes = plt.subplots(1, 2, figsize=(12, 5.2), layout='constrained')
    for axis, score in zip(axes, shown):
        for number, (method, label) in enumerate(METHODS.items()):
            mine = {key: group for key, group in groups.items() if key[0] == method}
            trials: dict[str, list[Any]] = defaultdict(list)
            for (_, trial, seconds), group in mine.items():
                axis.plot(
                    seconds, mean(group, score), '.', color=f'C{number}', alpha=0.4
                )
                trials[trial] += group
            if not trials:
                continue
            chosen = max(trials, key=lambda t: (len(trials[t]), mean(trials[t], 'linear')))  # fmt: skip
            best = {key[2]: group for key, group in mine.items() if key[1] == chosen}
            if set(best) == {0}:
                axis.axhline(mean(best[0], score), color=f'C{number}', ls=':', label=label)  # fmt: skip
                continue
            x = sorted(best)
            y = np.array([mean(best[seconds], score) for seconds in x])
            values = [[row[score] for row in best[seconds]] for seconds in x]
            low, high = (np.array([f(each) for each in values]) for f in (min, max))
            axis.errorbar(x, y, (y - low, high - y), fmt='o-', capsize=3, color=f'C{number}', label=label)  # fmt: skip
        axis.set_xscale('log')
        ticks = sorted({key[2] for key in groups} - {0})
        axis.set_xticks(ticks, [f'{tick:,}' for tick in ticks])
        axis.minorticks_off()
        axis.set_xlabel('seconds of one core')
        axis.grid(alpha=0.3)
    axes[0].set_ylabel('accuracy on held-out training images of AID, %')
    axes[0].set_title('linear probe')
    axes[1].set_title('five nearest neighbours')
    axes[1].legend(loc='center left', bbox_to_anchor=(1.0, 0.5), frameon=False)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('results', type=Path, nargs='+')
    parser.add_argument('--csv', type=Path)
    parser.add_argument('--figure', type=Path)
    args = parser.parse_args()
    rows = [row for path in args.results for row in rows_of(path)]
    if args.csv:
        with args.csv.open('w', newline='') as file:
            writer = csv.DictWriter(file, rows[0], lineterminator='\n')
            writer.writeheader()
            writer.writerows(rows)
    table(groups_of(rows))
    if args.figure:
        draw(groups_of(rows), args.figure)


if __name__ == '__main__':
    main()
