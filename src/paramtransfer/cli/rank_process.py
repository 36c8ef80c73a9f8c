"""A further process of a job with several: its rank 0 starts `python -m paramtransfer.cli.rank_process FOLDER RANK`."""

import sys
from pathlib import Path

from paramtransfer.cli.arithmetic import register_resolvers
from paramtransfer.cli.process import configure_process
from paramtransfer.interrupts import leave_to_parent


def main() -> None:
    """Train along until rank 0 has no more stages."""
    leave_to_parent()
    configure_process()
    register_resolvers()
    from paramtransfer.cli.compose import make_job, parse
    from paramtransfer.experiment.train import follow
    from paramtransfer.trainer.ranks import CONFIG

    folder, rank = Path(sys.argv[1]), int(sys.argv[2])
    follow(make_job(parse((folder / CONFIG).read_text())), folder, rank=rank)


if __name__ == "__main__":
    main()
