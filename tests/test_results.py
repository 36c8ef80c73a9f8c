"""What docs/results says is what its tables say."""

import re

import results

PAGE = (results.RESULTS / "README.md").read_text(encoding="utf-8")


def test_numbers_of_the_page_come_from_the_tables() -> None:
    """Crossings and trends of every family, intervals of every gain on images, where Proposition 4.4 speaks."""
    text = "\n".join(results.claims())
    assert "predicts harm in 60 of 120 settings, and the gain is below 0 in 53 of them" in text
    for pattern in (r"crosses 0.1 at A/\(B d\) = (\S+ ± \S+) ", r"to the power [+-](\S+) ", r"gain (\S+ ± \S+) \(95 %"):
        found = re.findall(pattern, text)
        assert len(found) >= 4
        for number in found:
            assert number.replace("-", "−") in PAGE, number
