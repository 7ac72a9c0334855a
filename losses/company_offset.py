"""CONTA's tag loss with an offset for what the other tags of an image already explain."""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from structseg.losses.tag_regression import cross_validated_ridge, tag_regression

OffsetOf = Literal["own", "another"]


class CompanyOffsetLoss(nn.Module):
    """Multi-label soft margin loss of logits plus an offset, the evidence of an image's other tags for each tag.

    The offset of class k is o_k = min(sum over j of c_jk y_j, cap) - its mean over the training images, with c the
    coefficients of a logistic regression of tag k on the other tags. The logits need not learn what co-occurring
    classes (the company) already tell, so activation maps need not lie on those. Offsets are used in training only.

    Source: the product-of-experts, or logit-adjusted, form of debiasing (Clark, Yatskar, Zettlemoyer, EMNLP 2019; Menon
    et al., ICLR 2021), with the tags as an observation of the confounder.

    Args:
        classes: number of classes n.
        signed: coefficients of either sign; False: 0 or above, so that other tags speak for a class, never against it.
        offset_of: `own`: each image has its own offset; `another`: that of another image of its batch, a placebo; 0 in
            a batch of one image.
        cap: limit of the absolute offset, before its mean is subtracted; above 0.
        ridge: penalty of the regression; None: by the cross-validated likelihood of the tags.

    Attributes:
        coefficients: (n, n), those of tag k in column k, the diagonal 0.
        centre: (n,), mean offset over the training images.
        used_ridge: penalty of the regression, a scalar; nan before `fit`.

    Raises:
        ValueError: a setting outside its range.

    >>> loss = CompanyOffsetLoss(2, ridge=0.1).fit(torch.tensor([[1.0, 1.0], [1.0, 1.0], [0.0, 0.0], [0.0, 1.0]]))
    >>> bool((loss.offsets(torch.tensor([[1.0, 1.0]])) > loss.offsets(torch.tensor([[0.0, 0.0]]))).all())
    True
    """

    coefficients: Tensor
    centre: Tensor
    used_ridge: Tensor

    def __init__(
        self,
        classes: int,
        signed: bool = False,
        offset_of: OffsetOf = "own",
        cap: float = 4.0,
        ridge: float | None = None,
    ) -> None:
        super().__init__()
        problems = []
        if classes < 1:
            problems.append(f"classes={classes} (1 or more)")
        if offset_of not in get_args(OffsetOf):
            problems.append(f"offset_of={offset_of} (own or another)")
        if not cap > 0:
            problems.append(f"cap={cap} (above 0)")
        if ridge is not None and not ridge > 0:
            problems.append(f"ridge={ridge} (above 0)")
        if problems:
            raise ValueError(", ".join(problems))
        self.signed, self.offset_of, self.cap, self.ridge = signed, offset_of, cap, ridge
        self.register_buffer("coefficients", torch.zeros(classes, classes))
        self.register_buffer("centre", torch.zeros(classes))
        self.register_buffer("used_ridge", torch.tensor(torch.nan))

    def fit(self, tags: Tensor) -> CompanyOffsetLoss:
        """Fits the regression and the mean offset; returns itself.

        Args:
            tags: (N, n) of 0 and 1, of the training images.

        Raises:
            ValueError: tags of another shape or with other values, or too few to choose the ridge.
        """
        self._check(tags, "training tags")
        ridge = self.ridge or cross_validated_ridge(tags, self.signed)
        self.coefficients.copy_(tag_regression(tags, ridge, self.signed)[0])
        self.used_ridge.fill_(ridge)
        self.centre.copy_(self._capped(tags.to(self.coefficients)).mean(0))
        return self

    def offsets(self, tags: Tensor) -> Tensor:
        """The offsets (N, n) of images with tags (N, n); without gradient.

        Raises:
            ValueError: tags of another shape, or `fit` was not called.
        """
        self._check(tags, "tags")
        if self.used_ridge.isnan():
            raise ValueError("the offsets are not fitted yet; call fit(tags) with the tags of the training images")
        return self._capped(tags.detach().to(self.coefficients)) - self.centre

    def forward(self, logits: Tensor, tags: Tensor) -> Tensor:
        """The loss, a scalar, of logits (N, n) and tags (N, n) of 0 and 1.

        Raises:
            ValueError: shapes that do not fit, or `fit` was not called.
        """
        if logits.shape != tags.shape:
            raise ValueError(f"logits are {tuple(logits.shape)} and tags {tuple(tags.shape)}; both have to be (N, n)")
        offsets = self.offsets(tags)
        if self.offset_of == "another":
            offsets = offsets.roll(1, 0) if len(tags) > 1 else torch.zeros_like(offsets)
        return F.multilabel_soft_margin_loss(logits + offsets, tags)

    def explained(self, classes: tuple[str, ...]) -> dict[str, dict[str, float]]:
        """The coefficients that are not 0: tag -> the other class that explains it -> coefficient."""
        columns = self.coefficients.T.tolist()
        return {
            tag: {name: round(value, 4) for name, value in zip(classes, column, strict=True) if round(value, 4)}
            for tag, column in zip(classes, columns, strict=True)
        }

    def _capped(self, tags: Tensor) -> Tensor:
        return (tags @ self.coefficients).clamp(-self.cap, self.cap)

    def _check(self, tags: Tensor, what: str) -> None:
        if tags.ndim != 2 or tags.shape[1] != len(self.centre):
            raise ValueError(f"{what} have shape {tuple(tags.shape)}, expected (images, {len(self.centre)})")
