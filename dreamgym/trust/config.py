"""Settings of a report's ranking."""

from __future__ import annotations

from dataclasses import dataclass

from dreamgym._settings import check_at_least


@dataclass(frozen=True, kw_only=True)
class RankingConfig:
    """How policies are made and measured.

    Attributes:
        learner: learner library that trains the policies.
        algo: its algorithm; None for the first one.
        seeds: number of seeds.
        steps: dream steps of a whole training.
        stages: policies of each seed as they were earlier in their training, where their dream
            returns are spread evenly.
        num_envs: dreams side by side in a training; the fewer, the finer the stages.
        episodes: episodes of each policy in the real environment, and in the dream; the fewer, the
            more of the order is chance.
        temperatures: temperatures of the dreams in which one more policy each is trained, to
            compare dream and real return; empty for no sweep.
    """

    learner: str = "ppo"
    algo: str | None = None
    seeds: int = 3
    steps: int = 262_144
    stages: int = 4
    num_envs: int = 128
    episodes: int = 100
    temperatures: tuple[float, ...] = (0.5, 1.5)

    def __post_init__(self) -> None:
        check_at_least(self, 1, "seeds", "steps", "num_envs")
        check_at_least(self, 2, "episodes")
        check_at_least(self, 0, "stages")
        if any(not each > 0 for each in self.temperatures):
            raise ValueError(f"temperatures are {self.temperatures}; expected numbers above 0")
