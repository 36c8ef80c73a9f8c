"""The trainings of a job, and the side of the transfer that each is on."""

from typing import Literal

Stage = Literal["upstream", "baseline", "downstream"]
Side = Literal["upstream", "downstream"]

SIDES: dict[Stage, Side] = {"upstream": "upstream", "baseline": "downstream", "downstream": "downstream"}
"""Task 1 is the upstream's; baseline and downstream both train on task 2."""
