"""Structure via consensus: the pixels of a region are asked to be right together and to agree.

I. Masi, J. Mathai, W. AbdAlmageed, "Towards Learning Structure via Consensus for Face Segmentation and Parsing",
CVPR 2020, equation 8. All of it is sums over regions: the cost grows with pixels, not with regions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from losses.consensus_checks import check_range, check_shapes, refuse_conflict, refuse_logits

Normalization = Literal["blob", "published"]
Reduction = Literal["blob", "image"]


class _Settings(NamedTuple):
    alpha: float
    beta: float
    published: bool
    label_by_image: bool
    consensus_by_image: bool


class _Regions(NamedTuple):
    """Which pixel belongs where, and what is known of each region.

    ids: int64 (N, 1, H, W), 0..bins; the last one has the pixels that are ignored. bins: number of regions an image.
    pixels: (N, 1, bins) float, how many. label: (N, 1, bins) int64, or the (N, C, bins) sums of soft targets.
    classes: the hard target, (N, 1, H, W), 0 where it is ignored; None where it is soft.
    conflict: whether a region has two labels, a scalar.
    """

    ids: Tensor
    bins: int
    pixels: Tensor
    label: Tensor
    classes: Tensor | None
    conflict: Tensor


def consensus_loss(
    logits: Tensor,
    target: Tensor,
    blobs: Tensor | None = None,
    alpha: float = 10.0,
    beta: float = 5.0,
    normalization: Normalization = "blob",
    label_reduction: Reduction = "blob",
    consensus_reduction: Reduction = "blob",
    ignore_index: int = 255,
    validate: bool = True,
    names: Sequence[str] | None = None,
) -> Tensor:
    """Asks the mean prediction t of each blob to be right, and each of its m pixels u to agree with it.

        L = mean over blobs of  alpha * (-log t[y])  +  beta * (1/m) * sum over u of KL(t || p[u]),    t = mean of p[u]

    with p the softmax of the logits and y the blob's label (CVPR 2020, equation 8). Gradient flows through t in both
    terms. A blob is a region of one image; the mean runs over all blobs of the batch.

    `normalization="published"` is what the published code computes: ids that images share are one blob, the label
    term is also divided by N, the consensus term by C (by the number of probabilities that are not zero).

    The arithmetic is float32 or better, also inside autocast; value and gradient are finite for logits of any finite
    size up to 1e4. Memory beyond the arguments: about 3 times float32 logits. Second derivatives are right, but slow.

    Args:
        logits: (N, C, H, W), any float type.
        target: (N, H, W) or (N, 1, H, W), integers 0..C-1 or `ignore_index`; or (N, C, H, W) class probabilities, such
            as a teacher's: the label term becomes the cross-entropy of t against the blob's mean target.
        blobs: (N, H, W) or (N, 1, H, W) integers from 0, one label a blob; None = the labels are the blobs (of a soft
            target, its likeliest classes). Best dense in each image; unchecked or compiled, ids must be below H * W.
        alpha: weight of the label term, 0 or more.
        beta: weight of the consensus term, 0 or more.
        normalization: `blob` = the equation; `published` = as the published code.
        label_reduction: `blob` = t is the mean over the blob's pixels; `image` = the sum over H * W (published `all`).
        consensus_reduction: `blob` = the divergences are averaged over the blob; `image` = summed over H * W.
        ignore_index: target value of the pixels that belong to no blob.
        validate: check values too (labels, ids, one label a blob, nan), not only shapes; on a GPU two synchronisations.
        names: of the N images, for messages.

    Returns:
        A scalar; 0 with zero gradient where every pixel is ignored.

    Raises:
        TypeError: a tensor of the wrong type.
        ValueError: a setting out of range, shapes or devices that do not fit, labels or ids out of range, a blob with
            two labels, nan or infinite logits.

    Example:
        One blob of two pixels that lean to opposite classes: t = 1/2, and either pixel is
        log(0.5 / (0.9 * 0.1) ** 0.5) away from it.

        >>> logits = torch.tensor([[[[0.9, 0.1]], [[0.1, 0.9]]]]).log()
        >>> consensus_loss(logits, torch.zeros(1, 1, 2, dtype=torch.long), alpha=1, beta=0)
        tensor(0.6931)
        >>> consensus_loss(logits, torch.zeros(1, 1, 2, dtype=torch.long), alpha=0, beta=1)
        tensor(0.5108)
    """
    settings = _settings(alpha, beta, normalization, label_reduction, consensus_reduction)
    target, blobs = check_shapes(logits, target, blobs)
    with torch.autocast(logits.device.type, enabled=False):
        if logits.dtype in (torch.float16, torch.bfloat16):
            logits = logits.float()
        if torch.compiler.is_compiling():
            return _plain(logits, _regions(logits, target, blobs, ignore_index, False, None), settings)
        with torch.no_grad():
            regions = _regions(logits, target, blobs, ignore_index, validate, names)
            p, total, *sums = _sums(logits.log_softmax(1), regions, settings)
            conflict, underflows, finite = _flags(total, sums[0], regions, validate)
            if conflict:
                assert blobs is not None
                refuse_conflict(regions.ids, target, blobs, ignore_index, names)
            if not finite:
                refuse_logits(logits, names)
            share = None  # of each pixel in the probability of its region's label
            if underflows:
                log_label_sum, share = _log_label_sum(logits.log_softmax(1), regions)
                sums.append(log_label_sum)
            loss, *slopes = _loss_of_sums(regions, settings, logits.shape, *sums)
        if logits.requires_grad and torch.is_grad_enabled():
            loss = _WithGradient.apply(logits, loss, regions, settings, p, share, *slopes)
        return loss


class ConsensusLoss(nn.Module):
    """`consensus_loss` with its settings kept.

    Args:
        alpha: weight of the label term, 0 or more.
        beta: weight of the consensus term, 0 or more. Too large a beta underfits.
        normalization: `blob` = the paper's equation 8; `published` = as the published code computes it.
        label_reduction: `blob`, or `image` as the published option `all`.
        consensus_reduction: `blob`, or `image` as the published option `all`.
        ignore_index: target value of the pixels that belong to no blob.
        validate: check values too, not only shapes.

    Raises:
        ValueError: a negative or infinite weight, or an unknown word.
    """

    def __init__(
        self,
        alpha: float = 10.0,
        beta: float = 5.0,
        normalization: Normalization = "blob",
        label_reduction: Reduction = "blob",
        consensus_reduction: Reduction = "blob",
        ignore_index: int = 255,
        validate: bool = True,
    ) -> None:
        super().__init__()
        _settings(alpha, beta, normalization, label_reduction, consensus_reduction)
        self.alpha, self.beta = alpha, beta
        self.normalization: Normalization = normalization
        self.label_reduction: Reduction = label_reduction
        self.consensus_reduction: Reduction = consensus_reduction
        self.ignore_index, self.validate = ignore_index, validate

    def forward(
        self, logits: Tensor, target: Tensor, blobs: Tensor | None = None, names: Sequence[str] | None = None
    ) -> Tensor:
        """As `consensus_loss`."""
        return consensus_loss(
            logits, target, blobs, self.alpha, self.beta, self.normalization, self.label_reduction,
            self.consensus_reduction, self.ignore_index, self.validate, names,
        )  # fmt: skip

    def extra_repr(self) -> str:
        """The settings, for printing."""
        return f"alpha={self.alpha}, beta={self.beta}, normalization={self.normalization}"


def _settings(alpha: float, beta: float, normalization: str, label: str, consensus: str) -> _Settings:
    problems = [
        f"{name}={value} (0 or more, and finite)"
        for name, value in (("alpha", alpha), ("beta", beta))
        if not 0 <= value < float("inf")
    ]
    words = {"normalization": (normalization, Normalization), "label_reduction": (label, Reduction)}
    words["consensus_reduction"] = (consensus, Reduction)
    problems += [
        f"{name}={word!r} ({' or '.join(get_args(known))})"
        for name, (word, known) in words.items()
        if word not in get_args(known)
    ]
    if problems:
        raise ValueError("consensus loss: " + ", ".join(problems))
    return _Settings(alpha, beta, normalization == "published", label == "image", consensus == "image")


class _WithGradient(torch.autograd.Function):
    """The loss, with its gradient in closed form.

    All that the loss needs of the pixels is P = sum of p and Q = sum of log p in each region: its gradient for a
    pixel's log p is dL/dP * p + dL/dQ, and that passes through the log-softmax.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, loss: Tensor, regions: _Regions, settings: _Settings, *saved: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(logits, *saved)
        ctx.regions, ctx.settings = regions, settings
        return loss

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        logits, p, share, by_p, by_log_p, by_label = ctx.saved_tensors
        regions: _Regions = ctx.regions
        nothing = (None,) * 8
        if torch.is_grad_enabled():  # create_graph: autograd derives the derivative
            with torch.autocast(logits.device.type, enabled=False):
                loss = _plain(logits, regions, ctx.settings)
            return torch.autograd.grad(loss, logits, outer[0], create_graph=True)[0], *nothing
        grad = _spread(by_p * outer[0], regions).mul_(p).add_(_spread(by_log_p * outer[0], regions))
        if ctx.settings.published:
            grad.masked_fill_(p == 0, 0)
        if share is not None:
            assert regions.classes is not None
            grad.scatter_add_(1, regions.classes, share.mul(_spread(by_label * outer[0], regions)))
        return grad.addcmul_(p, grad.sum(1, keepdim=True), value=-1), *nothing


