"""The settings of CONTA's classifier, as groups that a configuration names: adjustment, context, pooling, maps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from structseg.lightning_modules.networks.context import ContextQuery
from structseg.losses.company_offset import OffsetOf

AdjustmentKind = Literal["none", "tag_offset"]
ContextKind = Literal["none", "sum", "mean", "constant", "placebo"]
PoolingKind = Literal["mean", "masks", "centre", "c2am"]


@dataclass(frozen=True)
class ContextSettings:
    """How the context map of an image's last segmentation joins the features; `context: sum` sets only the kind.

    Args:
        kind: `none` (IRNet), `sum` (equation 3); and three controls with the layers of `sum`: `constant` (a map of
            ones), `mean` (the mean of the confounders, for every image) and `placebo` (the map of another image:
            --data.context_of another).
        position: the backbone's stage, 1..3, whose output the map joins.
        query: `foreground` (1 - background) or `classes` (the class maps that the query holds).
        size: (h, w) of the confounders and of the last round's queries.
    """

    kind: ContextKind
    position: int = 3
    query: ContextQuery = "foreground"
    size: tuple[int, int] = (32, 32)


@dataclass(frozen=True)
class AdjustmentSettings:
    """How the training loss uses an image's other tags; `adjustment: tag_offset` sets only the kind.

    Args:
        kind: `none`, or `tag_offset`: `CompanyOffsetLoss`, in training only, fitted to the tags of the training images.
        signed: whether coefficients may be negative, see `CompanyOffsetLoss`.
        offset_of: the offset that an image gets: its `own`, or that of `another` image, the placebo.
        cap: limit of an offset, see `CompanyOffsetLoss`.
        ridge: of the regression; None: chosen by the cross-validated likelihood of the tags.
    """

    kind: AdjustmentKind
    signed: bool = False
    offset_of: OffsetOf = "own"
    cap: float = 4.0
    ridge: float | None = None


@dataclass(frozen=True)
class PoolingSettings:
    """How a logit is averaged over the positions of a training crop; `pooling: masks` sets only the kind.

    Args:
        kind: `mean`: over all positions. `masks`: partly over the class's region in the last round's segmentation of
            the image (--data.queries), see `mask_pooled`; maps and tags are predicted without it. Its controls are
            --data.context_of another_of_class and displaced. `centre`, also a control: partly over one blob in the
            centre of the image, for every class of its tags (`centre_blob`). `c2am`: times the classes' mean
            activation map, see `CAMClassifier`.
        share: for `masks` and `centre`, the share of a logit that is averaged over the mask, not the whole crop; 0..1.
    """

    kind: PoolingKind
    share: float = 0.7


@dataclass(frozen=True)
class CAMSettings:
    """How class activation maps are computed and used.

    Args:
        scales: of the image, at which activation maps are computed.
        flip: add the mirror image at each scale.
        threshold: value above which a class is shown in the prediction of a photograph; 0..1.
        relation_thresholds: above the first a map is a seed of its class, below the second of the background; each goes
            through the CRF. For maps of a training split.
        relative: take the relation thresholds as multiples of the threshold at which the maps fit the true masks of the
            split best, so that brighter maps have higher ones. Keeps the images of the split in memory.
    """

    scales: tuple[float, ...] = (1.0, 0.5, 1.5, 2.0)
    flip: bool = True
    threshold: float = 0.3
    relation_thresholds: tuple[float, float] = (0.3, 0.05)
    relative: bool = False

    def faults(self) -> list[str]:
        """The settings that are out of range."""
        found = []
        if not self.scales or min(self.scales) <= 0:
            found.append(f"cam.scales={tuple(self.scales)} (one or more, each above 0)")
        if not 0 < self.threshold < 1:
            found.append(f"cam.threshold={self.threshold} (between 0 and 1)")
        foreground, background = self.relation_thresholds
        if not 0 < background <= foreground < 1:
            found.append(f"cam.relation_thresholds={(foreground, background)} (foreground, background; 1 > f >= b > 0)")
        return found
