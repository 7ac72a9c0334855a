"""Structure via consensus: a loss for the mean prediction of each region, and for the agreement of its pixels.

I. Masi, J. Mathai, W. AbdAlmageed, "Towards Learning Structure via Consensus for Face Segmentation and Parsing",
CVPR 2020, equation 8. Computed as sums over regions: the cost grows with pixels, not with regions.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from structseg.losses.class_weights import ClassWeighted, ClassWeights, check_weight
from structseg.losses.consensus_checks import check_shapes, refuse_conflict, refuse_logits
from structseg.losses.ranks import divisor, total_over_ranks, world_size
from structseg.losses.regions import (
    Regions,
    find_regions,
    images_at_once,
    region_sum,
    spread,
    spread_two,
    sum_two,
)

Normalization = Literal["blob", "published"]
Reduction = Literal["blob", "image"]
BlobWeight = Literal["equal", "size"]


class _Settings(NamedTuple):
    alpha: float
    beta: float
    published: bool
    label_by_image: bool
    consensus_by_image: bool
    by_size: bool
    over_ranks: bool


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
    blob_weight: BlobWeight = "equal",
    counts_over_ranks: bool = False,
    weight: Tensor | None = None,
) -> Tensor:
    """Consensus loss: cross-entropy of each blob's mean prediction t, plus the divergence of its m pixels u from t.

        L = mean over blobs of  alpha * (-log t[y])  +  beta * (1/m) * sum over u of KL(t || p[u]),    t = mean of p[u]

    with p the softmax of the logits and y the blob's label (CVPR 2020, equation 8). Gradient flows through t in both
    terms. A blob is a region of one image; the mean runs over all blobs of the batch.

    `normalization="published"` computes what the published code does: an id in two images is one blob, the label
    term is also divided by N, the consensus term by C (by the number of probabilities that are not zero).

    The arithmetic is float32 or better, also inside autocast; value and gradient are finite for absolute logits up to
    1e4. Memory beyond the arguments: 3 to 4 times float32 logits if ids are dense in each image or in the batch, else
    more. Second derivatives are right, but slow.

    Args:
        logits: (N, C, H, W), any float type.
        target: (N, H, W) or (N, 1, H, W), integers 0..C-1 or `ignore_index`; or (N, C, H, W) class probabilities, such
            as a teacher's, without gradient, all 0 for ignored pixels: the label term is then the cross-entropy
            of t against the blob's mean target.
        blobs: (N, H, W) or (N, 1, H, W) integers from 0, one label a blob; None = a blob is all pixels of one label
            (of a soft target: of one likeliest class). Compiled, or unchecked on a GPU, ids must be below H * W.
        alpha: weight of the label term, 0 or more.
        beta: weight of the consensus term, 0 or more.
        normalization: `blob` = the equation; `published` = as the published code.
        label_reduction: `blob` = t is the mean over the blob's pixels; `image` = the sum over H * W (published `all`).
        consensus_reduction: `blob` = the divergences are averaged over the blob; `image` = summed over H * W.
        ignore_index: target value of the pixels that belong to no blob.
        validate: check values too (labels, ids, one label a blob, nan), not only shapes; two synchronisations on a GPU.
            If False, and when compiled, invalid values give wrong results.
        names: names of the N images, for messages.
        blob_weight: `equal` = the equation, in which a speck counts as much as the background; `size` = each blob
            counts by its number of pixels. With `published` only `equal`.
        counts_over_ranks: the mean runs over the blobs of all processes, for DDP; they must then call it together.
            Logits that are not finite then give such a loss instead of an error, as an error in one process would
            leave the others waiting. With `published`, ids of H * W and above are not matched between processes.
        weight: (C,), weight of each class in the label term, whose mean over blobs is then a weighted one; the
            consensus term has no weights. None: all 1. Not with `published`.

    Returns:
        A scalar; 0 with zero gradient if every pixel is ignored.

    Raises:
        TypeError: a tensor of the wrong type.
        ValueError: a setting out of range, shapes or devices that do not match, labels or ids out of range, a blob with
            two labels, nan or infinite logits.

    Example:
        One blob of two pixels with opposite predictions: t = 1/2, and the divergence of each pixel is
        log(0.5 / (0.9 * 0.1) ** 0.5).

        >>> logits = torch.tensor([[[[0.9, 0.1]], [[0.1, 0.9]]]]).log()
        >>> consensus_loss(logits, torch.zeros(1, 1, 2, dtype=torch.long), alpha=1, beta=0)
        tensor(0.6931)
        >>> consensus_loss(logits, torch.zeros(1, 1, 2, dtype=torch.long), alpha=0, beta=1)
        tensor(0.5108)
    """
    over_ranks = world_size(counts_over_ranks) > 1
    settings = _settings(alpha, beta, normalization, label_reduction, consensus_reduction, blob_weight, over_ranks)
    target, blobs = check_shapes(logits, target, blobs)
    if weight is not None:
        _refuse_published_weight(normalization)
        check_weight(weight, logits.shape[1])
    with torch.autocast(logits.device.type, enabled=False):
        if logits.dtype in (torch.float16, torch.bfloat16):
            logits = logits.float()
        if torch.compiler.is_compiling():
            regions = find_regions(logits, target, blobs, ignore_index, settings.published, validate=False)
            regions = regions._replace(class_weight=weight)
            return _plain(logits, regions, settings)
        with torch.no_grad():
            regions = find_regions(logits, target, blobs, ignore_index, settings.published, validate, names)
            regions = regions._replace(class_weight=weight)
            p, total, *sums = _sums(logits.log_softmax(1), regions, settings)
            conflict, underflows, finite = _flags(total, sums[0], regions, settings, validate)
            if conflict:
                assert blobs is not None
                refuse_conflict(regions.ids, target, blobs, ignore_index, settings.published, names)
            if not finite and not over_ranks:
                refuse_logits(logits, names)
            share = None  # each pixel's share of its region's probability of the label
            if underflows:
                log_label_sum, share = _log_label_sum(logits.log_softmax(1), regions)
                sums.append(log_label_sum)
            loss, *slopes = _loss_of_sums(regions, settings, logits.shape, *sums)
        if logits.requires_grad and torch.is_grad_enabled():
            loss = _WithGradient.apply(logits, loss, settings, p, share, *slopes, *regions)
        return loss


class ConsensusLoss(ClassWeighted):
    """`consensus_loss` as a module; arguments as there.

    Args:
        alpha: weight of the label term, 0 or more.
        beta: weight of the consensus term, 0 or more; too large a value underfits.
        normalization: `blob` = the paper's equation 8; `published` = as the published code.
        label_reduction: `blob`, or `image` (published option `all`).
        consensus_reduction: `blob`, or `image` (published option `all`).
        ignore_index: target value of the pixels that belong to no blob.
        validate: check values too, not only shapes.
        blob_weight: `equal`, or `size` = blobs count by their number of pixels.
        weight: class weights in the label term: a list, a dict by class name, or `balanced` (`ClassWeighted`).

    Raises:
        ValueError: a setting out of range.
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
        blob_weight: BlobWeight = "equal",
        weight: ClassWeights = None,
    ) -> None:
        super().__init__()
        if weight is not None:
            _refuse_published_weight(normalization)
        self.set_weight(weight)
        _settings(alpha, beta, normalization, label_reduction, consensus_reduction, blob_weight, False)
        self.alpha, self.beta = alpha, beta
        self.normalization: Normalization = normalization
        self.label_reduction: Reduction = label_reduction
        self.consensus_reduction: Reduction = consensus_reduction
        self.ignore_index, self.validate = ignore_index, validate
        self.blob_weight: BlobWeight = blob_weight

    def forward(
        self, logits: Tensor, target: Tensor, blobs: Tensor | None = None, names: Sequence[str] | None = None
    ) -> Tensor:
        """As `consensus_loss`; in training mode the mean is over the blobs of all processes."""
        return consensus_loss(
            logits, target, blobs, self.alpha, self.beta, self.normalization, self.label_reduction,
            self.consensus_reduction, self.ignore_index, self.validate, names, self.blob_weight, self.training,
            self.weight_of_classes(),
        )  # fmt: skip

    def extra_repr(self) -> str:
        """The settings, for printing."""
        return (
            f"alpha={self.alpha}, beta={self.beta}, normalization={self.normalization}, blob_weight={self.blob_weight}"
        )


