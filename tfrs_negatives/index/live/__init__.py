"""An index that changes while it serves."""
