"""Spreads class activation maps by a random walk that stops at edges, and makes labels of the result.

J. Ahn, S. Cho, S. Kwak, "Weakly Supervised Learning of Instance Segmentation with Inter-pixel Relations", CVPR 2019,
section 5. Of the (HW)^2 transition matrix only the diagonals that are not zero are stored: 69 at radius 5.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from structseg.losses.affinity_paths import affinity_paths

_CHUNK = 1 << 16  # values that one operation works on, so that they stay in a processor's cache


@torch.no_grad()
def random_walk(cams: Tensor, edges: Tensor, radius: int = 5, beta: float = 10.0, log2_steps: int = 8) -> Tensor:
    """Walks 2^log2_steps steps: each value becomes a weighted average of cam * (1 - edge) around it, up to edges.

    With aff[i, j] = 1 - the highest edge on the path between two pixels nearer than `radius` (`affinity_paths`), and 1
    of a pixel with itself:

        T[i, j] = aff[i, j]^beta / sum over k of aff[k, j]^beta        walk = (cam * (1 - edge)) T^(2^log2_steps)

    T is similar to a symmetric matrix with eigenvalues in -1..1, where x^n is a short sum of Chebyshev polynomials: 256
    steps take 78 products in float32, 116 in float64. As each value is a weighted average of the
    start, constant maps stay constant and no value leaves the range of its map; sums are not preserved.

    Time and memory grow in proportion to pixels; memory is that of 34 maps for each image at radius 5, and of seven for
    each class. Maps that are 0 everywhere cost nothing if every image of the batch has as many.

    Args:
        cams: (N, K, H, W), finite; any scale and any sign, usually 0..1.
        edges: (N, H, W) in 0..1, probabilities.
        radius: in pixels of the map, 2 or more.
        beta: power of the affinities, above 0; the higher, the harder an edge.
        log2_steps: number of doublings, 0 to 30: 8 is 256 steps.

    Returns:
        (N, K, H, W), float32 or as precise as the arguments; within 1e-5 of exact in float32 and 1e-12 in float64,
        relative to each map's maximum. Without gradient.

    Raises:
        ValueError: shapes that do not match, a number out of range, edges that are not probabilities, or maps with nan
            or infinity.

    Example:
        Two pixels without an edge: after one step both hold the mean.

        >>> random_walk(torch.tensor([[[[1.0, 0.0]]]]), torch.zeros(1, 1, 2), log2_steps=0)
        tensor([[[[0.5000, 0.5000]]]])
    """
    _check(cams, edges, radius, beta, log2_steps)
    dtype = torch.promote_types(torch.promote_types(cams.dtype, edges.dtype), torch.float32)
    with torch.autocast(cams.device.type, enabled=False):
        edges = edges.to(dtype)
        start = cams.to(dtype) * (1 - edges)[:, None]
        active = (start != 0).flatten(2).any(2)
        most = int(active.sum(1).amax()) if active.numel() else 0
        if most == 0:
            return start
        slots = active.int().argsort(dim=1, descending=True, stable=True)[:, :most, None, None]
        slots = slots.expand(-1, -1, *edges.shape[1:])
        moving = start.gather(1, slots)
        low, high = moving.amin((2, 3), keepdim=True), moving.amax((2, 3), keepdim=True)
        # Far from objects values would become subnormal, which is slow. The walk leaves a constant unchanged.
        floor = 1e-10 * torch.maximum(high, -low)
        walked = _walk(_Transitions.of(edges, radius, beta), moving + floor, 2**log2_steps)
        walked = walked.sub_(floor).clamp_(low, high)
        return torch.zeros_like(start).scatter_(1, slots, walked)


def walk_labels(walk: Tensor, size: tuple[int, int], background: float = 0.25) -> Tensor:
    """The class of each pixel of the image, from maps at a quarter of its size.

    The classes of `walk_scores` whose scores are above `background`.

    Args:
        walk: (K, H, W), foreground classes in order, K up to 254.
        size: (h, w) of the image, up to (4 H, 4 W).
        background: score of the background, 0 or more, usually below 1.

    Returns:
        (h, w) uint8: 0 = background, k + 1 = map k; of equal maps the first. All background where all maps are 0.

    Raises:
        ValueError: maps of another size than a quarter of the image, rounded up; nan; a negative background.

    Example:
        >>> walk_labels(torch.tensor([[[0.9]], [[0.2]]]), (2, 3))
        tensor([[1, 1, 1],
                [1, 1, 1]], dtype=torch.uint8)
    """
    if not background >= 0:
        raise ValueError(f"background={background}; 0 or more")
    scores, labels = walk_scores(walk, size)
    return labels.masked_fill_(scores <= background, 0)


def walk_scores(walk: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The likeliest class of each pixel of the image, and its score.

    The maps are enlarged four times (bilinear), cropped to `size` and divided by the maximum over all of them; the
    highest wins. One class at a time, so that memory does not grow with K.

    Args:
        walk: (K, H, W), foreground classes in order, K up to 254.
        size: (h, w) of the image, up to (4 H, 4 W).

    Returns:
        The scores, (h, w) in 0..1, float32 at least, and the classes, (h, w) uint8: k + 1 = map k, of equal maps the
        first. Both are 0 where all maps are 0.

    Raises:
        ValueError: maps of another size than a quarter of the image, rounded up; nan.
    """
    h, w = size
    if walk.ndim != 3 or len(walk) > 254 or tuple(walk.shape[1:]) != (-(-h // 4), -(-w // 4)):
        raise ValueError(
            f"walk {tuple(walk.shape)} and size {(h, w)} do not fit; maps are (K, {-(-h // 4)}, {-(-w // 4)}), K <= 254"
        )
    if not torch.isfinite(walk).all():
        raise ValueError("walk labels: the maps hold nan or infinity; look at the edges and the activation maps")
    best = torch.zeros(size, dtype=torch.promote_types(walk.dtype, torch.float32), device=walk.device)
    labels = torch.zeros(size, dtype=torch.uint8, device=walk.device)
    for index, plane in enumerate(walk.to(best.dtype)):
        large = F.interpolate(plane[None, None], scale_factor=4, mode="bilinear", align_corners=False)[0, 0, :h, :w]
        labels.masked_fill_(large > best, index + 1)
        torch.maximum(best, large, out=best)
    if best.any():
        best /= best.amax()
    return best, labels


class _Transitions(NamedTuple):
    """The matrix of affinities^beta by its diagonals, for flattened maps of L = H * W places.

    A shift by (dy, dx) is then one by dy * W + dx; the affinity is 0 where the shift would leave the map.

    Attributes:
        diagonals: (D, N, 1, L), affinity of place i with i + shift.
        shifts: of the D diagonals.
        inverse_sum: (N, 1, L), 1 / (column sums), with the 1 of the main diagonal.
        margin: zeros that maps need after the last row, for the largest shift.
    """

    diagonals: Tensor
    shifts: list[int]
    inverse_sum: Tensor
    margin: int

    @classmethod
    def of(cls, edges: Tensor, radius: int, beta: float) -> _Transitions:
        n, h, w = edges.shape
        paths = [path for path in affinity_paths(radius) if path.direction[0] < h and abs(path.direction[1]) < w]
        shifts = [dy * w + dx for (dy, dx), _ in paths]
        length, margin = h * w, max(shifts, default=0)
        diagonals = edges.new_zeros(len(paths), n, 1, length)
        total = edges.new_ones(n, 1, length + margin)
        clear = 1 - edges
        for ((dy, dx), cells), shift, diagonal in zip(paths, shifts, diagonals, strict=True):
            rows, left, columns = h - dy, max(0, -dx), w - abs(dx)
            views = [clear[:, a : a + rows, left + b : left + b + columns] for a, b in cells]
            lowest = torch.minimum(views[0], views[1])
            for view in views[2:]:
                torch.minimum(lowest, view, out=lowest)
            lowest.pow_(beta)
            lowest[lowest < torch.finfo(edges.dtype).eps ** 2] = 0  # powers that are subnormal numbers are slow
            diagonal.view(n, h, w)[:, :rows, left : left + columns] = lowest
            total[..., :length] += diagonal
            total[..., shift : shift + length] += diagonal
        return cls(diagonals, shifts, total[..., :length].reciprocal(), margin)

    def change(self, maps: Tensor, out: Tensor) -> None:
        """Writes the change by one step of flattened maps (N, K, L + margin) into a tensor of their shape.

        It sums differences between two places instead of values, so that rounding does not add up where a map is level;
        in float32 the result is a hundred times as precise.
        """
        length = self.inverse_sum.shape[-1]
        size = length if maps.is_cuda else max(_CHUNK // (maps.shape[0] * maps.shape[1]), 1024)
        out.zero_()
        for begin in range(0, length, size):
            end = min(begin + size, length)
            here, into = maps[..., begin:end], out[..., begin:end]
            flow = torch.empty_like(here)
            for shift, diagonal in zip(self.shifts, self.diagonals, strict=True):
                torch.sub(maps[..., begin + shift : end + shift], here, out=flow)
                flow.mul_(diagonal[..., begin:end])
                into.add_(flow)
                out[..., begin + shift : end + shift].sub_(flow)
        out[..., :length].mul_(self.inverse_sum)


def _walk(transitions: _Transitions, maps: Tensor, steps: int) -> Tensor:
    """`steps` products of maps (N, K, H, W) with the transitions, or the Chebyshev sum if that is shorter."""
    h, w = maps.shape[2:]
    now = F.pad(maps.flatten(2), (0, transitions.margin))
    change = torch.empty_like(now)
    weights = _chebyshev_weights(steps, 1e-6 if maps.dtype == torch.float32 else 1e-13)
    if len(weights) > steps:  # plain products are no slower, and keep positive values positive
        for _ in range(steps):
            transitions.change(now, change)
            now.add_(change)
        total = now
    else:
        total, last = now * weights[0], torch.zeros_like(now)
        for degree, weight in enumerate(weights[1:], start=1):
            transitions.change(now, change)
            # T_1 = x, T_k+1 - T_k = T_k - T_k-1 + 2 (x - 1) T_k
            last.add_(change, alpha=1 if degree == 1 else 2)
            now.add_(last)
            if weight:
                total.add_(now, alpha=weight)
    return total[..., : h * w].unflatten(2, (h, w)).contiguous()


def _chebyshev_weights(steps: int, error: float) -> list[float]:
    """x^steps on -1..1 as a sum of Chebyshev polynomials, with an error below `error`: its weights by degree.

    x^n = 2^(1 - n) * sum over k of binom(n, (n - k) / 2) T_k(x), over k of n's parity, half of it for k = 0. They are
    divided by their sum, so that constants stay unchanged.
    """
    if steps % 2:
        return [0.0] * steps + [1.0]  # 2^0 steps: T_1 is x
    even = [1.0]  # binom(n, (n - k) / 2) of k = 0, 2, ... over the first, down to 1e-18
    for k in range(0, steps, 2):
        even.append(even[-1] * (steps - k) / (steps + k + 2))
        if even[-1] < 1e-18:
            break
    even[0] = 0.5
    whole, rest = sum(even), 0.0
    while rest + even[-1] < error * whole:
        rest += even.pop()
    kept = sum(even)
    return [weight / kept for even_weight in even for weight in (even_weight, 0.0)][:-1]


def _check(cams: Tensor, edges: Tensor, radius: int, beta: float, log2_steps: int) -> None:
    shapes = f"random walk: cams {tuple(cams.shape)}, edges {tuple(edges.shape)}"
    if cams.ndim != 4 or edges.shape != (cams.shape[0], *cams.shape[2:]) or edges.numel() == 0:
        raise ValueError(f"{shapes} do not fit; (N, K, H, W) and (N, H, W) with at least one pixel are expected")
    affinity_paths(radius)
    if not 0 < beta < float("inf"):
        raise ValueError(f"random walk: beta={beta}; above 0 and finite")
    if not 0 <= log2_steps <= 30:
        raise ValueError(f"random walk: log2_steps={log2_steps}; 0 to 30, 8 is 256 steps")
    if not bool(((edges >= 0) & (edges <= 1)).all()):
        raise ValueError(f"{shapes}: edges leave 0..1 or are nan; they are probabilities, after the sigmoid")
    if not bool(torch.isfinite(cams).all()):
        raise ValueError(f"{shapes}: the activation maps hold nan or infinity")
