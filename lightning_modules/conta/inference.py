"""Evaluation of CONTA's segmenter: several scales of the image, and the dense CRF."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from structseg.datamodules.label_spaces import LabelSpace
from structseg.lightning_modules.conta.dense_crf import CRFPool, DenseCRF, require_pydensecrf
from structseg.lightning_modules.drawing.label_sheets import as_pixels
from structseg.lightning_modules.inference import Inference, PixelScores, Probabilities, Size
from structseg.lightning_modules.logits import resize_logits
from structseg.lightning_modules.networks.deeplab_v2 import DeepLabV2, MultiScale

_NEGLIGIBLE = 1e-3  # probability below which, at every pixel, a class is left out of the CRF


class CONTAInference(Inference):
    """DeepLab-v2 at several scales; the attributes are those of `CONTASegmenter`."""

    options = ("flip_test", "test_scales", "crf")

    test_scales: tuple[float, ...]
    crf: bool

    def make_network(self, settings: Mapping[str, Any], label_space: LabelSpace) -> nn.Module:
        """The network, with random weights."""
        stride = settings["output_stride"]
        return MultiScale(
            DeepLabV2(len(label_space), settings["backbone"], "random", stride), tuple(settings["scales"])
        )

    def set_up(self, card: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
        """Sets the scales and the CRF.

        Raises:
            ValueError: scales that are not above 0, or no CRF package installed.
        """
        self.set_scales(settings["test_scales"])
        self.crf = self.wants_originals = settings["crf"]
        self.check_prediction()

    def set_scales(self, test_scales: Sequence[float]) -> None:
        """Sets the factors by which an image is resized for evaluation; ValueError if one is not above 0."""
        if not test_scales or min(test_scales) <= 0:
            raise ValueError(f"test_scales are {tuple(test_scales)}; give one factor or more, each above 0")
        self.test_scales = tuple(test_scales)

    def check_prediction(self) -> None:
        """Raises ValueError if the CRF is wanted but not installed."""
        if self.crf:
            require_pydensecrf()

    def evaluate(self, image: Tensor) -> Tensor:
        """Logits; with several scales or flips log-probabilities (N, K, H, W) at the image's size, averaged."""
        if self.test_scales == (1.0,) and not self.flip_test:
            return super().evaluate(image)
        height, width = image.shape[-2:]
        total: Tensor | None = None
        for scale in self.test_scales:
            size = (max(1, round(scale * height)), max(1, round(scale * width)))
            scaled = resize_logits(image, size)
            for mirrored in (False, True) if self.flip_test else (False,):
                logits = self(scaled.flip(-1) if mirrored else scaled).float()
                logs = resize_logits(logits, (height, width)).log_softmax(1)
                if mirrored:
                    logs = logs.flip(-1)[:, self.mirrored_classes]
                total = logs if total is None else torch.logaddexp(total, logs)
        assert total is not None
        return total - math.log(len(self.test_scales) * (1 + self.flip_test))

    def label(self, batch: Mapping[str, Any], sizes: Sequence[Size]) -> Sequence[PixelScores]:
        """The class probabilities of each photograph, after the CRF if there is one."""
        if not self.crf:
            return super().label(batch, sizes)
        logits = self.evaluated(batch)
        each = [resize_logits(one[None], size)[0].softmax(0) for one, size in zip(logits, sizes, strict=True)]
        return [Probabilities(one) for one in self.refined(batch["original"], each)]

    def crf_pool(self) -> CRFPool:
        """The pool that runs the CRF: here without processes."""
        return CRFPool(DenseCRF.deeplab(), 0)

    def refined(self, images: Iterable[Tensor], probabilities: Sequence[Tensor]) -> list[Tensor]:
        """(k, H, W) probabilities, background first, after the CRF on images (3, H, W) in 0..1.

        Its time grows with the number of classes: those that are unlikely everywhere are left out, and 0 in the result.
        """
        kept, jobs = [], []
        for image, one in zip(images, probabilities, strict=True):
            likely = one.amax((1, 2)) >= _NEGLIGIBLE
            likely[0] = True
            kept.append(likely)
            chances = one[likely].float()
            jobs.append((as_pixels(image), (chances / chances.sum(0)).cpu().numpy()))
        found = []
        for likely, refined in zip(kept, self.crf_pool().probabilities(jobs), strict=True):
            whole = torch.zeros(len(likely), *refined.shape[1:], device=self.mean.device)
            whole[likely] = torch.from_numpy(refined).to(self.mean.device)
            found.append(whole)
        return found
