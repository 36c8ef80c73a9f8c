"""A further process of a job with several, started by its rank 0: `python -m paramtransfer.rank FOLDER RANK`."""

import signal
import sys
from pathlib import Path

from paramtransfer.config import make_job, parse, register_resolvers
from paramtransfer.lean_imports import import_lean


def main() -> None:
    """Train along until rank 0 has no more stages."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is rank 0's business
    folder, rank = Path(sys.argv[1]), int(sys.argv[2])
    import_lean()
    from paramtransfer.experiment import follow
    from paramtransfer.training.ranks import CONFIG

    register_resolvers()
    follow(make_job(parse((folder / CONFIG).read_text())), folder, rank=rank)


if __name__ == "__main__":
    main()
