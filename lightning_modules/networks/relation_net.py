"""IRNet's network: edges between classes and displacements to object centres, from a frozen backbone.

J. Ahn, S. Cho, S. Kwak, "Weakly Supervised Learning of Instance Segmentation with Inter-pixel Relations", CVPR 2019,
figure 3 and section 4.1; details that the paper omits follow the published code.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from structseg.lightning_modules.networks.backbones import Backbone, Triple

_STRIDE = 4  # of both results
_EDGE_WIDTH = 32
_WIDTHS, _GROUPS = (64, 128, 256, 256, 256), (8, 16, 16, 16, 16)  # of the displacement branch, stage by stage
_MERGED = 256


class RelationNet(nn.Module):
    """Class edges and displacements at a quarter of the image's size, from all five stages of a backbone.

    The edge branch reduces each stage to 32 channels and all of them to one logit. The displacement branch merges the
    three deepest stages at stride 8, and these with the two others at stride 4. The stage of stride 2 is first
    max-pooled over 3 x 3 pixels, as in the published network. With resnet50, 1,394,529 parameters are trained.

    The backbone has no gradients, and its batch norm keeps its statistics.

    Args:
        backbone: five feature maps of strides 2, 4, 8, and deeper ones.

    Attributes:
        mean_shift: (2,) dy and dx, in pixels of the map: the mean displacement of the training images, which is
            subtracted in evaluation, as the loss determines displacements only up to a constant. 0 at first.
        initial_weights: the source of the backbone's weights.
        mean: per-channel mean on 0..1 that the weights expect, None for random ones.
        std: per-channel standard deviation, likewise.
    """

    mean_shift: Tensor

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone.requires_grad_(False).eval()
        self.edge_stages = nn.ModuleList(_reduced(c, _EDGE_WIDTH, 4) for c in backbone.channels)
        self.edge_head = nn.Conv2d(_EDGE_WIDTH * len(backbone.channels), 1, 1)
        widths = zip(backbone.channels, _WIDTHS, _GROUPS, strict=True)
        self.displacement_stages = nn.ModuleList(_reduced(c, width, groups) for c, width, groups in widths)
        self.displacement_deep = _reduced(sum(_WIDTHS[2:]), _MERGED, 16)
        self.displacement_head = nn.Sequential(
            _reduced(_WIDTHS[0] + _WIDTHS[1] + _MERGED, _MERGED, 16), nn.ReLU(), nn.Conv2d(_MERGED, 2, 1, bias=False)
        )
        self.register_buffer("mean_shift", torch.zeros(2))

    @property
    def initial_weights(self) -> str:
        """The source of the backbone's weights."""
        return self.backbone.initial_weights

    @property
    def mean(self) -> Triple | None:
        """Per-channel mean on 0..1 that the weights expect."""
        return self.backbone.mean

    @property
    def std(self) -> Triple | None:
        """Per-channel standard deviation on 0..1 that the weights expect."""
        return self.backbone.std

    def train(self, mode: bool = True) -> RelationNet:
        """Like `nn.Module.train`, but the backbone stays in evaluation mode."""
        super().train(mode)
        self.backbone.eval()
        return self

    def branches(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """The trained parameters: those of the edge branch, and those of the displacement branch."""
        edge, displacement = (
            [p for name, p in self.named_parameters() if name.startswith(branch)] for branch in ("edge", "displacement")
        )
        return edge, displacement

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Edge logits (N, 1, h, w) and displacements (N, 2, h, w), dy and dx in pixels of the map.

        Args:
            image: (N, 3, H, W), normalised. h = ceil(H / 4), w = ceil(W / 4).
        """
        with torch.no_grad():
            maps = self.backbone(image)
            maps[0] = F.max_pool2d(maps[0], 3, stride=2, padding=1)
        strides = (_STRIDE, *self.backbone.strides[1:])
        quarter, eighth = maps[1], maps[2]

        edges = [
            F.relu(_enlarged(stage(features), stride // _STRIDE, quarter))
            for stage, features, stride in zip(self.edge_stages, maps, strides, strict=True)
        ]
        edge_logits: Tensor = self.edge_head(torch.cat(edges, 1))

        seen = [stage(features) for stage, features in zip(self.displacement_stages, maps, strict=True)]
        deep = [
            F.relu(_enlarged(features, stride // strides[2], eighth))
            for features, stride in zip(seen[2:], strides[2:], strict=True)
        ]
        merged = self.displacement_deep(torch.cat(deep, 1))
        merged = F.relu(_enlarged(merged, strides[2] // _STRIDE, quarter))
        displacement: Tensor = self.displacement_head(torch.cat([F.relu(seen[0]), F.relu(seen[1]), merged], 1))
        if not self.training:
            displacement = displacement - self.mean_shift[:, None, None]
        return edge_logits, displacement


def _reduced(channels: int, width: int, groups: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, width, 1, bias=False), nn.GroupNorm(groups, width))


def _enlarged(features: Tensor, factor: int, like: Tensor) -> Tensor:
    """Enlarged by a whole factor and cropped to the size of `like`, so that an odd size is not stretched."""
    if factor > 1:
        features = F.interpolate(features, scale_factor=factor, mode="bilinear", align_corners=False)
    return features[..., : like.shape[-2], : like.shape[-1]]
