"""Loss functions: tensors in, a scalar out."""

from losses.cross_entropy_dice import CrossEntropyDiceLoss, cross_entropy_dice

__all__ = ["CrossEntropyDiceLoss", "cross_entropy_dice"]
