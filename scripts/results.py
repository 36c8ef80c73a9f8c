"""What docs/results says of its tables, computed from the tables: counts, intervals, crossings, trends.

    python scripts/results.py            print it
    python scripts/results.py --draw     draw the figures beside the tables again, too

Trains nothing. Standard errors of images combine seeds and test images as `paramtransfer.statistics.pooled` says.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from omegaconf import OmegaConf

from paramtransfer import lemmas
from paramtransfer.figures import style
from paramtransfer.figures.better import Better
from paramtransfer.figures.curves import Curves
from paramtransfer.figures.drawing import Draw, Drawing, SweepData
from paramtransfer.figures.heatmap import Heatmap
from paramtransfer.figures.paper_table import PaperTable
from paramtransfer.figures.phase import Phase
from paramtransfer.figures.significance import LEVEL, gain_counts, harm_prediction
from paramtransfer.statistics import Estimate, benjamini_hochberg, p_values, pooled, t_interval

RESULTS = Path(__file__).parents[1] / "docs" / "results"
CONF = Path(__file__).parents[1] / "conf" / "experiment"
BETTER = Better(
    x="dataset.u_norm", lines="dataset.dim", fresh=["aligned fresh start together dims_per_sample=1"], paper="α=0.5"
)
FIGURES: dict[str, Draw] = {
    "fig1a": Curves(x="task.upstream.num_samples", lines="alpha"),
    "fig1b": Curves(x="task.upstream.noise", lines="alpha"),
    "fig1c": Curves(x="dataset.u_norm", lines="alpha"),
    "fig2": Heatmap(x="dataset.dim", y="dataset.u_norm", truncate=[0.65, 0.70]),
    "reference": Curves(x="alpha", lines="dataset.u_norm"),
    "phase": Phase(size="regime.n", family="regime.shared"),
    "phase_loss": Phase(size="regime.time", family="regime.shared"),
    "alpha_small": Curves(x="alpha"),
    "better_fig1c": BETTER,
    "better_fig2": BETTER,
    "fig3_small_fresh": Curves(x="task.downstream.noise"),
}
_DEFAULT = pd.Series({"ratio": 4, "alpha": 0.5, "channels": "independent", "batchnorm": "inherit", "noise": 0})
_COMPARED = (  # key, its value, the other, and the column that is compared
    ("alpha", 1.0, 0.25, "with_"),
    ("alpha", 1.0, 0.5, "with_"),
    ("alpha", 0.75, 0.5, "with_"),
    ("ratio", 4, 1, "with_"),
    ("ratio", 4, 2, "with_"),
    ("noise", 20, 0, "gain"),
    ("channels", "consistent", "independent", "val_with"),
    ("batchnorm", "reset", "inherit", "val_with"),
)
_PLACE = ["upstream", "downstream", "ratio", "per_class", "epochs", "noise"]
_START = ["rule", "unit", "alpha"]
_FACTORS = {"select": "random", "channels": "", "head_epochs": 0, "match_steps": 0, "lr_scale": 1}
_SETTING = ["upstream", "downstream", "ratio", "alpha", "channels", "batchnorm", "noise"]


def _no_runs(*_: object) -> Any:
    raise LookupError("a table holds no runs")


_NO_RUNS: dict[str, Any] = {"job": _no_runs, "history": _no_runs}


def drawn(name: str, table: pd.DataFrame) -> Drawing:
    """A figure, as the sweep that left the table drew it."""

    data = SweepData(keys=FIGURES[name].keys or [], table=table, rows=table, **_NO_RUNS)
    with style.applied():
        return FIGURES[name](data)


def table_of(name: str) -> pd.DataFrame:
    """The table that a figure is drawn from."""
    if name == "alpha_small":
        return of_images(model="model", alpha="alpha").query("model == 'resnet34_resnet18'").sort_values("alpha")
    return pd.read_csv(RESULTS / f"{name}.csv")


def table1() -> pd.DataFrame:
    """Table 1 at small size, beside the paper's."""
    config = OmegaConf.to_container(OmegaConf.load(CONF / "table1_cifar10.yaml").figure)
    assert isinstance(config, dict)
    published = {str(row): columns for row, columns in config["published"].items()}
    ours = of_images(**{"model": "model", "task.ratio": "ratio"}).query("`task.ratio` > 1")
    draw = PaperTable(rows="model", columns="task.ratio", published=published)
    data = SweepData(keys=draw.keys, table=ours.sort_values(["model", "task.ratio"]), rows=ours, **_NO_RUNS)
    return draw(data).tables["paper_table"]


def synthetic() -> Iterator[str]:
    """Figures 1 and 2: how many settings gain and lose, and Proposition 4.4 where it speaks."""
    for name in ("fig1a", "fig1b", "fig1c", "fig2"):
        table = pd.read_csv(RESULTS / f"{name}.csv")
        yield from (f"{name}: {note}" for note in [*gain_counts(table), harm_prediction(table)])


