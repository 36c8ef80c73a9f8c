"""A further process of a job with several, started by its rank 0: `python -m paramtransfer.cli.follow FOLDER RANK`."""

import signal
import sys
from pathlib import Path

from paramtransfer.cli.compose import make_job, parse, register_resolvers


def main() -> None:
    """Train along until rank 0 has no more stages."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is rank 0's business
    folder, rank = Path(sys.argv[1]), int(sys.argv[2])
    from paramtransfer.experiment.run import follow
    from paramtransfer.trainer.ranks import CONFIG

    register_resolvers()
    follow(make_job(parse((folder / CONFIG).read_text())), folder, rank=rank)


if __name__ == "__main__":
    main()
