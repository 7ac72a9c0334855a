"""IRNet's loss of edges between pixels of different classes, and of displacements to one point in each object.

J. Ahn, S. Cho, S. Kwak, "Weakly Supervised Learning of Instance Segmentation with Inter-pixel Relations", CVPR 2019,
section 4.2. It is a sum over pairs of pixels; memory holds the pairs of one direction at a time.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from structseg.losses.affinity_paths import affinity_paths
from structseg.losses.ranks import total_over_ranks, world_size

_EPSILON = 1e-5  # as in the published code
_BACKGROUND, _FOREGROUND, _DIFFERENT, _IGNORED = range(4)  # kinds of pairs


class AffinityDisplacement(NamedTuple):
    """The loss and its four terms, scalars.

    Attributes:
        total: (pos_affinity + neg_affinity) / 2 + (foreground_displacement + background_displacement) / 2.
        pos_affinity: loss of pairs of equal class, half from background and half from foreground.
        neg_affinity: loss of pairs of different classes.
        foreground_displacement: mean error, in pixels of the map, of pairs of one foreground class.
        background_displacement: mean error of background pairs, whose displacements should be equal.
    """

    total: Tensor
    pos_affinity: Tensor
    neg_affinity: Tensor
    foreground_displacement: Tensor
    background_displacement: Tensor


def affinity_displacement_loss(
    edge_logits: Tensor,
    displacement: Tensor,
    labels: Tensor,
    radius: int = 10,
    classes: int = 21,
    counts_over_ranks: bool = False,
) -> AffinityDisplacement:
    """IRNet's loss: an edge between pixels of different classes, and displacements that meet within a class.

    For the pairs of pixels nearer than `radius` (`affinity_paths`), aff = 1 - the highest sigmoid(edge) on the path
    between the two; bg, fg and neg are the pairs of two background pixels, of one foreground class, and of different
    classes; n is their number in the batch, and e = 1e-5:

        pos_affinity            = 1/2 sum over bg of -log(aff + e) / (n_bg + e)  +  1/2 the same with fg
        neg_affinity            = sum over neg of -log(1 + e - aff) / (n_neg + e)
        foreground_displacement = sum over fg of |dp(source) - dp(other) - (dy, dx)| / (2 n_fg + e)
        background_displacement = sum over bg of |dp(source) - dp(other)| / (2 n_bg + e)

    Sources are the pixels in rows 0 .. h - radius and columns radius - 1 .. w - radius, as published. Only the highest
    edge of a path has a gradient (of equal edges, the last in the map). Arithmetic is float32 or better, also inside
    autocast. Time grows with the pixels times the cells of all paths; memory is about 20 maps for any radius. There are
    no second derivatives.

    Args:
        edge_logits: (N, 1, h, w), before the sigmoid.
        displacement: (N, 2, h, w), dy and dx, in pixels of the map.
        labels: (N, h, w) integers, 0 = background; negative values, and `classes` and above, are ignored.
        radius: upper limit of the distance in a pair, in pixels of the map.
        classes: number of classes, background included.
        counts_over_ranks: count the pairs of all processes, for DDP (`ranks`); they must then call it together.

    Returns:
        Loss and terms; all 0 with zero gradient if every pixel is ignored.

    Raises:
        TypeError: labels that are not integers.
        ValueError: shapes that do not match, a map without a source, a number out of range.

    Example:
        With radius 2 the only source is the middle of the first row; of its four neighbours only the one below differs.
        Edges of probability 1/2 cost ln 2 a pair; the pairs of equal class are all background, which counts half.

        >>> labels = torch.tensor([[[0, 0, 0], [0, 1, 0]]])
        >>> loss = affinity_displacement_loss(torch.zeros(1, 1, 2, 3), torch.zeros(1, 2, 2, 3), labels, radius=2)
        >>> [round(term.item(), 3) for term in loss]
        [0.52, 0.347, 0.693, 0.0, 0.0]
    """
    _check(edge_logits, displacement, labels, radius, classes)
    with torch.autocast(edge_logits.device.type, enabled=False):
        dtype = torch.promote_types(torch.promote_types(edge_logits.dtype, displacement.dtype), torch.float32)
        edges, displacement = edge_logits[:, 0].to(dtype), displacement.to(dtype)
        pairs = _pairs(edges.detach(), displacement.detach(), labels, radius, classes)
        number = pairs.highest.flatten(1).sum(1)
        ranks = world_size(counts_over_ranks)
        if ranks > 1:
            number = total_over_ranks(number)
        n_bg, n_fg, n_neg = number.to(dtype)
        # aff = sigmoid(-logit): 1 - sigmoid(logit) would lose digits.
        same, different = -(torch.sigmoid(-edges) + _EPSILON).log(), -(torch.sigmoid(edges) + _EPSILON).log()
        of_bg, of_fg = ((same * pairs.highest[kind]).sum() for kind in (_BACKGROUND, _FOREGROUND))
        pos = (of_bg / (n_bg + _EPSILON) + of_fg / (n_fg + _EPSILON)) / 2 * ranks
        neg = (different * pairs.highest[_DIFFERENT]).sum() / (n_neg + _EPSILON) * ranks
        # The absolute values are linear in the displacement near the given one: error + slope * (change, which is 0).
        moved = displacement - displacement.detach()
        dp_bg, dp_fg = (
            (error + (slope * moved).sum()) / (2 * n + _EPSILON) * ranks
            for error, slope, n in zip(pairs.error, pairs.slope, (n_bg, n_fg), strict=True)
        )
        return AffinityDisplacement((pos + neg) / 2 + (dp_fg + dp_bg) / 2, pos, neg, dp_fg, dp_bg)


class AffinityDisplacementLoss(nn.Module):
    """`affinity_displacement_loss` with its settings kept.

    Args:
        radius: upper limit of the distance in a pair, in pixels of the map; 2 or more.
        classes: number of classes, background included, 1 to 255; labels of `classes` and above are ignored.
        counts_over_ranks: count the pairs of all processes, for DDP.

    Raises:
        ValueError: radius or classes out of range.
    """

    def __init__(self, radius: int = 10, classes: int = 21, counts_over_ranks: bool = False) -> None:
        super().__init__()
        affinity_paths(radius)
        _check_classes(classes)
        self.radius, self.classes, self.counts_over_ranks = radius, classes, counts_over_ranks

    def forward(self, edge_logits: Tensor, displacement: Tensor, labels: Tensor) -> AffinityDisplacement:
        """The loss and its terms, from tensors (N, 1, h, w), (N, 2, h, w) and (N, h, w)."""
        return affinity_displacement_loss(
            edge_logits, displacement, labels, self.radius, self.classes, self.counts_over_ranks
        )

    def extra_repr(self) -> str:
        """The settings, for printing."""
        return f"radius={self.radius}, classes={self.classes}, counts_over_ranks={self.counts_over_ranks}"


class _Pairs(NamedTuple):
    """Sums over all pairs.

    Attributes:
        highest: (3, N, h, w), number of background, foreground and different pairs whose highest edge is this pixel.
        error: (2,), summed absolute errors of background and foreground displacements.
        slope: (2, N, 2, h, w), derivatives of `error` by the displacement.
    """

    highest: Tensor
    error: Tensor
    slope: Tensor


@torch.no_grad()
def _pairs(edges: Tensor, displacement: Tensor, labels: Tensor, radius: int, classes: int) -> _Pairs:
    n, h, w = edges.shape
    rows, columns, source = h - radius + 1, w - 2 * (radius - 1), (0, 0)

    def at(cell: tuple[int, int], maps: Tensor) -> Tensor:
        """The values of maps (..., h, w) at an offset from each source: (..., rows, columns)."""
        top, left = cell[0], radius - 1 + cell[1]
        return maps[..., top : top + rows, left : left + columns]

    # Ranks in sorted order instead of values: the maximum of ranks also says where the highest edge is.
    rising = edges.flatten().argsort(stable=True)
    order = torch.empty_like(rising, dtype=torch.int32)
    order[rising] = torch.arange(edges.numel(), dtype=torch.int32, device=edges.device)
    order = order.view_as(edges)

    ignored = (labels < 0) | (labels >= classes)
    labels = labels.masked_fill(ignored, 0).to(torch.int16)
    equal_kind = (labels > 0).to(torch.uint8)  # background or foreground, of a pair of equal labels
    highest = torch.zeros(4 * edges.numel(), dtype=torch.int32, device=edges.device)
    one = highest.new_ones(1).expand(n * rows * columns)
    error, slope = displacement.new_zeros(2), displacement.new_zeros(2, *displacement.shape)
    for direction, cells in affinity_paths(radius):
        kind = torch.where(at(source, labels) == at(direction, labels), at(source, equal_kind), _DIFFERENT)
        kind.masked_fill_(at(source, ignored) | at(direction, ignored), _IGNORED)
        top = torch.maximum(at(cells[0], order), at(cells[1], order))
        for cell in cells[2:]:
            torch.maximum(top, at(cell, order), out=top)
        highest.scatter_add_(0, (kind.long() * edges.numel()).add_(top).flatten(), one)

        difference = at(source, displacement) - at(direction, displacement)
        to_object = difference - difference.new_tensor(direction)[:, None, None]
        for which, residual in ((_BACKGROUND, difference), (_FOREGROUND, to_object)):
            residual = residual * (kind == which)[:, None]
            error[which] += residual.abs().sum()
            residual.sign_()
            at(source, slope[which]).add_(residual)
            at(direction, slope[which]).sub_(residual)
    counts = highest.view(4, -1)[:_IGNORED]
    return _Pairs(counts[:, order.flatten().long()].view(3, n, h, w), error, slope)


def _check_classes(classes: int) -> None:
    if not 1 <= classes <= 255:
        raise ValueError(f"affinity loss: classes={classes}; 1 to 255, background included")


def _check(edge_logits: Tensor, displacement: Tensor, labels: Tensor, radius: int, classes: int) -> None:
    affinity_paths(radius)
    _check_classes(classes)
    shapes = f"edges {tuple(edge_logits.shape)}, displacement {tuple(displacement.shape)}, labels {tuple(labels.shape)}"
    n, h, w = labels.shape if labels.ndim == 3 else (-1, -1, -1)
    if edge_logits.shape != (n, 1, h, w) or displacement.shape != (n, 2, h, w):
        raise ValueError(f"affinity loss: {shapes}; (N, 1, h, w), (N, 2, h, w) and (N, h, w) are expected")
    if n == 0 or h < radius or w < 2 * radius - 1:
        raise ValueError(
            f"affinity loss: {n} maps of {h} x {w} hold no pair of radius {radius}; "
            f"one or more of {radius} x {2 * radius - 1} or larger are needed: enlarge the crop or lower the radius"
        )
    if labels.dtype.is_floating_point or labels.dtype.is_complex or labels.dtype == torch.bool:
        raise TypeError(f"affinity loss: labels are {labels.dtype}; class indices are integers, such as torch.int64")