def _plain(logits: Tensor, regions: _Regions, settings: _Settings) -> Tensor:
    """The loss by operations that autograd and the compiler can see through."""
    log_p = logits.log_softmax(1)
    _, _, *sums = _sums(log_p, regions, settings)
    exact = [] if regions.classes is None else [_log_label_sum(log_p, regions)[0]]
    return _loss_of_sums(regions, settings, logits.shape, *sums, *exact)[0]


def _sums(log_p: Tensor, regions: _Regions, settings: _Settings) -> tuple[Tensor, ...]:
    """p, a number that is finite if all of p and log p are, and (N, C, bins) sums over each region.

    The sums are of p, of log p, and of how many count in the latter (N, 1 or C, bins). Where no gradient is recorded p
    takes the memory of `log_p`.
    """
    if settings.published:  # the published code leaves out probabilities that underflow
        p = log_p.exp()
        some = p > 0
        counted = _sum(some.to(p.dtype), regions.ids, regions.bins)[..., :-1]
        log_p_sum = _sum(torch.where(some, log_p, 0), regions.ids, regions.bins)
    else:
        counted = regions.pixels
        log_p_sum = _sum(log_p, regions.ids, regions.bins)
        p = log_p.exp() if torch.is_grad_enabled() else log_p.exp_()
    p_sum = _sum(p, regions.ids, regions.bins)
    return p, p_sum.sum() + log_p_sum.sum(), p_sum[..., :-1], log_p_sum[..., :-1], counted


