"""The network of class activation maps: a backbone, CONTA's context, and a linear head."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from structseg.lightning_modules.networks.backbones import Backbone
from structseg.lightning_modules.networks.context import ContextFusion, ContextKind, ContextMap, ContextQuery

GLOBAL_CAM_SIZE = (128, 128)  # as published for C2AM; only its mean has an effect
_PROBE = (64, 64)
_AT_ONCE = 16  # images


def freeze_stages(backbone: Backbone, stages: int) -> None:
    """Freezes the first `stages` of a backbone's five stages: all parameters that their output depends on."""
    if stages == 0:
        return
    parameters, mode = list(backbone.parameters()), backbone.training
    with torch.enable_grad():
        end = backbone.eval()(torch.zeros(1, 3, *_PROBE))[stages - 1]
        gradients = torch.autograd.grad(end.sum(), parameters, allow_unused=True)
    backbone.train(mode)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if gradient is not None:
            parameter.requires_grad_(False)


class CAMClassifier(nn.Module):
    """Multi-label logits that are means of activation maps.

    With `c2am` the logits are multiplied by their classes' global mean activation map before the mean over
    its positions, as the published code does. That map is constant in training: the mean, over all training
    images, of the normalised activation maps of an earlier classifier, zero where an image lacks the class. The pooled
    logit does not depend on the position, so the product's mean is the logit times the map's mean: a fixed temperature
    for each class. The activation maps do not include it.

    Args:
        backbone: the feature extractor.
        classes: n, the number of foreground classes.
        context: kind of context map, or `none`.
        context_position: the stage, 1..3, whose output the map joins. After the last one, 4, only a linear head and a
            mean follow: a map would change a class's logit by its own mean, whatever the image.
        context_query: see `ContextMap`.
        context_size: (h, w) of the context.
        c2am: multiply the logits by the global mean activation maps.

    Attributes:
        global_cams: (n, 128, 128) of C2AM, ones at first; None without `c2am`.

    Raises:
        ValueError: a setting outside its range.

    Source: IRNet (Ahn, Cho, Kwak, CVPR 2019) for the head; CONTA (NeurIPS 2020) for the context; "Causal Class
    Activation Maps for Weakly-Supervised Semantic Segmentation" (workshop at UAI 2022, github.com/yiping-wang/c2am,
    train_c2am.py at ae1639f) for C2AM.
    """

    global_cams: Tensor | None

    def __init__(
        self,
        backbone: Backbone,
        classes: int,
        context: Literal["none"] | ContextKind = "none",
        context_position: int = 3,
        context_query: ContextQuery = "foreground",
        context_size: tuple[int, int] = (32, 32),
        c2am: bool = False,
    ) -> None:
        super().__init__()
        if context_position == 4:
            raise ValueError(
                "context_position is 4, after which only a linear head and a mean follow: the map would change a "
                "class's logit by the same number whatever the image shows; give 1 to 3"
            )
        if context_position not in (1, 2, 3):
            raise ValueError(f"context_position is {context_position}, expected a stage of the backbone, 1 to 3")
        self.initial_weights, self.mean, self.std = backbone.initial_weights, backbone.mean, backbone.std
        self.backbone = backbone
        self.head = nn.Conv2d(backbone.channels[-1], classes, 1, bias=False)
        self.position = context_position
        # Built last, so that one seed gives every kind of context the same head.
        self.context: ContextMap | None = None
        self.fusion: ContextFusion | None = None
        if context != "none":
            self.context = ContextMap(classes, context_size, context, context_query)
            self.fusion = ContextFusion(backbone.channels[context_position])
        self.register_buffer("global_cams", torch.ones(classes, *GLOBAL_CAM_SIZE) if c2am else None)

    def forward(self, image: Tensor, context: Tensor | None = None, view: Tensor | None = None) -> Tensor:
        """Logits (N, n); the arguments are those of `activation`."""
        logits = self.activation(image, context, view).mean((2, 3))
        if self.global_cams is None:
            return logits
        return (logits[:, :, None, None] * self.global_cams).mean((2, 3))

    def activation(self, image: Tensor, context: Tensor | None = None, view: Tensor | None = None) -> Tensor:
        """The head's output at every position, not rectified.

        Args:
            image: (N, 3, H, W), normalised.
            context: (N, n + 1, h, w), class probabilities of the whole images' last segmentation; None: unknown.
            view: (N, 2, 3), the place of each crop in its image; None: the whole image.

        Returns:
            (N, n, H', W') at the backbone's output stride.
        """
        if self.context is None or self.fusion is None:
            return self._head(self.backbone(image)[-1])
        return self.with_map(image, self.context(self.known(image, context)), view)

    def known(self, image: Tensor, context: Tensor | None) -> Tensor:
        """The context, or that of images without a last segmentation if it is None."""
        assert self.context is not None
        return self.context.unknown(len(image)) if context is None else context

    def with_map(self, image: Tensor, m: Tensor, view: Tensor | None = None) -> Tensor:
        """The `activation` of images with context maps M (N, 1, h, w)."""

        def inject(stage: int, features: Tensor) -> Tensor:
            assert self.fusion is not None
            fused: Tensor = self.fusion(features, m, view) if stage == self.position else features
            return fused

        return self._head(self.backbone(image, inject)[-1])

    @torch.no_grad()
    def start_context(self, image: Tensor, context: Tensor | None) -> None:
        """Initialises the context map and its fusion by normalised training images (N, 3, H, W) and their context."""
        if self.context is None or self.fusion is None:
            return
        mode, maps = self.training, []
        self.eval()
        for images in image.split(_AT_ONCE):

            def keep(stage: int, features: Tensor) -> Tensor:
                maps.extend([features] if stage == self.position else [])
                return features

            self.backbone(images, keep)
        self.train(mode)
        self.fusion.measure(torch.cat(maps))
        self.context.start(self.known(image, context))

    def _head(self, features: Tensor) -> Tensor:
        activation: Tensor = self.head(features)
        return activation