@lru_cache
def _settings(
    alpha: float, beta: float, normalization: str, label: str, consensus: str, blob_weight: str, over_ranks: bool
) -> _Settings:
    problems = [
        f"{name}={value} (0 or more, and finite)"
        for name, value in (("alpha", alpha), ("beta", beta))
        if not 0 <= value < float("inf")
    ]
    words = {"normalization": (normalization, Normalization), "label_reduction": (label, Reduction)}
    words["consensus_reduction"] = (consensus, Reduction)
    words["blob_weight"] = (blob_weight, BlobWeight)
    problems += [
        f"{name}={word!r} ({' or '.join(get_args(known))})"
        for name, (word, known) in words.items()
        if word not in get_args(known)
    ]
    if normalization == "published" and blob_weight == "size":
        problems.append("blob_weight='size' with normalization='published' (equal)")
    if problems:
        raise ValueError("consensus loss: " + ", ".join(problems))
    published, by_image = normalization == "published", (label == "image", consensus == "image")
    return _Settings(alpha, beta, published, *by_image, blob_weight == "size", over_ranks)


def _refuse_published_weight(normalization: str) -> None:
    if normalization == "published":
        raise ValueError("consensus loss: weight with normalization='published' (blob)")


class _WithGradient(torch.autograd.Function):
    """The loss with its gradient in closed form.

    The loss depends on the pixels through P = sum of p and Q = sum of log p of each region. Its gradient with respect
    to a pixel's log p is therefore dL/dP * p + dL/dQ, from which that of the logits follows.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, loss: Tensor, settings: _Settings, *saved: Tensor | None) -> Tensor:
        ctx.save_for_backward(logits, *saved)
        ctx.settings = settings
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        logits, p, share, by_p, by_log_p, by_label, *known = ctx.saved_tensors
        regions = Regions(*known)
        nothing = (None,) * (len(ctx.saved_tensors) + 1)
        if torch.is_grad_enabled():  # create_graph: autograd derives the derivative
            with torch.autocast(logits.device.type, enabled=False):
                loss = _plain(logits, regions, ctx.settings)
            return torch.autograd.grad(loss, logits, outer[0], create_graph=True)[0], *nothing
        # The gradient of log p is r = dL/dP p + dL/dQ; that of the logits r - p * sum of r.
        grad = torch.empty_like(p)
        slopes = by_p * outer[0], by_log_p * outer[0]
        chunks = (tensor.split(images_at_once(p)) for tensor in (p, regions.ids, *slopes, grad))
        for p_chunk, ids_chunk, by_p_chunk, by_log_p_chunk, out in zip(*chunks, strict=True):
            by_p_map, by_log_p_map = spread_two(by_p_chunk, by_log_p_chunk, ids_chunk)
            torch.addcmul(by_log_p_map, by_p_map, p_chunk, out=out)
        if ctx.settings.published:
            grad.masked_fill_(p == 0, 0)
        if share is not None:
            of_label = share * spread(by_label * outer[0], regions.ids)
            grad = grad.add_(of_label) if regions.classes is None else grad.scatter_add_(1, regions.classes, of_label)
        return grad.addcmul_(p, grad.sum(1, keepdim=True), value=-1), *nothing


def _plain(logits: Tensor, regions: Regions, settings: _Settings) -> Tensor:
    """The loss in operations that autograd and the compiler can differentiate."""
    log_p = logits.log_softmax(1)
    p_sum, log_p_sum, counted = _sums(log_p, regions, settings)[2:]
    exact = _log_label_sum(log_p, regions)[0]
    return _loss_of_sums(regions, settings, logits.shape, p_sum, log_p_sum, counted, exact)[0]


def _sums(log_p: Tensor, regions: Regions, settings: _Settings) -> tuple[Tensor, ...]:
    """Probabilities p (N, C, H, W), a scalar that is finite if all of log p is, and three sums over each region.

    The sums are those of p and of log p, (N, C, bins), and the number of terms in the latter, (N, 1 or C, bins).
    """
    ids, bins = regions.ids, regions.bins
    p, counted = log_p.exp(), regions.pixels
    if settings.published:  # the published code leaves out probabilities that underflow
        positive = p > 0
        total, counted = log_p.sum(), region_sum(positive.to(p.dtype), ids, bins)
        log_p = torch.where(positive, log_p, 0)
    p_sum, log_p_sum = sum_two(p, log_p, ids, bins)
    return p, total if settings.published else log_p_sum.sum(), p_sum, log_p_sum, counted


def _loss_of_sums(
    regions: Regions,
    settings: _Settings,
    shape: torch.Size,
    p_sum: Tensor,
    log_p_sum: Tensor,
    counted: Tensor,
    log_label_sum: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The loss, and its derivatives with respect to p_sum, log_p_sum and log_label_sum, from sums over each region.

    With t = p_sum / size, size = m or H * W, and the weights A and K of the region's two terms:

        L = sum of  A * (-log t[y])  +  K * sum over k of t[k] * (counted[k] * log t[k] - log_p_sum[k])
    """
    images, area = shape[0], shape[2] * shape[3]
    pixels = regions.pixels
    present, at_least_one = pixels.clamp(max=1), pixels.clamp(min=1)
    if settings.published:
        ids, per_id = present.amax(0), counted.expand_as(p_sum).sum((0, 1), keepdim=True)
        ranks = world_size(settings.over_ranks)
        if ranks > 1:
            ids, per_id, images = _over_ranks(ids, per_id, images)
        number = ids.sum().clamp(min=1)
        label_weight = present * (settings.alpha / (number * images))
        consensus_weight = present * (settings.beta / number)
        consensus_weight = consensus_weight / (images * area if settings.consensus_by_image else per_id.clamp(min=1))
        if ranks > 1:  # DDP takes the mean of the processes
            label_weight, consensus_weight = label_weight * ranks, consensus_weight * ranks
    else:
        region_weight = pixels if settings.by_size else present
        region_weight = region_weight / divisor(region_weight.sum(), settings.over_ranks)
        label_weight = region_weight
        if regions.class_weight is not None:
            of_class = regions.class_weight.to(region_weight)
            of_class = of_class[regions.label] if regions.classes is not None else of_class.view(1, -1, 1)
            label_weight = region_weight * of_class
            counts = label_weight if regions.classes is not None else label_weight * regions.label / at_least_one
            label_weight = label_weight / divisor(counts.sum(), settings.over_ranks)
        label_weight = label_weight * settings.alpha
        consensus_weight = region_weight * settings.beta / (area if settings.consensus_by_image else at_least_one)

    size = torch.full_like(pixels, area) if settings.label_by_image else at_least_one
    t = p_sum / size
    positive_t = t.clamp(min=torch.finfo(t.dtype).tiny)
    log_t = positive_t.log()
    log_ratio = torch.addcmul(-log_p_sum, counted, log_t)  # sum over u of log t - log p[u]
    by_log_p = -consensus_weight * t
    terms = -by_log_p * log_ratio
    by_p = consensus_weight / size * (log_ratio + counted)
    of_label = label_weight if regions.classes is not None else label_weight * regions.label / at_least_one
    by_label = -of_label
    if log_label_sum is not None:
        terms = terms.sum() + (by_label * (log_label_sum - size.log())).sum()
    elif regions.classes is None:
        terms = (terms + by_label * log_t).sum()
        by_p = by_p + by_label / (positive_t * size)
    else:
        terms = terms.sum() + (by_label * log_t.gather(1, regions.label)).sum()
        by_p = by_p.scatter_add(1, regions.label, by_label / (positive_t.gather(1, regions.label) * size))
    return terms, by_p, by_log_p, by_label


