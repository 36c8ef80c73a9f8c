"""A table of the paper beside ours."""

from collections.abc import Iterable, Mapping

import pandas as pd

from paramtransfer.figures.drawing import Drawing, SweepData
from paramtransfer.figures.significance import gain_counts
from paramtransfer.metrics import ACCURACY, BASELINE_ACCURACY, GAIN, sem_of
from paramtransfer.statistics import Estimate, p_values, t_interval

SCRATCH = "without transfer"


class PaperTable:
    """Test accuracy in percent, without transfer and for each value of `columns`: published, ours, difference.

    The gain is paired; its interval and p are Student's t over n repetitions.

    Args:
        rows: the swept key of the rows.
        columns: the swept key of the columns.
        published: the paper's accuracies, percent, by row and then by column, those without transfer under `none`.
    """

    def __init__(self, *, rows: str, columns: str, published: Mapping[str, Mapping[object, float]]) -> None:
        self.rows = rows
        self.columns = columns
        self.keys = [rows, columns]
        self._published = {
            row: {str(column): value for column, value in values.items()} for row, values in published.items()
        }

    def __call__(self, data: SweepData) -> Drawing:
        cells = []
        for row, group in self._grouped(data.table):
            published = self._published.get(str(row), {})
            baseline = group.iloc[
                int(group["n"].to_numpy().argmax())
            ]  # the same in all columns, but for jobs that failed
            cells.append(_cell(row, SCRATCH, published.get("none"), baseline, BASELINE_ACCURACY))
            for _, line in group.iterrows():
                column = line[self.columns] if self.columns in group else ""
                name = f"{self.columns.rpartition('.')[2]}={column}"
                cells.append(_cell(row, name, published.get(str(column)), line, ACCURACY))
        table = pd.DataFrame(cells)
        return Drawing(tables={"paper_table": table}, notes=[table.to_string(index=False), *gain_counts(data.table)])

    def _grouped(self, table: pd.DataFrame) -> Iterable[tuple[object, pd.DataFrame]]:
        return table.groupby(self.rows, sort=False) if self.rows in table else [("", table)]


def _cell(row: object, column: str, published: float | None, line: pd.Series, key: str) -> dict[str, object]:
    ours, sem = 100 * line[key], 100 * line[sem_of(key)]
    gain, num = Estimate(100 * line[GAIN], 100 * line[sem_of(GAIN)]), int(line["n"])
    low, high = t_interval(gain, num)
    gains = {
        "gain %": f"{gain.mean:+.2f}",
        "gain s.e.": f"{gain.sem:.2f}",
        "95 % (t)": f"{low:+.2f} to {high:+.2f}",
        "p": f"{p_values(*gain, num).item():.2f}",
    }
    return {
        "pair": row,
        "": column,
        "paper %": "" if published is None else f"{published:.2f}",
        "ours %": f"{ours:.2f}",
        "s.e.": f"{sem:.2f}",
        "difference": "" if published is None else f"{ours - published:+.2f}",
        **(gains if key == ACCURACY else dict.fromkeys(gains, "")),
        "n": num,
    }
