"""A model to an index, and how wide it must search."""
