"""The algorithms of sb3-contrib, trained and saved as those of Stable-Baselines3.

The functions of `dreamgym.train.registry.LearnerLibrary` are those of `dreamgym.train.sb3`.
RecurrentPPO, MaskablePPO and ARS train behind `SB3VecEnv` as they are; the former two take
`BatchedTruncationValues`, too.
"""

from __future__ import annotations

import gymnasium as gym

from dreamgym.train.registry import LEARNERS

LEARNERS["sb3-contrib"].require_installed()

from sb3_contrib import QRDQN, TQC, TRPO, CrossQ  # noqa: E402 - the library comes first

from dreamgym.train.sb3 import adapter, check, load, save, train, unsupported  # noqa: E402
from dreamgym.train.sb3.algorithms import ALGORITHMS, Algorithm  # noqa: E402

__all__ = ["adapter", "check", "load", "save", "train", "unsupported"]

_SAC, _DQN, _PPO = ALGORITHMS["SAC"], ALGORITHMS["DQN"], ALGORITHMS["PPO"]

ALGORITHMS.update(
    {
        "TQC": Algorithm(
            learner=TQC,
            steps=_SAC.steps,
            num_envs=_SAC.num_envs,
            action_space=gym.spaces.Box,
            settings=_SAC.settings,
        ),
        "CrossQ": Algorithm(
            learner=CrossQ,
            steps=_SAC.steps,
            num_envs=_SAC.num_envs,
            action_space=gym.spaces.Box,
            # Returns are scaled to about 1, so rewards to about 1 - gamma. From the library's
            # entropy coefficient of 1, every third gradient step would not bring it down in time.
            settings={**_SAC.settings, "ent_coef": "auto_0.02"},
        ),
        "QRDQN": Algorithm(
            learner=QRDQN,
            steps=60_000,
            num_envs=_DQN.num_envs,
            action_space=gym.spaces.Discrete,
            # A target network every 150 gradient steps: with DQN's 500, values are too slow to
            # spread in half as many steps.
            settings={**_DQN.settings, "target_update_interval": 300},
            anneal=True,
            network={"n_quantiles": 25},  # as TQC has; the loss is over all pairs of them
        ),
        "TRPO": Algorithm(
            learner=TRPO,
            steps=_PPO.steps,
            num_envs=_PPO.num_envs,
            # A policy step for each rollout of 16,384 steps, 25 in all: the library's 0.01 is too
            # short a way for them.
            settings={
                **{name: value for name, value in _PPO.settings.items() if name != "n_epochs"},
                "target_kl": 0.03,
            },
        ),
    }
)
