"""Settings of the online loop. This module does not import torch."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from dreamgym._settings import check_at_least, check_choice, nearest
from dreamgym.errors import OnlineError
from dreamgym.fitting.config import FitConfig, OptimizerConfig
from dreamgym.train.config import TrainConfig

if TYPE_CHECKING:
    from dreamgym.data.frame_skip import FrameSkip


@dataclass(frozen=True, kw_only=True)
class Branches:
    """Length of the dreams that policies are trained in, growing with the real steps.

    MBPO's schedule: Janner et al. 2019, arXiv 1906.08253, appendix C ("x -> y over epochs a -> b").

    Attributes:
        first: length up to `from_steps` real steps.
        last: length from `to_steps` real steps on.
        from_steps: real steps at which the length begins to grow.
        to_steps: real steps at which it has grown.
    """

    first: int = 1
    last: int = 1
    from_steps: int = 0
    to_steps: int = 1

    def __post_init__(self) -> None:
        check_at_least(self, 1, "first", "last")
        check_at_least(self, 0, "from_steps")
        if self.to_steps <= self.from_steps:
            raise OnlineError(
                f"to_steps is {self.to_steps}; expected more than from_steps, {self.from_steps}"
            )

    def length(self, real_steps: int) -> int:
        """Return the length after some real steps."""
        share = (real_steps - self.from_steps) / (self.to_steps - self.from_steps)
        return int(self.first + min(1.0, max(0.0, share)) * (self.last - self.first))


@dataclass(frozen=True, kw_only=True)
class ImproveConfig:
    """Settings of `improve`.

    A round is: record `round_steps` real steps with the policy so far, fit the world to all data
    so far, train the policy in its dreams, measure it in the real environment. With a `planner`
    nothing is trained: it plans in the world.

    Attributes:
        first_steps: real steps of the first round, recorded with `first_policy`.
        round_steps: real steps of every later round.
        first_policy: policy of the first round, such as "random" or "sticky:0.8".
        noise: largest share of random actions in an episode of a later round; every episode draws
            its own share between 0 and this. The other actions are sampled from the policy.
        bonus: reward for each unit of the world's uncertainty in the dreams that the policy is
            trained in (`Optimistic`), which falls linearly to zero at the end of the budget. It
            needs a family with uncertainty, "pets" or "ensemble".
        frame_skip: real steps in one step of the dream. Real steps are counted one by one
            everywhere; the horizon and the branches count steps of the dream.
        actions: with a frame skip, "blocks": an action is the block of the actions of all its
            steps; or "repeated": one action, repeated in every step (see `FrameSkip`).
        max_episode_steps: real steps after which an episode is truncated, if it has not ended
            before; None for the environment's own time limit. A task without an end needs it.
        family: family of the world model.
        planner: planner that acts in the world of each round, instead of a policy that is trained
            in its dreams: the name of a planner or of a preset, or its config (see `make_planner`).
            It records as its config's `exploring()` says.
        algo: algorithm of the policy.
        learner: learner library; None for the first that has the algorithm.
        train_ratio: replayed steps for each recorded one, as Dreamer counts them: a round's fit has
            `train_ratio * steps / (batch_size * segment_length)` updates, in steps of the dream.
            None for `fit.updates` in every round.
        dream_ratio: dream steps of the policy's training for each recorded step of the round, in
            steps of the dream; MBPO has 400. None for `dream_steps` in every round.
        dream_steps: dream steps of the policy's training in a round; None for the algorithm's
            default.
        branches: length of the dreams, growing with the real steps; None for the world's horizon or
            that of `train`.
        fresh_world: whether every fit starts from fresh weights; otherwise it goes on from those of
            the last one, and only the normalisers are fitted again.
        one_fit: whether the fits of all rounds are one, which also keeps the state of the optimizer
            and its count of updates. The schedule should be constant.
        fresh_policy: whether every training starts from fresh weights; otherwise it goes on from
            the last policy.
        evaluation_episodes: real episodes that every round's policy is measured over. Their steps
            are counted beside the budget, not in it. 0 measures nothing, and then the last policy
            is the result and no target can be met.
        fit: settings of the fits; None for the family's own defaults.
        train: settings of the trainings.
    """

    first_steps: int = 1000
    round_steps: int = 1000
    first_policy: str = "sticky:0.8"
    noise: float = 0.3
    bonus: float = 0.0
    frame_skip: int = 1
    actions: Literal["blocks", "repeated"] = "blocks"
    max_episode_steps: int | None = None
    family: str = "mdn-rnn"
    planner: Any = None
    algo: str = "PPO"
    learner: str | None = None
    train_ratio: float | None = None
    dream_ratio: float | None = None
    dream_steps: int | None = None
    branches: Branches | None = None
    fresh_world: bool = False
    one_fit: bool = False
    fresh_policy: bool = False
    evaluation_episodes: int = 10
    fit: FitConfig | None = None
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        check_at_least(self, 1, "first_steps", "round_steps", "frame_skip")
        check_choice("actions", self.actions, ("blocks", "repeated"))
        if self.max_episode_steps is not None:
            check_at_least(self, 1, "max_episode_steps")
        check_at_least(self, 0, "bonus", "evaluation_episodes")
        if not 0 <= self.noise <= 1:
            raise OnlineError(f"noise is {self.noise}; expected a number between 0 and 1")
        for name in ("train_ratio", "dream_ratio", "dream_steps"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise OnlineError(f"{name} is {value}; expected a number above 0")
        if self.dream_ratio is not None and self.dream_steps is not None:
            raise OnlineError("dream_ratio and dream_steps are both given; give one of them")
        if self.one_fit and self.fresh_world:
            raise OnlineError("one_fit and fresh_world are both given; give one of them")
        if self.planner is not None:
            for name in ("bonus", "dream_ratio", "dream_steps", "branches"):
                if getattr(self, name):
                    raise OnlineError(
                        f"{name} is {getattr(self, name)!r}, and with a planner nothing is trained "
                        "in dreams; leave it out"
                    )
        if self.train.alarms == "stop":
            raise OnlineError(
                "train.alarms is 'stop', which would end the loop in a round that it can never "
                "finish; use 'warn', 'penalise' or 'truncate'"
            )

    @property
    def skip(self) -> FrameSkip:
        """The frame skip."""
        from dreamgym.data.frame_skip import FrameSkip

        return FrameSkip(steps=self.frame_skip, actions=self.actions)

    def updates(self, steps: int, fit: FitConfig) -> int:
        """Return the updates of a fit.

        Args:
            steps: real steps of the round.
            fit: settings of the fit.
        """
        if self.train_ratio is None:
            return fit.updates
        replayed = self.train_ratio * steps / self.frame_skip
        return max(1, round(replayed / (fit.batch_size * fit.segment_length)))

    def training_steps(self, steps: int) -> int | None:
        """Return the dream steps of a training, None for the algorithm's default.

        Args:
            steps: real steps of the round.
        """
        if self.dream_ratio is None:
            return self.dream_steps
        return max(1, round(self.dream_ratio * steps / self.frame_skip))


PRESETS: dict[str, ImproveConfig] = {
    # arXiv 1906.08253, table 1 and the published code: an ensemble refitted as data comes in, SAC
    # on one-step to 15-step branches from replayed real states, 5% real transitions.
    "mbpo": ImproveConfig(
        family="pets",
        algo="SAC",
        dream_ratio=400.0,
        branches=Branches(first=1, last=15, from_steps=20_000, to_steps=150_000),
        train=TrainConfig(
            num_envs=400,
            starts="anywhere",
            real_share=0.05,
            gamma=0.99,
            learning_rate=3e-4,
            learner={"gradient_steps": 20, "buffer_size": 400_000},
        ),
    ),
    # Hafner et al. 2023, arXiv 2301.04104: train ratio 512 (Crafter), batches of 16 x 64,
    # imagined trajectories of 15 steps from replayed states; an actor-critic on the latents.
    "dreamer": ImproveConfig(
        family="rssm",
        train_ratio=512.0,
        dream_ratio=512.0,
        fit=FitConfig(batch_size=16, segment_length=64),
        train=TrainConfig(view="latent", starts="anywhere", horizon=15, gamma=0.997),
    ),
    # Hansen et al. 2023, arXiv 2310.16828: MPPI acts in the newest model; one update of 256
    # segments of three steps for each decision, as many at first as there are random steps.
    "td-mpc2": ImproveConfig(
        family="tdmpc2",
        planner="td-mpc2",
        first_policy="random",
        noise=0.0,
        train_ratio=768.0,
        one_fit=True,
        fit=FitConfig(
            batch_size=256,
            segment_length=3,
            optimizer=OptimizerConfig(
                name="adam",
                learning_rate=3e-4,
                weight_decay=0.0,
                schedule="constant",
                warm_up=0,
                gradient_clip=20.0,
                clip_by="norm",
            ),
        ),
    ),
}
"""Published schedules by name. Model sizes are the families' own defaults."""


def improve_preset(name: str | None = None, **settings: Any) -> ImproveConfig:
    """Return a published schedule, with changes.

    Args:
        name: name in `PRESETS`; None for the defaults.
        **settings: fields of `ImproveConfig`.

    Raises:
        OnlineError: there is no such schedule, or a number is out of range.
    """
    if name is not None and name not in PRESETS:
        raise OnlineError(f"there is no schedule {name!r}; {nearest(name, PRESETS)}")
    base = ImproveConfig() if name is None else PRESETS[name]
    return replace(base, **settings)
