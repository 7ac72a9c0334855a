"""Structure via consensus: the pixels of a region are asked to be right together and to agree.

I. Masi, J. Mathai, W. AbdAlmageed, "Towards Learning Structure via Consensus for Face Segmentation and Parsing",
CVPR 2020, equation 8. All of it is sums over regions: the cost grows with pixels, not with regions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

Normalization = Literal["blob", "published"]
Reduction = Literal["blob", "image"]


class _Settings(NamedTuple):
    alpha: float
    beta: float
    published: bool
    label_by_image: bool
    consensus_by_image: bool


class _Regions(NamedTuple):
    """Which pixel belongs where; the last bin takes the pixels that are ignored.

    ids: int64 (N, 1, H, W), 0..bins. bins: number of regions an image. label: (N, bins) int64, or the (N, C, bins)
    sums of soft targets. classes: the hard target with 0 for ignored pixels, (N, 1, H, W); None where it is soft.
    """

    ids: Tensor
    bins: int
    label: Tensor
    classes: Tensor | None


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
        validate: check values too (labels, ids, one label a blob, nan), not only shapes; on a GPU one synchronisation.
        names: of the N images, for messages.

    Returns:
        A scalar; 0 with zero gradient where every pixel is ignored.

    Raises:
        TypeError: a tensor of the wrong type.
        ValueError: shapes or devices that do not fit, labels or ids out of range, a blob with two labels, nan or
            infinite logits.

    Example:
        One blob of two pixels that lean to opposite classes: t = 1/2, and either pixel is
        log(0.5 / (0.9 * 0.1) ** 0.5) away from it.

        >>> logits = torch.tensor([[[[0.9, 0.1]], [[0.1, 0.9]]]]).log()
        >>> consensus_loss(logits, torch.zeros(1, 1, 2, dtype=torch.long), alpha=1, beta=0)
        tensor(0.6931)
        >>> consensus_loss(logits, torch.zeros(1, 1, 2, dtype=torch.long), alpha=0, beta=1)
        tensor(0.5108)
    """
    settings = _Settings(
        alpha, beta, normalization == "published", label_reduction == "image", consensus_reduction == "image"
    )
    target, blobs = _check_shapes(logits, target, blobs)
    compiling = torch.compiler.is_compiling()
    with torch.autocast(logits.device.type, enabled=False):
        if logits.dtype in (torch.float16, torch.bfloat16):
            logits = logits.float()
        regions = _regions(logits, target, blobs, ignore_index, validate and not compiling, names)
        if compiling:
            return _plain(logits, regions, settings)
        loss: Tensor = _Consensus.apply(logits, regions, settings, validate)
    if validate and not torch.isfinite(loss):
        _refuse_logits(logits, names)
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
        problems = [
            f"{name}={value} (0 or more, and finite)"
            for name, value in (("alpha", alpha), ("beta", beta))
            if not 0 <= value < float("inf")
        ]
        words = {"normalization": ("blob", "published"), "label_reduction": ("blob", "image")}
        words["consensus_reduction"] = words["label_reduction"]
        given = {
            "normalization": normalization,
            "label_reduction": label_reduction,
            "consensus_reduction": consensus_reduction,
        }
        problems += [
            f"{name}={given[name]!r} ({' or '.join(words[name])})" for name in words if given[name] not in words[name]
        ]
        if problems:
            raise ValueError("ConsensusLoss: " + ", ".join(problems))
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


