"""Logits to a gradient: miners, losses, the task and the model."""

from tfrs_negatives.train import losses

__all__ = ["losses"]
