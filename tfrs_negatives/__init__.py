"""Negative sampling for two-tower retrieval on TensorFlow Recommenders.

The public names are listed in `__init__.pyi` and imported on first use, so that `import
tfrs_negatives` and the help of the command line do not wait for TensorFlow.
"""

import lazy_loader

from tfrs_negatives._keras import use_legacy_keras

use_legacy_keras()

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
