"""Logs of interactions: a synthetic one whose truth is known, real ones, and ways to split them.

The names are imported on first use: a configuration reads the schema without TensorFlow.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
