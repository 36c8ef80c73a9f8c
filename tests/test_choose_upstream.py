"""The choice among upstreams of a table, on one made by hand."""

from pathlib import Path

import choose_upstream
import pandas as pd
import pytest

# Accuracy in percent with 1,000 images, then with all, whose gains are twice the others but for VAE on D and E.
TABLE = """\
train_examples_if_subset,1000,1000,1000,1000,1000,full,full,full,full,full,metadata
dataset,A,B,C,D,E,A,B,C,D,E,model
method,,,,,,,,,,,
From-Scratch,50,50,50,50,50,60,60,60,60,60,
Sup-100%,55,45,56,50,50,70,50,72,60,60,url
VAE,52,51,40,50,50,64,62,40,62,59.5,url
"""


def test_policy_on_a_table_by_hand(tmp_path: Path) -> None:
    """The exact line of the other targets; the order of looking; regret, harm and what was missed."""
    path = tmp_path / "table.csv"
    path.write_text(TABLE)
    gains = choose_upstream.read_gains(path)
    assert gains.full.loc["C"].tolist() == pytest.approx([0.12, -0.20])
    others = choose_upstream.Gains(*(half.drop(index="A") for half in gains))
    beliefs = choose_upstream.believed(others, gains.cheap.loc["A"], ["Sup-100%", "VAE"])
    assert {name: (belief.mean, belief.freedom, belief.num) for name, belief in beliefs.items()} == {
        "Sup-100%": (pytest.approx(0.10), 3, 4),
        "VAE": (pytest.approx(0.04), 3, 4),
    }
    error = ((0.02**2 + 0.005**2) / 8 * 4 / 3) ** 0.5
    assert [belief.sem for belief in beliefs.values()] == pytest.approx([error] * 2)

    rows = choose_upstream.compare(gains).set_index(["upstreams", "rule", "looked_at"])
    # The best on average over the others is VAE for C and Sup-100% elsewhere: 10, -10, -20, 0 and 0 of 10, 2, 12, 2, 0.
    usual = rows.loc["all", "always the best on average", 0]
    assert (usual["regret_mean"], usual["regret_max"], usual["harmed"]) == (pytest.approx(9.2), pytest.approx(32), 2)
    guess = rows.loc["all", "policy: best guess", 2]  # 10, 2, 12, and on D and E nothing to choose by
    assert guess["regret_mean"] == pytest.approx(0.4)
    assert (guess["harmed"], guess["harm_avoided"], guess["misses_a_gain"]) == (0, 2, 1)
    alone = rows.loc["all", "policy: best guess", 1]  # on B, C, D and E no gain is seen of the only one looked at
    assert (alone["regret_mean"], alone["misses_a_gain"]) == (pytest.approx(3.2), 0)
    assert rows.loc["all", "always scratch", 0]["regret_mean"] == pytest.approx(5.2)
    assert ("generative", "always Sup-100%", 0) not in rows.index


def test_other_tables_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text(TABLE.replace("From-Scratch", "Scratch"))
    with pytest.raises(ValueError, match="must be VTAB's table, with columns 1000 and full and a row From-Scratch"):
        choose_upstream.read_gains(path)


def test_page_says_what_the_table_says() -> None:
    """Every row of the committed table stands in docs/results, rounded."""
    folder = Path(choose_upstream.__file__).parents[1] / "docs" / "results"
    page = (folder / "README.md").read_text(encoding="utf-8")
    table = pd.read_csv(folder / "choice_of_upstream.csv")
    assert set(zip(table["rule"], table["looked_at"], strict=True)) == choose_upstream.CHOOSERS.keys()
    for _, row in table.iterrows():
        regret = f"{row['regret_mean']:.2f} ± {row['regret_sem']:.2f} | {row['regret_max']:.1f}"
        counts = f"{row['harmed']} | {row['harm_avoided']}"
        assert f"| {row['upstreams']} | {row['rule']} | {row['looked_at'] or '–'} | {regret} | {counts} |" in page
