"""`python run_search.py CAMPAIGN.yaml` is `evomerge search CAMPAIGN.yaml`."""

import sys

from evomerge.cli import app

if __name__ == "__main__":
    app(["search", *sys.argv[1:]])
