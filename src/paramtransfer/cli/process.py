"""What a process of the command line sets once for itself: environment, warnings and logging, before heavy imports."""

import logging
import os
import re
import time
import warnings
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

from paramtransfer.cli.streams import protect_output

STARTED = time.monotonic()
"""When this process began, on the monotonic clock."""
CONF = Path(__file__).parents[3] / "conf"
"""The configuration that this project comes with."""
FOLDER = Path("mlruns")
"""Where everything that is kept lies, unless the store is elsewhere."""
_URI = "MLFLOW_TRACKING_URI"
# Read when MLflow is imported. Nothing is sent anywhere but to the tracking store, no bar for files of a few kB, no
# address of every run; MLflow's own retries would hold a call for minutes, ours say that they wait.
_MLFLOW = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}
_NUMBERS = {
    *("RANK", "LOCAL_RANK", "GROUP_RANK", "NODE_RANK", "WORLD_SIZE", "JSM_NAMESPACE_RANK", "MASTER_PORT"),
    *("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_NTASKS", "SLURM_NNODES", "SLURM_STEP_NUM_TASKS"),
    *("SLURM_CPUS_ON_NODE", "OMP_NUM_THREADS"),
}
_LEVELS = {
    "alembic": logging.WARNING,
    "huggingface_hub.utils._http": logging.ERROR,  # each of its retries, twice
    "mlflow": logging.WARNING,
    "mlflow.store.db.utils": logging.CRITICAL,  # a traceback of each error, raised as well
    "pytorch_lightning.utilities.rank_zero": logging.WARNING,  # the package sets its own level when it is imported
}


def configure_process() -> None:
    """Set what this process needs, wherever a launcher has started it; what the user has set stays."""
    protect_output()
    for name, value in _MLFLOW.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("PILLOW_BLOCK_SIZE", "64m")  # a large image's memory goes back when it is decoded
    _ignore_odd_numbers()
    _have_home()
    _hide_password()
    for name, level in _LEVELS.items():
        logging.getLogger(name).setLevel(level)
    logging.raiseExceptions = False  # a log file on a full disk is no reason for tracebacks
    # Lightning's own use of a function that torch 2.14 deprecates.
    warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\)")
    # What Pillow finds odd in an image is told with the image, or is none of the user's business.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    # A job on one node needs no srun, also where SLURM is installed.
    warnings.filterwarnings("ignore", message="The `srun` command is available")


def _ignore_odd_numbers() -> None:
    """What launchers have left empty or otherwise than as whole numbers, libraries would fail on at their import."""
    for name in _NUMBERS & os.environ.keys():
        if not re.fullmatch(r"\d+(,\d+)*" if name == "OMP_NUM_THREADS" else r"\d+", os.environ[name]):
            del os.environ[name]


def _have_home() -> None:
    """Libraries ask for a home directory when they are imported; a container's user may have none."""
    try:
        Path.home()
    except RuntimeError:
        os.environ["HOME"] = str(FOLDER.absolute() / "home")


def _hide_password() -> None:
    """A password in the store's address moves to where MLflow reads it and no message can show it."""
    parts = urlsplit(os.environ.get(_URI, ""))
    if parts.scheme in ("http", "https") and parts.username and parts.password:
        os.environ["MLFLOW_TRACKING_USERNAME"] = unquote(parts.username)
        os.environ["MLFLOW_TRACKING_PASSWORD"] = unquote(parts.password)
        os.environ[_URI] = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
