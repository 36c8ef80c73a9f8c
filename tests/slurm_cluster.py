"""A SLURM of one node on this machine, for tests: real daemons, started by hand as root, in one folder.

Debian and Ubuntu have what it needs: `apt-get install slurm-wlm munge`. Without accounting submitit would wait for ever
for a job that died without a result, because it asks `sacct` alone; here a stand-in answers from `scontrol`.
"""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol")
_SECONDS = 60

_SLURM_CONF = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=2,batch_sched_delay=0
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=5
MpiDefault=none
MaxArraySize=1001
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=tests Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""

# What submitit reads of sacct: a line for each job or element of an array.
_SACCT = """#!/bin/sh
echo 'JobID|State|NodeList'
scontrol show job -o 2>/dev/null | sed -n '
  s/^JobId=.* ArrayJobId=\\([0-9]*\\) ArrayTaskId=\\([^ ]*\\) .* JobState=\\([A-Z_]*\\) .*/\\1_\\2|\\3|/p; t
  s/^JobId=\\([0-9]*\\) .* JobState=\\([A-Z_]*\\) .*/\\1|\\2|/p
'
"""


def why_not() -> str | None:
    """Why there can be no cluster here; None if there can."""
    missing = [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]
    if missing:
        return f"SLURM is not installed ({', '.join(missing)} missing): apt-get install slurm-wlm munge"
    return "SLURM's daemons start as root only" if os.geteuid() else None


@contextmanager
def slurm_cluster(folder: Path, *, cpus: int) -> Iterator[dict[str, str]]:
    """Run a cluster while the block does; yields the environment variables that its clients need.

    Args:
        folder: where its files go; its path must be short, for sockets lie in it.
        cpus: how many cores the node offers; more than it has only share them.
    """
    for name in ("state", "spool", "bin"):
        (folder / name).mkdir()
    folder.chmod(0o755)
    ports = {name: _free_port() for name in ("controller_port", "node_port")}
    conf = folder / "slurm.conf"
    conf.write_text(_SLURM_CONF.format(host=socket.gethostname(), folder=folder, cpus=cpus, **ports))
    (folder / "bin" / "sacct").write_text(_SACCT)
    (folder / "bin" / "sacct").chmod(0o755)
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    variables = {"SLURM_CONF": str(conf), "PATH": f"{folder / 'bin'}{os.pathsep}{_path()}"}
    files = {name: f"--{name}-file={folder / 'munge'}.{name}" for name in ("key", "log", "pid", "seed")}
    with ExitStack() as stack:
        stack.enter_context(
            _daemon("munged", "--foreground", "--force", f"--socket={folder}/munge.socket", *files.values(), log=folder)
        )
        stack.enter_context(_daemon("slurmctld", "-D", log=folder, **variables))
        stack.enter_context(_daemon("slurmd", "-D", log=folder, **variables))
        _wait_until_idle(folder, variables)
        yield variables
        cancel_jobs(variables)


def cancel_jobs(variables: dict[str, str]) -> None:
    """End all jobs of a cluster, and wait until they have ended."""
    environment = {**os.environ, **variables}
    deadline = time.monotonic() + _SECONDS
    while subprocess.check_output(["squeue", "--noheader"], env=environment):
        subprocess.run(["scancel", "--state=PENDING", "--user=root"], env=environment)
        subprocess.run(["scancel", "--signal=KILL", "--full", "--user=root"], env=environment, capture_output=True)
        assert time.monotonic() < deadline
        time.sleep(0.5)


@contextmanager
def _daemon(program: str, *arguments: str, log: Path, **variables: str) -> Iterator[None]:
    path = log / f"{program}.log"
    with path.open("w") as opened:
        process = subprocess.Popen(
            [shutil.which(program, path=_path()) or program, *arguments],
            env={**os.environ, **variables},
            stdout=opened,
            stderr=opened,
        )
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_idle(folder: Path, variables: dict[str, str]) -> None:
    deadline = time.monotonic() + _SECONDS
    command = ["sinfo", "--noheader", "--format=%t"]
    while True:
        answer = subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True)
        if answer.stdout.strip() == "idle":
            return
        logs = "\n".join(path.read_text() for path in folder.glob("*.log"))
        assert time.monotonic() < deadline, f"no idle node: {answer.stdout}{answer.stderr}\n{logs}"
        time.sleep(0.2)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _path() -> str:
    """Daemons lie where only root's PATH may lead."""
    return f"{os.environ.get('PATH', '')}{os.pathsep}/usr/sbin{os.pathsep}/sbin"
