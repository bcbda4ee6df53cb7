# Copyright (c) cmid_geo contributors. All rights reserved.
# Licensed under the MIT License.

"""torchvision's detectors on a feature pyramid of any timm backbone."""

from collections import OrderedDict
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from .freezing import PARTS, KeepFrozen
from .pyramid import STRIDES, Pyramid, levels_of, pad

Detector = Literal['faster-rcnn', 'fcos', 'retinanet']

#: Side in pixels of the anchors of each level, strides 4, 8, 16, 32, 64 and, but for Faster
#: R-CNN, 128. Objects seen from above are small: Faster R-CNN's are half of torchvision's.
ANCHOR_SIZES: dict[str, tuple[float, ...]] = {
    'faster-rcnn': (16, 32, 64, 128, 256),
    'fcos': (4, 8, 16, 32, 64, 128),
    'retinanet': (16, 32, 64, 128, 256, 512),
}

#: Heights by widths of anchors; FCOS has but one.
ASPECT_RATIOS = (0.5, 1.0, 2.0)

#: torchvision's names of the same options of Faster R-CNN.
BOX_OPTIONS = ('score_thresh', 'nms_thresh', 'detections_per_img')


def create_detector(
    model: Detector,
    backbone: str,
    in_channels: int = 3,
    num_classes: int = 2,
    pretrained: bool = False,
    drop_path_rate: float = 0.0,
    trainable_layers: int = PARTS,
    freeze_bn: bool = False,
    fpn_channels: int = 256,
    anchor_sizes: Sequence[float] | None = None,
    aspect_ratios: Sequence[float] = ASPECT_RATIOS,
    score_thresh: float | None = None,
    nms_thresh: float | None = None,
    detections_per_img: int | None = None,
    **options: Any,
) -> Any:
    """Create a detector of torchvision on any backbone of timm.

    It takes normalized images of one size, which may be any, and boxes in their pixels; and
    neither normalizes nor resizes them.

    Args:
        model: 'faster-rcnn' (Ren et al. 2015, https://arxiv.org/abs/1506.01497), 'fcos' (Tian et
            al. 2019, https://arxiv.org/abs/1904.01355) or 'retinanet' (Lin et al. 2017,
            https://arxiv.org/abs/1708.02002).
        backbone: timm's name of the backbone.
        in_channels: Number of bands.
        num_classes: Number of classes, the background, which is class 0, included.
        pretrained: Whether to start from timm's weights.
        drop_path_rate: Stochastic depth of the backbone, in [0, 1).
        trainable_layers: Parts of the backbone to train, see
            :func:`~cmid_geo.models.freezing.freeze_parts`.
        freeze_bn: Whether the backbone's batch norms keep statistics, scale and shift.
        fpn_channels: Channels of the pyramid's levels, a multiple of 32 from 64 on; fewer
            cost much less.
        anchor_sizes: Side in pixels of the anchors of each level, see ``ANCHOR_SIZES``.
            FCOS has no anchors: there a level learns boxes of 8 to 16 times this side.
        aspect_ratios: Heights of the anchors by their widths; not used by FCOS.
        score_thresh: Least confidence of a detection, in [0, 1]; by default torchvision's 0.05, FCOS 0.2.
        nms_thresh: IoU above which the detection of lower confidence goes, in [0, 1]; by default 0.5, FCOS 0.6.
        detections_per_img: Most detections of an image; by default 100, RetinaNet 300.
        options: Further ones of torchvision's class.

    Returns:
        A model that takes images, and targets in training, as those of torchvision do.

    Raises:
        ValueError: If there is no such detector or backbone, or a number is off.
    """
    if model not in ANCHOR_SIZES:
        raise ValueError(
            f'model={model!r} is no detector: choose of {list(ANCHOR_SIZES)}'
        )
    if fpn_channels < 64 or fpn_channels % 32:
        raise ValueError(
            f'fpn_channels={fpn_channels}: heads normalize 32 groups of two or more, give a multiple of 32 from 64 on'
        )
    usual = ANCHOR_SIZES[model]
    sizes = check_anchors(model, num_classes, anchor_sizes or usual, usual)
    levels = FPNBackbone(
        backbone, in_channels, pretrained, drop_path_rate, trainable_layers, freeze_bn,
        fpn_channels, extra_levels=1 if model == 'faster-rcnn' else 2,
    )  # fmt: skip
    given = (score_thresh, nms_thresh, detections_per_img)
    for name, value in zip(BOX_OPTIONS, given, strict=True):
        if value is not None:
            options[f'box_{name}' if model == 'faster-rcnn' else name] = value
    ratios = tuple(aspect_ratios)
    detector: Any = _BUILDERS[model](levels, num_classes, sizes, ratios, options)
    detector.transform = PadOnly()
    return detector


