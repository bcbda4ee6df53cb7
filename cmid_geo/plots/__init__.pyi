# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

from .attention import plot_attention as plot_attention
from .boxes import boxes_figure as boxes_figure
from .correspondence import plot_correspondence as plot_correspondence
from .embedding import plot_embedding as plot_embedding
from .label_efficiency import plot_label_efficiency as plot_label_efficiency
from .loggers import log_figure as log_figure
from .neighbours import plot_neighbours as plot_neighbours
from .predictions import confusion_figure as confusion_figure
from .predictions import prediction_figure as prediction_figure
from .pretraining import plot_cells as plot_cells
from .pretraining import plot_curves as plot_curves
from .pretraining import plot_map as plot_map
from .pretraining import plot_matches as plot_matches
from .pretraining import plot_rebuilt as plot_rebuilt
from .pretraining import plot_reconstructions as plot_reconstructions
from .pretraining import plot_views as plot_views
from .samples import sample_figure as sample_figure
