# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

from .export_backbone import ExportBackbone as ExportBackbone
from .feature_rank import FeatureRank as FeatureRank
from .loss_gradients import LossGradients as LossGradients
from .monitoring import CollapseAlarm as CollapseAlarm
from .monitoring import Throughput as Throughput
from .nonfinite import StopOnNonFinite as StopOnNonFinite
from .online_probes import OnlineKNN as OnlineKNN
from .online_probes import OnlineLinearProbe as OnlineLinearProbe
from .online_ranks import LiDAR as LiDAR
from .online_ranks import RankMe as RankMe
from .remember import Remember as Remember
from .run_folder import RunFolder as RunFolder
from .stop_on_signal import StopOnSignal as StopOnSignal
