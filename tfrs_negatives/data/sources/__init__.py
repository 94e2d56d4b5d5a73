"""Logs by name: a file per format."""
