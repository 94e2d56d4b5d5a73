"""Which candidates count as negatives of which row."""
