"""Settings chosen on a validation part: a space of configuration keys to the best of its runs."""

from tfrs_negatives.tune.driver import run_tuning

__all__ = ["run_tuning"]
