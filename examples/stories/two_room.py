"""Plan through a door: a learned distance knows the wall, the distance of embeddings does not.

    python examples/stories/two_room.py

A point moves in two rooms with a door between them. A JEPA is fitted to aimless steps, and with it
a goal value: how many steps it takes from one place to another. The same planner in the same world
is then sent from one room into the other, once towards the goal's embedding and once by the goal
value, from the same starts. `two_room.png` shows the real paths.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import gymnasium as gym
import numpy as np
from gymnasium.wrappers import TimeLimit
from matplotlib.figure import Figure

import dreamgym
from dreamgym.models import GoalReward, JEPAConfig
from dreamgym.models.jepa import JEPAObjective
from dreamgym.train.planners import CEMConfig, PlannedPolicy
from dreamgym.world import World

DOOR = (0.5, 0.8)
"""The door in the wall at x = 0, from y to y."""
PLANNER = CEMConfig(horizon=10, candidates=64, iterations=3, elites=8, terminal_only=True)
REACHED = 0.15
"""Distance to the goal within which it is reached."""
STEPS = 60


class TwoRoom(gym.Env):
    """A point in the square from -1 to 1, which a wall cuts in two; actions move it by 0.1."""

    observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        start = (options or {}).get("start")
        self.place = self.np_random.uniform(-1, 1, 2) if start is None else np.asarray(start)
        return self.place.astype(np.float32), {}

    def step(self, action):
        new = np.clip(self.place + 0.1 * np.clip(action, -1, 1), -1, 1)
        if (new[0] > 0) != (self.place[0] > 0):
            share = self.place[0] / (self.place[0] - new[0])
            if not DOOR[0] < self.place[1] + share * (new[1] - self.place[1]) < DOOR[1]:
                new[0] = self.place[0]  # it slides along the wall
        self.place = new
        return new.astype(np.float32), 0.0, False, False, {}


def make_world(folder: Path, seed: int, steps: int, updates: int) -> World:
    """Record aimless steps, and fit a JEPA with a goal value."""
    data = dreamgym.record(
        TimeLimit(TwoRoom(), 100),
        steps=steps,
        policy="sticky:0.8",
        seed=seed,
        out=folder / f"rooms-{seed}.h5",
        overwrite=True,
    )
    # One place says everything, so that no context is needed; plans are short.
    objective = JEPAObjective(sigreg=0.05, rollout=4)
    model = JEPAConfig(context=1, goal_value=32, objective=objective)
    config = dreamgym.default_config("jepa", model=model, updates=updates, overwrite=True)
    return dreamgym.fit(data, folder / f"world-{seed}", family="jepa", seed=seed, config=config)


def draw_pairs(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return starts (N, 2) in one room, and goals (N, 2) in the other."""
    rng = np.random.default_rng(seed)
    starts, goals = rng.uniform((0.2, -0.9), (0.9, 0.9), (2, count, 2)).astype(np.float32)
    side = rng.choice(np.float32([-1, 1]), count)
    starts[:, 0] *= side
    goals[:, 0] *= -side
    return starts, goals


def walk(world: World, starts: np.ndarray, goals: np.ndarray, *, learned: bool) -> np.ndarray:
    """Plan in the real rooms from starts to goals, and return the places (STEPS + 1, N, 2).

    With `learned`, by the goal value; otherwise by the distance of embeddings.
    """
    # With a context of one, the leaf is the newest embedding.
    model = GoalReward(world.model, goals[0], leaves=() if learned else ("embeddings",))
    policy = PlannedPolicy(world.with_model(model), PLANNER, value=model)
    rows = list(range(len(starts)))
    policy.reset(rows, rows)
    policy.set_goals(rows, goals)
    rooms = [TwoRoom() for _ in rows]
    places = [[room.reset(options={"start": s})[0] for room, s in zip(rooms, starts, strict=True)]]
    for _ in range(STEPS):
        actions = policy.act(places[-1], rows)
        places.append([room.step(a)[0] for room, a in zip(rooms, actions, strict=True)])
    return np.array(places)


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out/story"), help="folder of results")
    parser.add_argument("--quick", action="store_true", help="run all of it, too briefly to learn")
    options = parser.parse_args(given)
    options.out.mkdir(parents=True, exist_ok=True)
    steps, updates, pairs = (500, 30, 2) if options.quick else (40_000, 1500, 40)

    world = make_world(options.out, 0, steps, updates)
    starts, goals = draw_pairs(pairs, seed=0)
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    ways = {"distance of embeddings": False, "goal value": True}
    for axes, (name, learned) in zip(figure.subplots(1, 2), ways.items(), strict=True):
        places = walk(world, starts, goals, learned=learned)
        reached = np.linalg.norm(places - goals, axis=-1).min(0) < REACHED
        print(f"by the {name}: {reached.sum()} of {len(goals)} goals reached")
        axes.vlines((0, 0), (-1, DOOR[1]), (DOOR[0], 1), color="black", linewidth=3)
        axes.plot(places[:, :8, 0], places[:, :8, 1])
        axes.scatter(*goals[:8].T, marker="x", color="black", zorder=3)
        axes.set(title=f"{name}: {reached.mean():.0%}", xlim=(-1, 1), ylim=(-1, 1), aspect="equal")
    figure.savefig(options.out / "two_room.png")
    print(options.out / "two_room.png")


if __name__ == "__main__":
    main()
