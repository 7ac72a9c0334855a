"""Loss functions: tensors in, a scalar out."""

from losses.consensus import ConsensusLoss, consensus_loss
from losses.cross_entropy_dice import CrossEntropyDiceLoss, cross_entropy_dice
from losses.one_hot_binary_cross_entropy import OneHotBCELoss, one_hot_binary_cross_entropy

__all__ = [
    "ConsensusLoss",
    "CrossEntropyDiceLoss",
    "OneHotBCELoss",
    "consensus_loss",
    "cross_entropy_dice",
    "one_hot_binary_cross_entropy",
]
