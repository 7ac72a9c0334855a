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
    """Which pixel belongs where.

    ids: int64 (N, 1, H, W), 0..bins; the last one has the pixels that are ignored. bins: number of regions an image.
    label: (N, bins) int64, or the (N, C, bins) sums of soft targets. classes: the hard target, (N, 1, H, W), 0 where
    it is ignored; None where it is soft. conflict: whether a region has two labels, a scalar; None where not looked at.
    """

    ids: Tensor
    bins: int
    label: Tensor
    classes: Tensor | None
    conflict: Tensor | None = None


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
            conflict, underflows, finite = _flags(total, sums, regions, validate)
            if conflict:
                assert blobs is not None
                refuse_conflict(regions.ids, target, blobs, ignore_index, names)
            if not finite:
                refuse_logits(logits, names)
            share = None  # of each pixel in the probability of its region's label
            if underflows:
                log_label_sum, share = _log_label_sum(logits.log_softmax(1), regions)
                sums.append(log_label_sum)
        if not (logits.requires_grad and torch.is_grad_enabled()):
            return _loss_of_sums(regions, settings, logits.shape, *sums)
        leaves = [sums[i].requires_grad_() for i in (0, 1, 4)[: len(sums) - 2]]
        loss = _loss_of_sums(regions, settings, logits.shape, *sums)
        slopes = torch.autograd.grad(loss, leaves)
        attached: Tensor = _WithGradient.apply(logits, loss.detach(), regions, settings, p, share, *slopes)
        return attached


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
        logits, p, share, by_p, by_log_p, *by_label = ctx.saved_tensors
        regions: _Regions = ctx.regions
        nothing = (None,) * (5 + len(ctx.saved_tensors) - 2)
        if torch.is_grad_enabled():  # create_graph: autograd derives the derivative
            with torch.autocast(logits.device.type, enabled=False):
                loss = _plain(logits, regions, ctx.settings)
            return torch.autograd.grad(loss, logits, outer[0], create_graph=True)[0], *nothing
        grad = _spread(by_p * outer[0], regions).mul_(p).add_(_spread(by_log_p * outer[0], regions))
        if ctx.settings.published:
            grad.masked_fill_(p == 0, 0)
        if share is not None:
            assert regions.classes is not None
            grad.scatter_add_(1, regions.classes, share.mul(_spread(by_label[0] * outer[0], regions)))
        return grad.addcmul_(p, grad.sum(1, keepdim=True), value=-1), *nothing


def _plain(logits: Tensor, regions: _Regions, settings: _Settings) -> Tensor:
    """The loss by operations that autograd and the compiler can see through."""
    log_p = logits.log_softmax(1)
    _, _, *sums = _sums(log_p, regions, settings)
    exact = [] if regions.classes is None else [_log_label_sum(log_p, regions)[0]]
    return _loss_of_sums(regions, settings, logits.shape, *sums, *exact)


def _loss_of_sums(
    regions: _Regions,
    settings: _Settings,
    shape: torch.Size,
    p_sum: Tensor,
    log_p_sum: Tensor,
    counted: Tensor,
    pixels: Tensor,
    log_label_sum: Tensor | None = None,
) -> Tensor:
    """The loss from (N, C, bins) sums over the regions; `counted` and `pixels` (N, 1 or C, bins) count their pixels."""
    images, area = shape[0], shape[2] * shape[3]
    present = pixels > 0
    size: Tensor | int = area if settings.label_by_image else pixels.clamp(min=1)
    t = p_sum / size
    log_t = t.clamp(min=torch.finfo(t.dtype).tiny).log()
    if regions.classes is None:
        label_term = -(regions.label / pixels.clamp(min=1) * log_t).sum(1, keepdim=True)
    elif log_label_sum is None:
        label_term = -log_t.gather(1, regions.label[:, None])
    else:
        label_term = torch.as_tensor(size, dtype=t.dtype, device=t.device).log() - log_label_sum
    divergence = (t * (counted * log_t - log_p_sum)).sum(1, keepdim=True)
    if settings.published:
        ids = present.any(0).sum(dtype=t.dtype).clamp(min=1)
        label_weight = 1 / (ids * images)
        per_id = counted.expand_as(t).sum((0, 1), keepdim=True).clamp(min=1)
        divergence = divergence / (images * area if settings.consensus_by_image else per_id)
        consensus_weight = 1 / ids
    else:
        label_weight = consensus_weight = 1 / present.sum(dtype=t.dtype).clamp(min=1)
        divergence = divergence / (area if settings.consensus_by_image else pixels.clamp(min=1))
    return settings.alpha * label_weight * torch.where(present, label_term, 0).sum() + (
        settings.beta * consensus_weight * torch.where(present, divergence, 0).sum()
    )


