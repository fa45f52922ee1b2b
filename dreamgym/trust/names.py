"""Names of the numbers in the observations of well-known environments."""

from __future__ import annotations

NAMES = {
    "CartPole-v1": ["cart position", "cart velocity", "pole angle", "pole angular velocity"],
    "Pendulum-v1": ["cos(angle)", "sin(angle)", "angular velocity"],
    "Acrobot-v1": [
        "cos(angle 1)",
        "sin(angle 1)",
        "cos(angle 2)",
        "sin(angle 2)",
        "angular velocity 1",
        "angular velocity 2",
    ],
    "MountainCar-v0": ["position", "velocity"],
    "MountainCarContinuous-v0": ["position", "velocity"],
    "LunarLander-v3": [
        "x",
        "y",
        "x velocity",
        "y velocity",
        "angle",
        "angular velocity",
        "left leg contact",
        "right leg contact",
    ],
    "LunarLanderContinuous-v3": [
        "x",
        "y",
        "x velocity",
        "y velocity",
        "angle",
        "angular velocity",
        "left leg contact",
        "right leg contact",
    ],
    "InvertedPendulum-v5": [
        "cart position",
        "pole angle",
        "cart velocity",
        "pole angular velocity",
    ],
}
"""Names by the id of the environment, as Gymnasium's documentation has them."""


def names_of(env_id: str | None) -> list[str]:
    """Return the names of an environment's observations; empty where they are not known."""
    return NAMES.get(env_id or "", [])
