"""How the process ends on an error: with a sentence or a code, or, where nobody expects it, with its traceback."""

import sys

from hydra.errors import CompactHydraException

from paramtransfer.cli.process import CONF
from paramtransfer.errors import ConfigError, StoreError

_NO_OPTION = "Config group override must be"  # Hydra has no error of its own for this


def ending(error: Exception, *, wants_traceback: bool) -> str | int | None:
    """What to leave the process with; None for the traceback.

    Args:
        error: what has ended the job or the sweep.
        wants_traceback: whether the user has asked for it.
    """
    match error:
        case ConfigError():
            return str(error)
        case StoreError():
            print(error, file=sys.stderr)
            return error.exit_code
    if wants_traceback:
        return None
    if isinstance(error, CompactHydraException) or str(error).startswith(_NO_OPTION):
        from paramtransfer.cli.mistakes import explain

        return explain(error, CONF)
    if not type(error).__module__.startswith("submitit."):
        return None
    if type(error).__name__ == "FailedSubmissionError":
        return f"hydra/launcher=slurm: the jobs were not handed to SLURM ({' '.join(str(error).split())})"
    return 1  # a job has failed, and the sweep's table says why