def choice() -> Iterator[str]:
    """What transfer=chosen is worth on both grids."""
    for name in ("better_fig1c", "better_fig2"):
        yield from (f"{name}: {note}" for note in drawn(name, table_of(name)).notes)


def phase() -> Iterator[str]:
    """Theorem 4.2 in its own regime: crossings, exponents, trends, and the loss that was reached."""
    table = pd.read_csv(RESULTS / "phase.csv")
    yield from drawn("phase", table).notes
    by_size = table.pivot(index=["regime.signal", "regime.shared"], columns="regime.n", values="test/log_error_tail")
    by_size = by_size.dropna()
    rises = int((by_size.iloc[:, -1] < by_size.iloc[:, 0]).sum())
    yield f"the error is smaller at the largest n than at the smallest in {rises} of {len(by_size)} settings"
    asked = table["theory/steps/downstream_loss"]
    loss = table["train/loss"]
    yield (
        f"training loss reached: {loss.min():.3f} to {loss.max():.3f}, after {asked.min():.1e} to {asked.max():.1e} of "
        "the steps N_2 m/(eta epsilon sigma_2^2), epsilon = 0.1"
    )
    column = pd.read_csv(RESULTS / "phase_loss.csv")
    for time, group in column.groupby("regime.time"):
        loss = group["train/loss"]
        yield f"regime.time={time}: training loss {loss.min():.4f} to {loss.max():.4f}"
    yield from drawn("phase_loss", column).notes[:3]


def images() -> Iterator[str]:
    """Each gain on images: both errors, interval and p; all together; shares of one seed against each other."""
    table = pd.read_csv(RESULTS / "images_small.csv").drop_duplicates([*_SETTING, "seed"])
    p = []
    for setting, group in table.groupby(_SETTING, sort=False):
        num = len(group)
        gains, sems = group["gain"].to_numpy(dtype=float), group["gain_sem"].to_numpy(dtype=float)
        seeds = f"{100 * gains.std(ddof=1) / num**0.5:.2f}" if num > 1 else "none"
        of_images = float(np.sqrt((sems**2).mean() / num))
        gain = pooled(gains, sems, np.ones(num))
        p.append(p_values(*gain, num).item())
        where = " ".join(f"{key}={value}" for key, value in zip(_SETTING, setting, strict=True))
        yield f"{where}: gain {_percent(gain, num)}; seeds {seeds}, test images {100 * of_images:.2f}"
    yield f"{sum(value < LEVEL for value in p)} of {len(p)} at p < {LEVEL}, {benjamini_hochberg(p).sum()} of them " + (
        "after Benjamini-Hochberg; rows of one seed share classes, images and baselines"
    )
    for pair in (("resnet34", "resnet18"), ("vgg16_bn", "vgg11_bn")):
        yield from _compared(table[(table["upstream"] == pair[0]) & (table["downstream"] == pair[1])], pair[0])


def narrow() -> Iterator[str]:
    """Narrow networks with a good upstream: each gain, single factors, and blocks against single layers."""
    table = pd.read_csv(RESULTS / "narrow_small.csv").fillna(
        {"unit": "", "alpha": 0, "select": "random", "channels": ""}
    )
    table["channels"] = table["channels"].replace({"auto": "", "independent": ""})  # what the unit's rule has anyway
    for pair, group in table.drop_duplicates(["seed", *_PLACE[:3]]).groupby(_PLACE[:3], sort=False):
        right = 100 * group["upstream_acc"]
        yield f"narrow: {_words(_PLACE[:3], pair)}: {right.min():.1f} to {right.max():.1f} % of task 1 are right"
    for setting, group in table.groupby([*_PLACE, *_START, *_FACTORS], sort=False):
        gain = pooled(group["gain"], group["gain_sem"], np.ones(len(group)))
        without, with_ = 100 * group["acc_without"].mean(), 100 * group["acc_with"].mean()
        where = _words([*_PLACE, *_START, *_FACTORS], setting)
        yield f"narrow: {where}: {without:.2f} to {with_:.2f}, gain {_percent(gain, len(group))}"
    yield from _single_factors(table)
    yield from _units(table)


def _single_factors(table: pd.DataFrame) -> Iterator[str]:
    """What one factor changes, by validation and by test images, paired by seed: seeds' errors alone."""
    own = ["seed", *_PLACE, *_START]
    plain = _where(table, pd.Series(_FACTORS))
    both = table.merge(plain[[*own, "val_with", "acc_with"]], on=own, suffixes=("", "_plain"))
    for factor, off in _FACTORS.items():
        others = pd.Series(_FACTORS).drop(factor)
        for setting, group in _where(both[both[factor] != off], others).groupby([*_PLACE, *_START, factor]):
            for name in ("val", "acc"):
                less = group[f"{name}_with"] - group[f"{name}_with_plain"]
                yield f"narrow: {_words([*_PLACE, *_START, factor], setting)}: {name} changes by {_paired(less)}"


