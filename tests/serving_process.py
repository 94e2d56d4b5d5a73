"""`tfrs-negatives serve` of runs that `serving_cases` wrote: what follows is the command line."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from tfrs_negatives.cli.main import main
from tfrs_negatives.serve.deployment import Deployment

# isort: split
from serving_cases import open_fake

if __name__ == "__main__":
    Deployment.__init__.__kwdefaults__["open_index"] = open_fake
    main()
