"""What the page of a run says of it, in Markdown."""

from collections.abc import Mapping

from paramtransfer.metrics import ACCURACY, BASELINE_ACCURACY, GAIN, as_text
from paramtransfer.stage import Stage


def describe(
    stage: Stage, metrics: Mapping[str, float], shape: tuple[int, ...], *, inherited: str, links: Mapping[Stage, str]
) -> str:
    """What a stage started from and what came of it.

    Args:
        stage: which training it was.
        metrics: its final metrics.
        shape: replicates and test samples.
        inherited: what a downstream run inherited, in one line.
        links: Markdown links to the runs of the job's earlier stages.
    """
    replicates, num_test = shape
    n = f"n = {replicates} × {num_test} test samples"
    accuracy = as_text(metrics, ACCURACY)
    match stage:
        case "upstream":
            return f"Trained on task 1, for downstream runs to inherit from. Test accuracy on task 1 {accuracy} ({n})."
        case "baseline":
            return f"Trained on task 2 without transfer, for downstream runs to beat. Test accuracy {accuracy} ({n})."
    source = f" from {links['upstream']}" if "upstream" in links else ""
    without = as_text(metrics, BASELINE_ACCURACY)
    return (
        f"Trained on task 2 with transfer: {inherited}{source}.\n\n"
        f"Gain **{as_text(metrics, GAIN)}**: test accuracy {accuracy} against {without} of the "
        f"{links['baseline']} ({n})."
    )