class _Consensus(torch.autograd.Function):
    """The loss with its gradient in closed form.

    All that the loss needs of the pixels is P = sum of p and Q = sum of log p in each region: its gradient for a
    pixel's log p is dL/dP * p + dL/dQ, and that passes through the log-softmax.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, regions: _Regions, settings: _Settings, validate: bool) -> Tensor:
        log_p = logits.log_softmax(1)
        p, *sums = _sums(log_p, regions, settings)
        share = None  # of each pixel in the probability of its region's label
        if regions.classes is not None:
            least = sums[0].gather(1, regions.label[:, None]).masked_fill(sums[3] == 0, 1)
            unsynchronised = not validate and logits.is_cuda
            if unsynchronised or bool((least < _underflow(p)).any()):
                log_sum, share = _log_label_sum(logits.log_softmax(1), regions)
                sums.append(log_sum)
        if not ctx.needs_input_grad[0]:
            return _loss_of_sums(regions, settings, logits.shape, *sums)
        with torch.enable_grad():
            leaves = [sums[i].requires_grad_() for i in (0, 1, 4)[: len(sums) - 2]]
            loss = _loss_of_sums(regions, settings, logits.shape, *sums)
            slopes = torch.autograd.grad(loss, leaves)
        ctx.save_for_backward(logits, p, share, *slopes)
        ctx.regions, ctx.settings = regions, settings
        return loss.detach()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None, None]:
        (outer,) = grad_outputs
        logits, p, share, by_p, by_log_p, *by_label = ctx.saved_tensors
        regions: _Regions = ctx.regions
        if torch.is_grad_enabled():  # create_graph: autograd derives the derivative
            with torch.autocast(logits.device.type, enabled=False):
                loss = _plain(logits, regions, ctx.settings)
            (grad,) = torch.autograd.grad(loss, logits, outer, create_graph=True)
            return grad, None, None, None
        grad = _spread(by_p * outer, regions).mul_(p).add_(_spread(by_log_p * outer, regions))
        if ctx.settings.published:
            grad.masked_fill_(p == 0, 0)
        if share is not None:
            assert regions.classes is not None
            grad.scatter_add_(1, regions.classes, share.mul(_spread(by_label[0] * outer, regions)))
        return grad.addcmul_(p, grad.sum(1, keepdim=True), value=-1), None, None, None


def _plain(logits: Tensor, regions: _Regions, settings: _Settings) -> Tensor:
    """The loss by operations that autograd and the compiler can see through."""
    log_p = logits.log_softmax(1)
    _, *sums = _sums(log_p, regions, settings)
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
    """p, and over each region the sums of p and of log p, how many count in the latter, and how many pixels there are.

    Where no gradient is recorded p takes the memory of `log_p`.
    """
    pixels = _sum(log_p.new_ones(()).expand(log_p.shape[0], 1, *log_p.shape[2:]), regions)
    if settings.published:  # the published code leaves out probabilities that underflow
        p = log_p.exp()
        some = p > 0
        return p, _sum(p, regions), _sum(torch.where(some, log_p, 0), regions), _sum(some.to(p.dtype), regions), pixels
    log_p_sum = _sum(log_p, regions)
    p = log_p.exp() if torch.is_grad_enabled() else log_p.exp_()
    return p, _sum(p, regions), log_p_sum, pixels, pixels


def _sum(values: Tensor, regions: _Regions) -> Tensor:
    """(N, C, H, W) summed over each region: (N, C, bins).

    Bands of rows are summed apart and then together: a long sum in float32 loses digits, and on a GPU fewer threads
    wait for each other.
    """
    n, c, h, w = values.shape
    bands = max(d for d in range(1, h + 1) if h % d == 0 and (d == 1 or 8 * d * (regions.bins + 1) <= h * w))
    index = regions.ids.view(n, 1, bands, -1).expand(-1, c, -1, -1)
    table = values.new_zeros(n, c, bands, regions.bins + 1)
    return table.scatter_add(3, index, values.reshape(n, c, bands, -1)).sum(2)[:, :, :-1]


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
    total = _sum(scaled, regions).clamp(min=torch.finfo(log_p.dtype).tiny)
    return top[:, :, :-1] + total.log(), scaled * _spread(1 / total, regions)


def _underflow(p: Tensor) -> float:
    """Sums of probabilities below this have lost digits."""
    return float(torch.finfo(p.dtype).tiny) * 1e6


def _check_shapes(logits: Tensor, target: Tensor, blobs: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Hard targets as int64 (N, 1, H, W), soft ones as they are; blobs as int64 (N, 1, H, W)."""
    if logits.ndim != 4 or not logits.is_floating_point():
        raise ValueError(f"logits are {_described(logits)}; (N, C, H, W) of a float type are needed")
    n, c, h, w = logits.shape
    if min(c, h, w) == 0:
        raise ValueError(f"logits are {_described(logits)}; at least one class and one pixel are needed")
    maps = {"target": target} | ({} if blobs is None else {"blobs": blobs})
    for name, given in maps.items():
        if given.device != logits.device:
            raise ValueError(f"{name} is on {given.device}, the logits on {logits.device}; move it there")
        soft = name == "target" and given.is_floating_point()
        if soft and given.shape != logits.shape:
            raise ValueError(
                f"target is {_described(given)}; class indices (N, H, W), or probabilities of the logits' shape "
                f"{tuple(logits.shape)}, are needed"
            )
        if not soft and (given.is_floating_point() or given.is_complex() or given.dtype == torch.bool):
            raise TypeError(f"{name} has dtype {given.dtype}; integers are needed")
        if not soft and given.shape not in ((n, h, w), (n, 1, h, w)):
            raise ValueError(
                f"{name} is {tuple(given.shape)}; {(n, h, w)} or {(n, 1, h, w)} fit logits {tuple(logits.shape)}"
            )
        maps[name] = given if soft else given.long().view(n, 1, h, w)
    return maps["target"], maps.get("blobs")