def _sums(log_p: Tensor, regions: _Regions, settings: _Settings) -> tuple[Tensor, ...]:
    """p, a number that is finite if all of p and log p are, and the sums over each region.

    The sums are of p and of log p, of how many count in the latter, and of pixels. Where no gradient is recorded p
    takes the memory of `log_p`.
    """
    pixels = _sum(log_p.new_ones(()).expand(log_p.shape[0], 1, *log_p.shape[2:]), regions)
    if settings.published:  # the published code leaves out probabilities that underflow
        p = log_p.exp()
        some = p > 0
        counted, log_p = _sum(some.to(p.dtype), regions), torch.where(some, log_p, 0)
        log_p_sum = _sum(log_p, regions)
    else:
        counted, log_p_sum = pixels, _sum(log_p, regions)
        p = log_p.exp() if torch.is_grad_enabled() else log_p.exp_()
    p_sum = _sum(p, regions)
    return p, p_sum.sum() + log_p_sum.sum(), *(table[..., :-1] for table in (p_sum, log_p_sum, counted, pixels))


def _flags(total: Tensor, sums: list[Tensor], regions: _Regions, validate: bool) -> tuple[bool, bool, bool]:
    """Whether a region has two labels, whether its label's probability underflows, whether the sums are finite."""
    p_sum, pixels = sums[0], sums[3]
    if regions.classes is None:
        underflows = pixels.new_zeros((), dtype=torch.bool)
    elif not validate and pixels.is_cuda:
        return False, True, True  # the exact way fits all, and costs less than to wait for the device
    else:
        least = p_sum.gather(1, regions.label[:, None]).masked_fill(pixels == 0, 1)
        underflows = (least < 1e6 * torch.finfo(least.dtype).tiny).any()
    if not validate:
        return False, bool(underflows), True
    conflict = torch.zeros_like(underflows) if regions.conflict is None else regions.conflict
    found = torch.stack((conflict, underflows, torch.isfinite(total)))
    return tuple(found.tolist())


def _sum(values: Tensor, regions: _Regions) -> Tensor:
    """(N, C, H, W) summed over each region, and over the pixels that are ignored: (N, C, bins + 1).

    Bands of rows are summed apart and then together: a long sum in float32 loses digits, and on a GPU fewer threads
    wait for each other.
    """
    n, c, h, w = values.shape
    bands = max(d for d in range(1, h + 1) if h % d == 0 and (d == 1 or 8 * d * (regions.bins + 1) <= h * w))
    index = regions.ids.view(n, 1, bands, -1).expand(-1, c, -1, -1)
    table = values.new_zeros(n, c, bands, regions.bins + 1)
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
    total = _sum(scaled, regions)[..., :-1].clamp(min=torch.finfo(log_p.dtype).tiny)
    return top[:, :, :-1] + total.log(), scaled * _spread(1 / total, regions)


def _regions(
    logits: Tensor, target: Tensor, blobs: Tensor | None, ignore_index: int, validate: bool, names: Sequence[str] | None
) -> _Regions:
    n, c, h, w = logits.shape
    soft = target.is_floating_point()
    classes = target.argmax(1, keepdim=True) if soft else target
    ignored = None if soft else target == ignore_index
    ids, bins = (classes, c) if blobs is None else (blobs, h * w)
    if not torch.compiler.is_compiling() and (validate or not logits.is_cuda):
        low, high, first, last = torch.stack((*classes.aminmax(), *ids.aminmax())).tolist()  # one synchronisation
        if low >= 0 and high < c:
            ignored = None
        elif validate and ignored is not None:
            check_range("target", target.masked_fill(ignored, 0), c, names)
        if blobs is not None:
            bins = last + 1
            if first < 0 or last >= h * w:
                ids = blobs if ignored is None else blobs.masked_fill(ignored, 0)
                check_range("blobs", ids, None, names)
                found, ids = ids.unique(return_inverse=True)  # numbered anew, the same in all images
                bins = len(found)
    if ignored is not None:
        classes, ids = classes.masked_fill(ignored, 0), ids.masked_fill(ignored, bins)
    if soft:
        regions = _Regions(ids, bins, target, None)
        return regions._replace(label=_sum(target.to(logits.dtype), regions)[..., :-1])
    if blobs is None:
        return _Regions(ids, bins, torch.arange(c, device=logits.device).expand(n, c), classes)
    flat = ids.view(n, -1)
    label = classes.new_zeros(n, bins + 1).scatter(1, flat, classes.view(n, -1))
    conflict = (label.gather(1, flat) != classes.view(n, -1)).any() if validate else None
    return _Regions(ids, bins, label[:, :-1], classes, conflict)
