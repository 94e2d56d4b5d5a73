"""Scored candidates to one number per row."""

from tfrs_negatives.step.losses.contrasts import BSL, PSL
from tfrs_negatives.step.losses.pairs import BPR, SoftPartialAUC, TripletHinge, TripletLogistic
from tfrs_negatives.step.losses.points import CCL, GBCE, NonSampling, PointwiseBCE
from tfrs_negatives.step.losses.sl_at_k import SLAtK
from tfrs_negatives.step.losses.softmax import (
    DecoupledSoftmax,
    EasyHardMixture,
    SampledSoftmax,
    SoftmaxOverPositives,
)
from tfrs_negatives.step.losses.top_k import SoftTopK

__all__ = [
    "BPR",
    "BSL",
    "CCL",
    "GBCE",
    "PSL",
    "DecoupledSoftmax",
    "EasyHardMixture",
    "NonSampling",
    "PointwiseBCE",
    "SLAtK",
    "SampledSoftmax",
    "SoftPartialAUC",
    "SoftTopK",
    "SoftmaxOverPositives",
    "TripletHinge",
    "TripletLogistic",
]