def _described(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {tensor.dtype}"


def _regions(
    logits: Tensor, target: Tensor, blobs: Tensor | None, ignore_index: int, validate: bool, names: Sequence[str] | None
) -> _Regions:
    n, c, h, w = logits.shape
    soft = target.is_floating_point()
    classes = target.argmax(1, keepdim=True) if soft else target
    look = not torch.compiler.is_compiling() and (validate or not logits.is_cuda)  # at values, from the host
    ignored = None if soft else target == ignore_index
    if look and not soft:
        low, high = _range(target)
        if low >= 0 and high < c:
            ignored = None
        elif validate:
            _check_range("target", target.masked_fill(target == ignore_index, 0), c, names)
    if ignored is not None:
        classes = classes.masked_fill(ignored, 0)
    ids, bins = classes, c
    if blobs is not None:
        ids, bins = blobs if ignored is None else blobs.masked_fill(ignored, 0), h * w
        if look:
            low, high = _range(ids)
            if low < 0:
                _check_range("blobs", ids, None, names)
            ids, bins = (ids, high + 1) if high < h * w else _dense(ids)
    index = ids if ignored is None else ids.masked_fill(ignored, bins)
    if soft:
        regions = _Regions(index, bins, target, None)
        return regions._replace(label=_sum(target.to(logits.dtype), regions))
    if blobs is None:
        return _Regions(index, bins, torch.arange(c, device=logits.device).expand(n, c), classes)
    flat = index.view(n, -1)
    label = classes.new_zeros(n, bins + 1).scatter_(1, flat, classes.view(n, -1))
    if validate:
        found = label.gather(1, flat).view_as(classes)
        if not torch.equal(found, classes):
            i, _, y, x = (found != classes).nonzero()[0].tolist()
            raise ValueError(
                f"blob {int(blobs[i, 0, y, x])} of {_name(i, names)} holds labels {int(classes[i, 0, y, x])} and "
                f"{int(found[i, 0, y, x])}; a blob has one label: cut the blobs by the labels"
            )
    return _Regions(index, bins, label[:, :-1], classes)


def _dense(ids: Tensor) -> tuple[Tensor, int]:
    """Large ids numbered anew from 0, the same in all images; with their number."""
    found, dense = ids.unique(return_inverse=True)
    return dense, len(found)


def _range(values: Tensor) -> tuple[int, int]:
    low, high = torch.stack(torch.aminmax(values)).tolist()
    return low, high


def _check_range(what: str, values: Tensor, end: int | None, names: Sequence[str] | None) -> None:
    """Raises where a value is below 0, or `end` or above; the message names the image."""
    wrong = values < 0 if end is None else (values < 0) | (values >= end)
    if bool(wrong.any()):
        i, _, y, x = wrong.nonzero()[0].tolist()
        expected = "ids from 0" if end is None else f"classes 0..{end - 1} or ignore_index"
        raise ValueError(f"{what} of {_name(i, names)} holds {int(values[i, 0, y, x])}; expected {expected}")


def _refuse_logits(logits: Tensor, names: Sequence[str] | None) -> None:
    """Raises where logits are not finite."""
    wrong = ~torch.isfinite(logits)
    if bool(wrong.any()):
        i, k, y, x = wrong.nonzero()[0].tolist()
        raise ValueError(
            f"logits of {_name(i, names)} hold {float(logits[i, k, y, x])} (class {k}, row {y}, column {x}); finite "
            "ones are needed: lower the learning rate, or look for the first step that gave it"
        )


def _name(image: int, names: Sequence[str] | None) -> str:
    return f"image {image} of the batch" if names is None else str(names[image])
