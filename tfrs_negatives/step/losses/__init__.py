"""Scored candidates to one number per row."""

from tfrs_negatives.step.losses.pairs import BPR, TripletHinge, TripletLogistic
from tfrs_negatives.step.losses.points import PointwiseBCE
from tfrs_negatives.step.losses.softmax import DecoupledSoftmax, EasyHardMixture, SampledSoftmax

__all__ = [
    "BPR",
    "DecoupledSoftmax",
    "EasyHardMixture",
    "PointwiseBCE",
    "SampledSoftmax",
    "TripletHinge",
    "TripletLogistic",
]
