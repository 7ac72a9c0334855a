"""Objects that an earlier round's masks cut out, set before other images: their context is drawn anew."""

from __future__ import annotations

import torch
from torch import Tensor

_SMALLEST = 0.01  # share of a view from which an object is worth cutting out


def paste_objects(
    image: Tensor, tags: Tensor, mask: Tensor, share: float, shapes: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The views of a batch, some of them with an object of another view pasted in at its place there.

    The link from context to image is cut by intervention, not by a model of it: an object of the class k stands before
    what the data hold, P(c), and not before what k comes with, P(c | k). Of several classes in a mask one is drawn. A
    class of the image that is pasted over keeps its tag for the share of its pixels that is still seen.

    With the masks of other images as `shapes` what is pasted has the form of objects and holds anything: the control.

    Source: Su, Sun, Lin, Wu, "Context Decoupling Augmentation for Weakly Supervised Semantic Segmentation", ICCV 2021;
    there objects are also resized, and come from a first round alone.

    Args:
        image: (N, C, H, W), of two images or more; a single one stays as it is.
        tags: (N, n), 0 or 1.
        mask: (N, H, W) int64, 0 = background, k + 1 = class k; other values are no object.
        share: of the views, that something is pasted into where the other view has an object, 0..1.
        shapes: the masks to cut by, if not the images' own.

    Returns:
        Images (N, C, H, W), and tags (N, n) in 0..1.

    Raises:
        ValueError: shapes that do not fit.
    """
    number, classes = tags.shape
    cut_by = mask if shapes is None else shapes
    if not mask.shape == cut_by.shape == (number, *image.shape[-2:]) or len(image) != number:
        raise ValueError(
            f"images {tuple(image.shape)}, tags {tuple(tags.shape)}, masks {tuple(mask.shape)}; expected (N, C, H, W), "
            "(N, n) and (N, H, W)"
        )
    if number < 2:
        return image, tags
    everyone = torch.arange(number, device=image.device)
    forms = _objects(cut_by, classes)
    usable = forms.flatten(2).sum(2) >= _SMALLEST * image.shape[-2] * image.shape[-1]
    cut = _draw(usable)
    regions = forms[everyone, cut] & usable.any(1)[:, None, None]
    # By another image's mask the class may be one that the tags lack: then one of theirs goes with the shape.
    named = torch.where(tags[everyone, cut] > 0, cut, _draw(tags > 0))
    donors = (everyone + torch.randint(1, number, (1,)).item()) % number
    chosen = torch.rand(number, device=image.device) < share
    pasted = regions[donors] & chosen[:, None, None]
    own = _objects(mask, classes)
    hidden = (own & pasted[:, None]).flatten(2).sum(2) / own.flatten(2).sum(2).clamp(min=1)
    brought = torch.zeros_like(tags)
    brought[everyone, named[donors]] = pasted.flatten(1).any(1).to(tags.dtype)
    return torch.where(pasted[:, None], image[donors], image), torch.maximum(tags * (1 - hidden), brought)


def _objects(mask: Tensor, classes: int) -> Tensor:
    """(N, n, H, W), where each class is."""
    return mask[:, None] == torch.arange(1, classes + 1, device=mask.device)[:, None, None]


def _draw(allowed: Tensor) -> Tensor:
    """For each row of (N, n) one of the places that are allowed; the first where none is."""
    return torch.rand(allowed.shape, device=allowed.device).masked_fill(~allowed, -1).argmax(1)