class FPNBackbone(KeepFrozen):
    """Levels of equal width of any backbone: a feature pyramid network on its maps.

    Lin et al. 2017, https://arxiv.org/abs/1612.03144.

    Attributes:
        body: The backbone, into which :func:`~cmid_geo.models.load_backbone` loads.
        fpn: The network on its maps of strides 4 to 32, with one level more (stride 64, of
            every other vector of the last) or two (64 and 128, by convolutions).
        out_channels: Channels of each level.
    """

    def __init__(
        self,
        name: str,
        in_channels: int = 3,
        pretrained: bool = False,
        drop_path_rate: float = 0.0,
        trainable_layers: int = PARTS,
        freeze_bn: bool = False,
        out_channels: int = 256,
        extra_levels: Literal[1, 2] = 1,
    ) -> None:
        """Initialize a new FPNBackbone instance.

        Args:
            name: timm's name of the backbone.
            in_channels: Number of bands.
            pretrained: Whether to start from timm's weights.
            drop_path_rate: Stochastic depth, in [0, 1).
            trainable_layers: Parts to train, see
                :func:`~cmid_geo.models.freezing.freeze_parts`.
            freeze_bn: Whether batch norms keep statistics, scale and shift.
            out_channels: Channels of each level.
            extra_levels: Levels behind that of stride 32.

        Raises:
            ValueError: If the backbone is not known, or a number is off.
        """
        super().__init__()
        self.body = Pyramid(name, in_channels, pretrained, drop_path_rate)
        extra: nn.Module = LastLevelMaxPool()
        if extra_levels == 2:
            extra = LastLevelP6P7(out_channels, out_channels)
        widths = self.body.out_channels[-len(STRIDES) :]
        self.fpn = FeaturePyramidNetwork(widths, out_channels, extra)
        self.out_channels = out_channels
        self.freeze(self.body, trainable_layers, freeze_bn)

    def forward(
        self, image: Float[Tensor, 'batch bands height width']
    ) -> OrderedDict[str, Float[Tensor, 'batch channels _ _']]:
        """Compute the levels.

        Args:
            image: Normalized, with sides that are multiples of 32 pixels.

        Returns:
            Levels from fine to coarse, the first four by the names '0' to '3'.
        """
        return levels_of(self.body, self.fpn, image)


class PadOnly(nn.Module):
    """Padding of normalized images of one size, in place of torchvision's GeneralizedRCNNTransform.

    That one resizes, and leaves it out in training only. Images are padded by zeros at the right and
    below to sides that are multiples of 32, which moves no box; detections end at the image, not at
    the padding.
    """

    def forward(
        self,
        images: Float[Tensor, 'batch bands height width'],
        targets: list[dict[str, Tensor]] | None = None,
    ) -> tuple[ImageList, list[dict[str, Tensor]] | None]:
        """Pad images.

        Args:
            images: Normalized.
            targets: ``boxes`` and ``labels`` of each.

        Returns:
            The padded images, with their sizes before; and the targets.
        """
        height, width = images.shape[2:]
        return ImageList(pad(images), [(height, width)] * len(images)), targets

    def postprocess(
        self,
        result: list[dict[str, Tensor]],
        image_shapes: list[tuple[int, int]],
        original_image_sizes: list[tuple[int, int]],
    ) -> list[dict[str, Tensor]]:
        """Leave detections where they are.

        Args:
            result: ``boxes``, ``labels`` and ``scores`` of each image.
            image_shapes: Not used.
            original_image_sizes: Not used.

        Returns:
            The detections.
        """
        return result


def check_anchors(
    model: str, num_classes: int, sizes: Sequence[float], usual: Sequence[float]
) -> tuple[float, ...]:
    """Refuse numbers of classes and anchors that cannot be.

    Args:
        model: Name of the detector.
        num_classes: Number of classes, the background, which is class 0, included.
        sizes: Side in pixels of the anchors of each level.
        usual: Those that the detector has by default.

    Returns:
        The sides.

    Raises:
        ValueError: If a number is off.
    """
    if num_classes < 2:
        raise ValueError(
            f'num_classes={num_classes} counts the background, which is class 0: give the number of '
            'kinds of objects plus 1'
        )
    if len(sizes) != len(usual) or min(sizes) <= 0:
        raise ValueError(
            f'anchor_sizes={tuple(sizes)}: {model} has {len(usual)} levels, give one positive side in '
            f'pixels for each, such as {tuple(usual)}'
        )
    return tuple(sizes)


def anchors_of(sizes: Sequence[float], ratios: Sequence[float]) -> AnchorGenerator:
    """Anchors of one size a level.

    Args:
        sizes: Side in pixels of the anchors of each level.
        ratios: Heights of the anchors by their widths.

    Returns:
        torchvision's generator.
    """
    each = tuple((size,) for size in sizes)
    return AnchorGenerator(each, (tuple(ratios),) * len(sizes))


def _faster_rcnn(
    levels: FPNBackbone, num_classes: int, sizes: Any, ratios: Any, options: Any
) -> FasterRCNN:
    anchors = anchors_of(sizes, ratios)
    return FasterRCNN(levels, num_classes, rpn_anchor_generator=anchors, **options)


def _fcos(
    levels: FPNBackbone, num_classes: int, sizes: Any, ratios: Any, options: Any
) -> FCOS:
    anchors = anchors_of(sizes, (1.0,))
    return FCOS(levels, num_classes, anchor_generator=anchors, **options)


def _retinanet(
    levels: FPNBackbone, num_classes: int, sizes: Any, ratios: Any, options: Any
) -> RetinaNet:
    # Three a doubling, as in its paper
    octaves = tuple(tuple(size * 2 ** (k / 3) for k in range(3)) for size in sizes)
    anchors = AnchorGenerator(octaves, (ratios,) * len(sizes))
    head = RetinaNetHead(
        levels.out_channels, anchors.num_anchors_per_location()[0], num_classes,
        norm_layer=partial(nn.GroupNorm, 32),
    )  # fmt: skip
    return RetinaNet(
        levels, num_classes, anchor_generator=anchors, head=head, **options
    )


_BUILDERS = {'faster-rcnn': _faster_rcnn, 'fcos': _fcos, 'retinanet': _retinanet}
