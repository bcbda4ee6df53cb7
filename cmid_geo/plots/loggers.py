# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""Figures for the loggers of a run: TensorBoard, Weights & Biases and MLflow.

Loggers are known by what they offer: none of these programs need be installed.
"""

import io
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import matplotlib.figure

#: Gives a figure of a name and a step to a logger.
Give = Callable[[str, 'matplotlib.figure.Figure', int], None]


def log_figure(task: Any, name: str, make: Callable[[], Any]) -> None:
    """Give a figure to the loggers that take some, but not in the sanity check; others are passed over.

    Args:
        task: That is being run.
        name: Of the figure.
        make: Makes the figure, or None if there is nothing to show; called once, and only if a
            logger takes figures.
    """
    # Lightning looks at some batches before it trains, which are no part of the run
    if not task.trainer.is_global_zero or task.trainer.sanity_checking:
        return
    found = [give for give in map(way_of, task.loggers) if give is not None]
    figure = make() if found else None
    if figure is None:
        return
    for give in found:
        give(name, figure, task.global_step)
    # Figures of TorchGeo's datasets are pyplot's, which would keep them
    if pyplot := sys.modules.get('matplotlib.pyplot'):
        pyplot.close(figure)


def way_of(logger: Any) -> Give | None:
    """Find how a logger takes figures.

    Args:
        logger: One of Lightning's, or like them.

    Returns:
        What gives it one; None if it takes none, such as a CSVLogger.
    """
    experiment = getattr(logger, 'experiment', None)
    # TensorBoard's writer
    if hasattr(experiment, 'add_figure'):
        return lambda name, figure, step: experiment.add_figure(
            name, figure, global_step=step
        )
    # Lightning's WandbLogger
    if hasattr(logger, 'log_image'):
        return lambda name, figure, step: logger.log_image(
            name, [as_picture(figure)], step
        )
    # Lightning's MLFlowLogger: its client keeps the figures of each step as files of the run
    if hasattr(experiment, 'log_figure') and hasattr(logger, 'run_id'):
        return lambda name, figure, step: experiment.log_figure(
            logger.run_id, figure, f'figures/{name}/step_{step:08d}.png'
        )
    return None


def as_picture(figure: 'matplotlib.figure.Figure') -> Any:
    """Draw a figure.

    Args:
        figure: To draw.

    Returns:
        An image of Pillow.
    """
    from PIL import Image

    file = io.BytesIO()
    figure.savefig(file, format='png')
    return Image.open(file).convert('RGB')
