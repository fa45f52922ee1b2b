"""Settings of a report's ranking."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class RankingConfig:
    """How policies are made and measured.

    Attributes:
        learner: learner library that trains the policies.
        algo: its algorithm; None for the first one.
        seeds: number of seeds.
        stages: dream steps of a training; one policy for each stage and seed.
        episodes: episodes of each policy in the real environment, and in the dream.
        temperatures: temperatures of the dreams in which one more policy each is trained, to
            compare dream and real return; empty for no sweep.
    """

    learner: str = "ppo"
    algo: str | None = None
    seeds: int = 3
    stages: tuple[int, ...] = (16_384, 49_152, 98_304, 196_608, 393_216)
    episodes: int = 30
    temperatures: tuple[float, ...] = (0.5, 1.5)

    def __post_init__(self) -> None:
        if self.seeds < 1 or self.episodes < 2 or not self.stages or min(self.stages) < 1:
            raise ValueError(
                f"seeds is {self.seeds}, episodes {self.episodes} and stages {self.stages}; "
                "expected at least one seed, two episodes and one stage of at least one step"
            )
        if any(not each > 0 for each in self.temperatures):
            raise ValueError(f"temperatures are {self.temperatures}; expected numbers above 0")
