"""IRNet's loss: edges lie between pixels of different classes, displacements point to one place in an object.

J. Ahn, S. Cho, S. Kwak, "Weakly Supervised Learning of Instance Segmentation with Inter-pixel Relations", CVPR 2019,
section 4.2. All of it is a sum over pairs of pixels; only the pairs of one direction are ever in memory.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from structseg.losses.affinity_paths import affinity_paths
from structseg.losses.ranks import ranks_of, total_over_ranks

_EPSILON = 1e-5  # of the published code: in the logarithms and in the numbers of pairs
_BACKGROUND, _FOREGROUND, _DIFFERENT, _IGNORED = range(4)  # what a pair is


class AffinityDisplacement(NamedTuple):
    """The loss and its four terms, scalars.

    Attributes:
        total: (pos_affinity + neg_affinity) / 2 + (foreground_displacement + background_displacement) / 2.
        pos_affinity: of pairs of one class, half from background and half from foreground.
        neg_affinity: of pairs of two classes.
        foreground_displacement: mean error, in pixels of the map, of pairs of one foreground class.
        background_displacement: the same of background pairs, whose displacements are to be equal.
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
    """Asks for an edge between pixels of different classes, and for displacements that meet within a class.

    With q a pair of pixels nearer than `radius` (`affinity_paths`), aff = 1 - the highest sigmoid(edge) on the path
    between them, bg / fg / neg the pairs of both background / one foreground class / two classes, n their number in the
    whole batch, and e = 1e-5:

        pos_affinity            = 1/2 sum over bg of -log(aff + e) / (n_bg + e)  +  1/2 the same with fg
        neg_affinity            = sum over neg of -log(1 + e - aff) / (n_neg + e)
        foreground_displacement = sum over fg of |dp(source) - dp(other) - (dy, dx)| / (2 n_fg + e)
        background_displacement = sum over bg of |dp(source) - dp(other)| / (2 n_bg + e)

    Sources are the rows 0 .. h - radius and columns radius - 1 .. w - radius, as published. The highest edge takes the
    gradient of the path alone; of equal ones the last in the map does. Arithmetic is float32 or better, also inside
    autocast; time grows with pixels times cells of all paths, memory is that of some 20 maps, whatever the radius.
    First derivatives only.

    Args:
        edge_logits: (N, 1, h, w), before the sigmoid.
        displacement: (N, 2, h, w), dy and dx, in pixels of the map.
        labels: (N, h, w) integers, 0 = background; 255, negative ones and `classes` and above are ignored.
        radius: pairs are nearer than this, in pixels of the map.
        classes: number of classes, background included.
        counts_over_ranks: sum the numbers of pairs over all processes of `torch.distributed`, so that the average of
            the ranks' losses, and with it DDP's gradient, is that of one process with the whole batch. All ranks must
            then call it together. Does nothing in a single process.

    Returns:
        Loss and terms; all 0 with zero gradient where every pixel is ignored.

    Raises:
        TypeError: labels that are not integers.
        ValueError: shapes that do not belong together, a map without a single source, a number out of range.

    Example:
        Radius 2 has one source here, the middle of the first row: of its four neighbours only the one below differs.
        Edges of probability 1/2 cost ln 2 a pair; of the like pairs there is background's half.

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
        ranks = ranks_of(counts_over_ranks)
        if ranks > 1:
            number = total_over_ranks(number)
        n_bg, n_fg, n_neg = number.to(dtype)
        # aff is the sigmoid of minus the highest logit: no digits are lost in 1 - sigmoid, at either end.
        same, different = -(torch.sigmoid(-edges) + _EPSILON).log(), -(torch.sigmoid(edges) + _EPSILON).log()
        of_bg, of_fg = ((same * pairs.highest[kind]).sum() for kind in (_BACKGROUND, _FOREGROUND))
        pos = (of_bg / (n_bg + _EPSILON) + of_fg / (n_fg + _EPSILON)) / 2 * ranks
        neg = (different * pairs.highest[_DIFFERENT]).sum() / (n_neg + _EPSILON) * ranks
        # The sums of absolute values, with their slopes: linear in the displacement as long as no sign changes.
        moved = displacement - displacement.detach()
        dp_bg, dp_fg = (
            (error + (slope * moved).sum()) / (2 * n + _EPSILON) * ranks
            for error, slope, n in zip(pairs.error, pairs.slope, (n_bg, n_fg), strict=True)
        )
        return AffinityDisplacement((pos + neg) / 2 + (dp_fg + dp_bg) / 2, pos, neg, dp_fg, dp_bg)


class AffinityDisplacementLoss(nn.Module):
    """`affinity_displacement_loss` with its settings kept.

    Args:
        radius: pairs are nearer than this, in pixels of the map.
        classes: number of classes, background included; labels from there on are ignored.
        counts_over_ranks: sum the numbers of pairs over all processes, for DDP.

    Raises:
        ValueError: a radius without neighbours, or no class at all.
    """

    def __init__(self, radius: int = 10, classes: int = 21, counts_over_ranks: bool = False) -> None:
        super().__init__()
        affinity_paths(radius)
        _check_classes(classes)
        self.radius, self.classes, self.counts_over_ranks = radius, classes, counts_over_ranks

    def forward(self, edge_logits: Tensor, displacement: Tensor, labels: Tensor) -> AffinityDisplacement:
        """(N, 1, h, w), (N, 2, h, w) and (N, h, w) to a loss and its terms."""
        return affinity_displacement_loss(
            edge_logits, displacement, labels, self.radius, self.classes, self.counts_over_ranks
        )

    def extra_repr(self) -> str:
        """The settings, for printing."""
        return f"radius={self.radius}, classes={self.classes}, counts_over_ranks={self.counts_over_ranks}"


class _Pairs(NamedTuple):
    """What the loss needs of the pairs: sums over all of them, none by itself.

    highest (3, N, h, w): of how many background, foreground and different pairs the pixel is the highest edge; error
    (2,): summed absolute errors of background and foreground displacements; slope (2, N, 2, h, w): their derivatives.
    """

    highest: Tensor
    error: Tensor
    slope: Tensor


@torch.no_grad()
def _pairs(edges: Tensor, displacement: Tensor, labels: Tensor, radius: int, classes: int) -> _Pairs:
    n, h, w = edges.shape
    rows, columns = h - radius + 1, w - 2 * (radius - 1)

    def seen(maps: Tensor, cell: tuple[int, int]) -> Tensor:
        """What all sources see at an offset."""
        top, left = cell[0], radius - 1 + cell[1]
        return maps[..., top : top + rows, left : left + columns]

    # The place of each edge in their order: a maximum of places is a maximum of edges that knows where it is.
    rising = edges.flatten().argsort(stable=True)
    places = torch.empty_like(rising, dtype=torch.int32)
    places[rising] = torch.arange(edges.numel(), dtype=torch.int32, device=edges.device)
    places = places.view_as(edges)

    ignored = (labels < 0) | (labels >= classes)
    labels = labels.masked_fill(ignored, 0).to(torch.int16)
    alike = (labels > 0).to(torch.uint8)  # the kind of a pair whose other end has the same label
    highest = torch.zeros(4 * edges.numel(), dtype=torch.int32, device=edges.device)
    one = highest.new_ones(1).expand(n * rows * columns)
    error, slope = displacement.new_zeros(2), displacement.new_zeros(2, *displacement.shape)
    for direction, cells in affinity_paths(radius):
        kind = torch.where(seen(labels, (0, 0)) == seen(labels, direction), seen(alike, (0, 0)), _DIFFERENT)
        kind.masked_fill_(seen(ignored, (0, 0)) | seen(ignored, direction), _IGNORED)
        top = torch.maximum(seen(places, cells[0]), seen(places, cells[1]))
        for cell in cells[2:]:
            torch.maximum(top, seen(places, cell), out=top)
        highest.scatter_add_(0, (kind.long() * edges.numel()).add_(top).flatten(), one)

        apart = seen(displacement, (0, 0)) - seen(displacement, direction)
        beyond = apart - apart.new_tensor(direction)[:, None, None]
        for which, difference in ((_BACKGROUND, apart), (_FOREGROUND, beyond)):
            wrong = difference * (kind == which)[:, None]
            error[which] += wrong.abs().sum()
            wrong.sign_()
            seen(slope[which], (0, 0)).add_(wrong)
            seen(slope[which], direction).sub_(wrong)
    counts = highest.view(4, -1)[:_IGNORED]
    return _Pairs(counts[:, places.flatten().long()].view(3, n, h, w), error, slope)


def _check_classes(classes: int) -> None:
    if not 1 <= classes <= 255:
        raise ValueError(f"affinity loss: classes={classes}; 1 to 255, background included")


def _check(edge_logits: Tensor, displacement: Tensor, labels: Tensor, radius: int, classes: int) -> None:
    affinity_paths(radius)
    _check_classes(classes)
    shapes = f"edges {tuple(edge_logits.shape)}, displacement {tuple(displacement.shape)}, labels {tuple(labels.shape)}"
    if labels.ndim != 3:
        raise ValueError(f"affinity loss: {shapes}; (N, 1, h, w), (N, 2, h, w) and (N, h, w) are expected")
    n, h, w = labels.shape
    if edge_logits.shape != (n, 1, h, w) or displacement.shape != (n, 2, h, w):
        raise ValueError(f"affinity loss: {shapes}; (N, 1, h, w), (N, 2, h, w) and (N, h, w) are expected")
    if n == 0 or h < radius or w < 2 * radius - 1:
        raise ValueError(
            f"affinity loss: {n} maps of {h} x {w} hold no pair of radius {radius}; "
            f"one or more of {radius} x {2 * radius - 1} or larger are needed: enlarge the crop or lower the radius"
        )
    if labels.dtype.is_floating_point or labels.dtype.is_complex or labels.dtype == torch.bool:
        raise TypeError(f"affinity loss: labels are {labels.dtype}; class indices are integers, such as torch.int64")
