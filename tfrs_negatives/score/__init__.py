"""Queries times pool to logits: similarity, masks, correction."""