def _over_ranks(ids: Tensor, per_id: Tensor, images: int) -> tuple[Tensor, Tensor, int]:
    """Over all processes: which ids occur (1, bins), their counts (1, 1, this process's bins), the number of images."""
    bins = ids.shape[-1]
    most = int(total_over_ranks(torch.tensor(bins, device=ids.device), largest=True))
    # This process's last bin, the ignored pixels, may be an id in another process.
    table = torch.cat([ids, per_id[0] * ids, torch.full_like(ids, images)])
    occurs, counted, all_images = total_over_ranks(F.pad(table, (0, most - bins)))
    return occurs[None, :].clamp(max=1), counted[None, None, :bins], int(all_images.max())


def _flags(
    total: Tensor, p_sum: Tensor, regions: Regions, settings: _Settings, validate: bool
) -> tuple[bool, bool, bool]:
    """Whether any region has two labels, whether any label's probability is tiny, whether the sums are finite."""
    if not validate and p_sum.is_cuda:
        return False, True, True  # the exact computation is always right, and costs less than waiting for the device
    # Well above underflow: the gradient divides by the probability before it is multiplied by a similar number.
    tiny = torch.finfo(p_sum.dtype).tiny ** 0.5 * (regions.ids[0].numel() if settings.label_by_image else 1)
    if regions.classes is None:
        low = ((p_sum < tiny) & (regions.label > 0)).any()
    else:
        low = ((p_sum.gather(1, regions.label) < tiny) & (regions.pixels > 0)).any()
    if not validate:
        return False, bool(low), True
    conflict = regions.conflict
    if settings.published and regions.classes is not None:  # an id that images share is one blob
        present = regions.pixels > 0
        highest = regions.label.masked_fill(~present, -1).amax(0, keepdim=True)
        conflict = conflict | (present & (regions.label != highest)).any()
    flags = torch.stack((conflict, low, torch.isfinite(total))).tolist()
    return flags[0], flags[1], flags[2]


def _log_label_sum(log_p: Tensor, regions: Regions) -> tuple[Tensor, Tensor]:
    """Log of each region's summed probability of the label, exact also on underflow, and each pixel's share in the sum.

    (N, 1, bins) and (N, 1, H, W); of a soft target for each class, (N, C, bins) and (N, C, H, W).
    """
    of_label = log_p if regions.classes is None else log_p.gather(1, regions.classes)
    n, c = of_label.shape[:2]
    flat = regions.ids.view(n, 1, -1).expand(-1, c, -1)
    top = log_p.new_full((n, c, regions.bins), -torch.inf)
    top = top.scatter_reduce(2, flat, of_label.detach().reshape(n, c, -1), "amax")
    top = torch.where(torch.isfinite(top), top, 0)
    scaled = (of_label - spread(top, regions.ids)).exp()
    total = region_sum(scaled, regions.ids, regions.bins).clamp(min=torch.finfo(log_p.dtype).tiny)
    return top + total.log(), scaled * spread(1 / total, regions.ids)
