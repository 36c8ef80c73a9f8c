"""The entry: Hydra composes a configuration, a job is made of it and run, a sweep is closed with its table."""

import os
import sys

import hydra
from omegaconf import DictConfig

from paramtransfer.cli.arithmetic import register_resolvers
from paramtransfer.cli.endings import ending
from paramtransfer.cli.process import CONF, configure_process
from paramtransfer.cli.streams import lost_output
from paramtransfer.cli.sweep import closing_sweep
from paramtransfer.cli.words import as_hydra_reads
from paramtransfer.interrupts import end_gracefully

_FULL_ERROR = "HYDRA_FULL_ERROR"  # Hydra's: 1 asks for tracebacks


def main() -> None:
    """Run the job or the sweep that the command line describes."""
    configure_process()
    register_resolvers()
    end_gracefully()
    wants_traceback = os.environ.get(_FULL_ERROR, "0") not in ("", "0")
    os.environ[_FULL_ERROR] = "1"  # Hydra raises what it would print with advice of its own
    try:
        sys.argv[1:] = as_hydra_reads(sys.argv[1:])
        with closing_sweep():
            _run()
        if lost := lost_output():
            print(f"all is kept, but {lost}", file=sys.stderr)
            sys.exit(os.EX_IOERR)
    except Exception as error:
        end = ending(error, wants_traceback=wants_traceback)
        if end is None:
            raise
        sys.exit(end)


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def _run(config: DictConfig) -> None:
    configure_process()  # a launcher may have started this job in a process of its own
    register_resolvers()
    end_gracefully()
    from paramtransfer.cli.run_job import run_configured

    run_configured(config)
