"""A sweep as one HTML page that needs nothing beside itself: question, figure, tables, theory, costs, how to repeat it.

    python scripts/report.py SWEEP_ID           the sweep with that id, as its last line prints it
    python scripts/report.py fig1c              the newest sweep of an experiment

Reads the store alone (mlruns/, or what MLFLOW_TRACKING_URI names), also while jobs still run or after the process that
started them has died. The sweep's run keeps the page as report.html, and gets the table, figure and job list that it
lacks.
"""

import argparse
import sys
from pathlib import Path


def main() -> None:
    """Make the page and say where it lies."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", help="id of a sweep, or name of an experiment")
    parser.add_argument("--output", type=Path, help="file to write (default: mlruns/report-SWEEP_ID.html)")
    arguments = parser.parse_args()

    from paramtransfer.cli.process import configure_process

    configure_process()
    from paramtransfer.cli.arithmetic import register_resolvers
    from paramtransfer.cli.sweep import summarize_sweep
    from paramtransfer.errors import ConfigError, StoreError
    from paramtransfer.report.summary import write_page
    from paramtransfer.tracking.store import open_store
    from paramtransfer.tracking.sweeps import find_sweep, read_jobs

    folder = Path("mlruns")
    try:
        store = open_store(folder)
        sweep = find_sweep(store, arguments.sweep)
        if sweep.status == "RUNNING" or not store.read_files(sweep.run_id, suffix="jobs.json"):
            register_resolvers()
            summarize_sweep(store, sweep.run_id, read_jobs(store, sweep.run_id))
        page = write_page(store, sweep.run_id)
        output = arguments.output or folder / f"report-{sweep.run_id}.html"
        output.write_text(page, encoding="utf-8")
    except (ConfigError, LookupError, OSError, StoreError) as error:
        sys.exit(str(error))
    print(f"{output}\nThe sweep's run keeps it as report.html, too.")


if __name__ == "__main__":
    main()