def _units(table: pd.DataFrame) -> Iterator[str]:
    plain = _where(table[table["rule"] == "filters"], pd.Series(_FACTORS))
    for setting, group in plain.groupby([*_PLACE, "alpha"]):
        units = group.pivot(index="seed", columns="unit", values="acc_with").dropna()
        if len(units) > 1 and {"auto", "layer"} <= set(units):
            less = units["auto"] - units["layer"]
            yield f"narrow: {_words([*_PLACE, 'alpha'], setting)}: blocks above layers {_paired(less)}"


def _words(keys: Sequence[str], values: Sequence[object]) -> str:
    return " ".join(f"{key}={value}" for key, value in zip(keys, values, strict=True))


def _paired(differences: "pd.Series[float]") -> str:
    num = len(differences)
    if num < 2:
        return f"{100 * differences.mean():+.2f}, one seed"
    return _percent(Estimate(float(differences.mean()), float(differences.std() / num**0.5)), num) + ", seeds alone"


def _compared(table: pd.DataFrame, name: str) -> Iterator[str]:
    """Values of one key against each other, the others at their defaults, paired by seed: seeds' errors alone."""
    for key, value, other, column in _COMPARED:
        values = _where(table, _DEFAULT.drop(key)).pivot(index="seed", columns=key, values=column)
        if {value, other} <= set(values):
            difference = (values[value] - values[other]).to_numpy(dtype=float)
            num = len(difference)
            paired = Estimate(float(difference.mean()), float(difference.std(ddof=1) / num**0.5))
            yield f"{name}: {column} at {key}={value} above {key}={other}, paired by seed: {_percent(paired, num)}"


def _where(table: pd.DataFrame, setting: pd.Series) -> pd.DataFrame:
    return table[(table[list(setting.index)] == setting).all(axis=1)]


def of_images(**keys: str) -> pd.DataFrame:
    """The runs on images as a sweep's table over `keys` (its name for a column), the other keys at their defaults."""
    table = pd.read_csv(RESULTS / "images_small.csv").drop_duplicates([*_SETTING, "seed"])
    table = _where(table, _DEFAULT.drop([key for key in keys.values() if key in _DEFAULT]))
    table["model"] = table["upstream"].str.removesuffix("_bn") + "_" + table["downstream"].str.removesuffix("_bn")
    rows = []
    for values, group in table.groupby(list(keys.values()), sort=False):
        if len(group) == 1:
            continue
        row = {**dict(zip(keys, values, strict=True)), "n": len(group)}
        for name, column in (("acc", "with_"), ("acc_without_transfer", "without"), ("gain", "gain")):
            sems = group["gain_sem"] if column == "gain" else 0 * group["gain_sem"]
            row[f"test/{name}"], row[f"test/{name}_sem"] = pooled(group[column], sems, np.ones(len(group)))
        rows.append(row)
    return pd.DataFrame(rows)


def _percent(gain: Estimate, num: int) -> str:
    low, high = t_interval(gain, num)
    return (
        f"{100 * gain.mean:+.2f} ± {100 * gain.sem:.2f} (95 %: {100 * low:+.2f} to {100 * high:+.2f}, "
        f"p = {p_values(*gain, num).item():.2g}, n = {num})"
    )


def lemma() -> Iterator[str]:
    """Lemma C.3: the share of samples with enough active filters, and what chance gives."""
    for name, filters in (("dynamics", 40), ("dynamics_regime", 20)):
        table = pd.read_csv(RESULTS / f"{name}_statements.csv")
        shares = table[table["source"] == "Lemma C.3"].set_index("stage")["measured"]
        measured = ", ".join(f"{stage} {share:.3f}" for stage, share in shares.items())
        yield f"{name}: Lemma C.3, m = {filters}: by chance {lemmas.active_share_by_chance(filters):.3f}; {measured}"


def claims() -> Sequence[str]:
    """All of it, a line each."""
    return [*synthetic(), *choice(), *phase(), *images(), *narrow(), *lemma()]


def main() -> None:
    """Print the claims."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draw", action="store_true", help="draw the figures again")
    if parser.parse_args().draw:
        for name in FIGURES:
            drawing = drawn(name, table_of(name))
            (RESULTS / f"{name}.png").write_bytes(style.as_files(name, drawing.figures["figure"])[f"{name}.png"])
            for table_name, table in drawing.tables.items():
                table.to_csv(RESULTS / f"{name}_{table_name}.csv", index=False, float_format="%.5g")
        table1().to_csv(RESULTS / "table1_cifar10_small.csv", index=False)
    print(*claims(), sep="\n")


if __name__ == "__main__":
    main()