def _loss_of_sums(
    regions: _Regions,
    settings: _Settings,
    shape: torch.Size,
    p_sum: Tensor,
    log_p_sum: Tensor,
    counted: Tensor,
    log_label_sum: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The loss, and its slopes with respect to p_sum, log_p_sum and log_label_sum, from sums over each region.

    With t = p_sum / size, size = m or H * W, and the weights A and K of the region's two terms:

        L = sum of  A * (-log t[y])  +  K * sum over k of t[k] * (counted[k] * log t[k] - log_p_sum[k])
    """
    images, area = shape[0], shape[2] * shape[3]
    pixels, dtype = regions.pixels, p_sum.dtype
    present, at_least_one = pixels > 0, pixels.clamp(min=1)
    if settings.published:
        number = present.any(0).sum(dtype=dtype).clamp(min=1)
        label_weight = present * (settings.alpha / (number * images))
        per_id = counted.expand_as(p_sum).sum((0, 1), keepdim=True).clamp(min=1)
        consensus_weight = (
            present * (settings.beta / number) / (images * area if settings.consensus_by_image else per_id)
        )
    else:
        number = present.sum(dtype=dtype).clamp(min=1)
        label_weight = present * (settings.alpha / number)
        consensus_weight = present * (settings.beta / number) / (area if settings.consensus_by_image else at_least_one)

    size = torch.full_like(pixels, area) if settings.label_by_image else at_least_one
    t = p_sum / size
    seen = t.clamp(min=torch.finfo(dtype).tiny)
    log_t = seen.log()
    apart = counted * log_t - log_p_sum
    terms = consensus_weight * (t * apart).sum(1, keepdim=True)
    by_p = consensus_weight * (apart + counted * (t > 0)) / size
    if regions.classes is None:
        share = regions.label / at_least_one
        terms = terms - label_weight * (share * log_t).sum(1, keepdim=True)
        by_p = by_p - label_weight * share / (seen * size)
    elif log_label_sum is None:
        terms = terms - label_weight * log_t.gather(1, regions.label)
        by_p = by_p.scatter_add(1, regions.label, -label_weight / (seen.gather(1, regions.label) * size))
    else:
        terms = terms + label_weight * (size.log() - log_label_sum)
    return terms.sum(), by_p, -consensus_weight * t, -label_weight


def _flags(total: Tensor, p_sum: Tensor, regions: _Regions, validate: bool) -> tuple[bool, bool, bool]:
    """Whether a region has two labels, whether its label's probability underflows, whether the sums are finite."""
    if regions.classes is None:
        underflows = torch.zeros_like(regions.conflict)
    elif not validate and p_sum.is_cuda:
        return False, True, True  # the exact way fits all, and costs less than to wait for the device
    else:
        least = p_sum.gather(1, regions.label).masked_fill(regions.pixels == 0, 1)
        underflows = (least < 1e6 * torch.finfo(least.dtype).tiny).any()
    if not validate:
        return False, bool(underflows), True
    conflict, low, finite = torch.stack((regions.conflict, underflows, torch.isfinite(total))).tolist()
    return conflict, low, finite


def _sum(values: Tensor, ids: Tensor, bins: int) -> Tensor:
    """(N, C, H, W) summed over each region, and over the pixels that are ignored: (N, C, bins + 1).

    Bands of rows are summed apart and then together: a long sum in float32 loses digits, and on a GPU fewer threads
    wait for each other.
    """
    n, c, h, w = values.shape
    bands = max(d for d in range(1, h + 1) if h % d == 0 and (d == 1 or 8 * d * (bins + 1) <= h * w))
    index = ids.view(n, 1, bands, -1).expand(-1, c, -1, -1)
    table = values.new_zeros(n, c, bands, bins + 1)
    return table.scatter_add(3, index, values.reshape(n, c, bands, -1)).sum(2)


def _spread(table: Tensor, regions: _Regions) -> Tensor:
    """(N, C, bins) to (N, C, H, W): each pixel gets its region's value, an ignored one 0."""
    n, c, _ = table.shape
    h, w = regions.ids.shape[2:]
    padded = nn.functional.pad(table, (0, 1))
    return padded.gather(2, regions.ids.view(n, 1, -1).expand(-1, c, -1)).view(n, c, h, w)


def _log_label_sum(log_p: Tensor, regions: _Regions) -> tuple[Tensor, Tensor]:
    """Log of the label's summed probability, exact where all of it underflows, and each pixel's share in the sum."""
    assert regions.classes is not None
    n, _, h, w = log_p.shape
    own = log_p.gather(1, regions.classes)
    flat = regions.ids.view(n, 1, -1)
    top = log_p.new_full((n, 1, regions.bins + 1), -torch.inf)
    top = top.scatter_reduce(2, flat, own.detach().view(n, 1, -1), "amax")
    top = torch.where(torch.isfinite(top), top, 0)
    scaled = (own - top.gather(2, flat).view(n, 1, h, w)).exp()
    total = _sum(scaled, regions.ids, regions.bins)[..., :-1].clamp(min=torch.finfo(log_p.dtype).tiny)
    return top[:, :, :-1] + total.log(), scaled * _spread(1 / total, regions)


def _regions(
    logits: Tensor, target: Tensor, blobs: Tensor | None, ignore_index: int, validate: bool, names: Sequence[str] | None
) -> _Regions:
    n, c, h, w = logits.shape
    soft = target.is_floating_point()
    classes = target.argmax(1, keepdim=True) if soft else target
    ids, bins = (classes, c) if blobs is None else (blobs, h * w)
    ignored: Tensor | None = None
    if not torch.compiler.is_compiling() and (validate or not logits.is_cuda):
        low, high, first, last = torch.stack((*classes.aminmax(), *ids.aminmax())).tolist()  # one synchronisation
        if low < 0 or high >= c:
            ignored = target == ignore_index
            if validate:
                check_range("target", target.masked_fill(ignored, 0), c, names)
        if blobs is not None:
            bins = last + 1
            if first < 0 or last >= h * w:
                ids = blobs if ignored is None else blobs.masked_fill(ignored, 0)
                check_range("blobs", ids, None, names)
                found, ids = ids.unique(return_inverse=True)  # numbered anew, the same in all images
                bins = len(found)
    elif not soft:
        ignored = target == ignore_index
    if ignored is not None:
        classes, ids = classes.masked_fill(ignored, 0), ids.masked_fill(ignored, bins)
    one = logits.new_ones(()).expand(n, 1, h, w)
    conflict = torch.zeros((), dtype=torch.bool, device=logits.device)
    if soft or blobs is None:
        pixels = _sum(one, ids, bins)[..., :-1]
        summed = _sum(target.to(logits.dtype), ids, bins)[..., :-1] if soft else None
        label = torch.arange(c, device=logits.device).expand(n, 1, c) if summed is None else summed
        return _Regions(ids, bins, pixels, label, None if soft else classes, conflict)
    # The pixels of each pair of region and label: their sum, the largest, and whether there is a second.
    of_label = _sum(one, torch.add(classes, ids, alpha=c), c * (bins + 1) - 1).view(n, 1, bins + 1, c)[:, :, :-1]
    pixels = of_label.sum(3)
    most, label = of_label.max(3)
    return _Regions(ids, bins, pixels, label, classes, (most != pixels).any() if validate else conflict)
