"""Who could be a negative, and how likely was it drawn."""
