"""Several configurations on the same data: which one to choose, as a report."""

from tfrs_negatives.compare.results import compare, summary_rows
from tfrs_negatives.compare.variants import read_variants

__all__ = ["compare", "read_variants", "summary_rows"]
