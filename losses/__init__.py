"""Loss functions: tensors in, a scalar out."""

from structseg.losses.affinity_displacement import (
    AffinityDisplacement,
    AffinityDisplacementLoss,
    affinity_displacement_loss,
)
from structseg.losses.affinity_paths import AffinityPath, affinity_paths
from structseg.losses.class_weights import ClassWeighted, ClassWeights
from structseg.losses.company_offset import CompanyOffsetLoss
from structseg.losses.consensus import ConsensusLoss, consensus_loss
from structseg.losses.cross_entropy import CrossEntropyLoss
from structseg.losses.cross_entropy_dice import CrossEntropyDiceLoss, cross_entropy_dice
from structseg.losses.one_hot_binary_cross_entropy import OneHotBCELoss, one_hot_binary_cross_entropy
from structseg.losses.tag_regression import cross_validated_ridge, tag_regression
from structseg.losses.windows import pasted_loss, theta_loss

__all__ = [
    "AffinityDisplacement",
    "AffinityDisplacementLoss",
    "AffinityPath",
    "ClassWeighted",
    "ClassWeights",
    "CompanyOffsetLoss",
    "ConsensusLoss",
    "CrossEntropyDiceLoss",
    "CrossEntropyLoss",
    "OneHotBCELoss",
    "affinity_displacement_loss",
    "affinity_paths",
    "consensus_loss",
    "cross_entropy_dice",
    "cross_validated_ridge",
    "one_hot_binary_cross_entropy",
    "pasted_loss",
    "tag_regression",
    "theta_loss",
]
