"""Loss functions: tensors in, a scalar out."""

from losses.consensus import ConsensusLoss, consensus_loss
from losses.cross_entropy_dice import CrossEntropyDiceLoss, cross_entropy_dice

__all__ = ["ConsensusLoss", "CrossEntropyDiceLoss", "consensus_loss", "cross_entropy_dice"]
