"""FASSEG U-Net: six-class face segmentation, learned from 20 photographs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from structseg.datamodules.label_spaces import LabelSpace
from structseg.lightning_modules.networks.readme_unet import ReadmeUNet
from structseg.lightning_modules.segmentation import SegmentationModule


class FASSEGUNet(SegmentationModule):
    """The network of the published readme, or any other that maps images to logits of the same size.

    Source: the network and recipe of goldmyu/face-semantic-segmentation; data: Khan, Mauro, Leonardi, ICIP 2015.

    Args:
        network: makes the network from the number of classes: `ReadmeUNet`, or `SMPNetwork` for every architecture and
            encoder of segmentation-models-pytorch.
        loss: logits (N, K, H, W) and target (N, H, W) to a scalar; default: cross-entropy over the labelled pixels.
        label_space: the classes; the command line sets them from the data.
        **kwargs: settings of `SegmentationModule`.
    """

    def __init__(
        self,
        label_space: LabelSpace,
        network: Callable[[int], nn.Module] = ReadmeUNet,
        loss: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        loss = loss or nn.CrossEntropyLoss(ignore_index=label_space.ignore_index)
        super().__init__(network(len(label_space)), loss, label_space, **kwargs)
