"""Planners and evolution: real returns on Pendulum, and speed beside others and the bare dream.

The comparison with stable-worldmodel needs `pip install stable-worldmodel`; without it its rows are
left out. Its CEM runs on the same weights, in the same process, in turns.
"""

from __future__ import annotations

import sys
import time
import types
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import torch
from support import worlds
from support.reporting import Row, at_least, below, parser, report
from support.side_by_side import side_by_side

import dreamgym
from dreamgym.models import GoalReward, State
from dreamgym.train.planners import (
    PLANNER_PRESETS,
    ICEMConfig,
    PlannedPolicy,
    PolicyPrior,
    make_planner,
)

PENDULUM = "Pendulum-MDNRNN-v0"
SEED = 10_000


def measured(name: str, policy: Any, episodes: int, bar: float | None) -> list[Row]:
    """Measure a policy in the real Pendulum, in the same episodes as the others."""
    result = dreamgym.evaluate(policy, "Pendulum-v1", episodes=episodes, seed=SEED)
    low, high = result.interval
    name = f"{name}, {episodes} episodes"
    figure = f"{name}: real return"
    mean = Row(name=figure, value=result.mean, unit="return")
    return [
        mean if bar is None else at_least(figure, result.mean, "return", bar),
        Row(name=f"{name}: low end of its 95% interval", value=low, unit="return"),
        Row(name=f"{name}: high end of its 95% interval", value=high, unit="return"),
    ]


def pendulum(episodes: int) -> list[Row]:
    """Plan on Pendulum without any training."""
    policy = PlannedPolicy(PENDULUM, "icem")
    return measured("Pendulum, iCEM without training", policy, episodes, -200.0)


def pendulum_with_value(episodes: int, quick: bool) -> list[Row]:
    """Plan on Pendulum, with value and actions of a policy trained in the dream."""
    world = dreamgym.load(PENDULUM)
    steps = 20_000 if quick else None
    trained = dreamgym.train_policy(world, learner="ppo", seed=0, steps=steps)
    prior = PolicyPrior(trained, world)
    config = ICEMConfig(horizon=15, discount=prior.discount, proposals=4)
    policy = PlannedPolicy(world, config, value=prior, proposal=prior)
    name = "Pendulum, iCEM over 15 steps with PPO's value"
    rows = measured("Pendulum, that PPO alone", trained, episodes, None)
    return measured(name, policy, episodes, -1000.0 if quick else -160.0) + rows


def stable_worldmodel() -> Any:
    """Return the modules of stable-worldmodel that are compared, without its data and simulators.

    Its top package imports all of its optional libraries; the modules here need einops and loguru.
    """
    found = find_spec("stable_worldmodel")
    if found is None or not found.submodule_search_locations:
        return None
    root = Path(next(iter(found.submodule_search_locations)))
    for name, path in (("stable_worldmodel", root), ("stable_worldmodel.wm", root / "wm")):
        package = types.ModuleType(name)
        package.__path__ = [str(path)]
        sys.modules[name] = package
    from stable_worldmodel.solver.cem import CEMSolver
    from stable_worldmodel.wm.lewm import lewm, module

    return types.SimpleNamespace(CEMSolver=CEMSolver, LeWM=lewm.LeWM, **vars(module))


def their_lewm(theirs: Any, model: Any) -> Any:
    """Return stable-worldmodel's LeWM with the weights of ours; its encoder is not needed."""
    from dreamgym.models.jepa.lewm import tensor_names

    config = model.config
    width, hidden = config.embedding, config.width

    def projector() -> Any:
        return theirs.MLP(width, hidden, width, norm_fn=torch.nn.BatchNorm1d)

    predictor = theirs.Predictor(
        num_frames=config.context,
        depth=config.blocks,
        heads=config.heads,
        mlp_dim=config.mlp,
        input_dim=width,
        hidden_dim=width,
        dim_head=config.head_width,
    )
    embedder = theirs.Embedder(model.encode_action.dim, 10, width)
    lewm = theirs.LeWM(torch.nn.Identity(), predictor, embedder, projector(), projector())
    ours, needed = model.state_dict(), lewm.state_dict()
    names = tensor_names(0, config.blocks)
    weights = {key: ours[names[key]].reshape(leaf.shape) for key, leaf in needed.items()}
    lewm.load_state_dict(weights)
    return lewm.eval()


class Last:
    """The value of LeWM's planning: the distance of the last embedding to the goal's."""

    def __init__(self, model: GoalReward) -> None:
        self.model = model

    def value(self, state: State) -> torch.Tensor:
        """Return minus the distance (B,)."""
        return self.model.value(state)


def lewm(iterations: int, quick: bool) -> list[Row]:
    """Time one plan of LeWM: 300 samples, 30 iterations, 5 blocks; iterations are alike."""
    theirs = stable_worldmodel()
    if theirs is None:
        return []
    world = worlds.lewm()
    model = world.model
    image = torch.randint(0, 256, (2, 224, 224, 3), dtype=torch.uint8)
    goal = GoalReward(model, image[1].numpy())
    noise = torch.zeros(1, model.noise_dim)
    state = model.observe(model.initial(1), torch.zeros(1, 10), image[:1], noise)
    config = replace(PLANNER_PRESETS["lewm"], iterations=iterations)
    planner = make_planner(goal, config, value=goal)
    solver = theirs.CEMSolver(their_lewm(theirs, model), n_steps=config.iterations)
    options = types.SimpleNamespace(horizon=config.horizon, action_block=1)
    space = types.SimpleNamespace(shape=(1, 10))
    solver.configure(action_space=space, n_envs=1, config=options)
    info = {
        "pixels": torch.zeros(1, 1, 1),
        "goal": torch.zeros(1, 1, 1),
        "emb": model.features(state).view(1, 1, -1),
        "goal_emb": goal.goal.view(1, 1, -1),
    }
    calls = {
        "ours": lambda: planner.plan(state, torch.zeros(1, dtype=torch.int64)),
        "theirs": lambda: solver.solve(dict(info)),
    }
    seconds = side_by_side(calls, turn=1.0, turns=1 if quick else 3)
    name = f"LeWM, 300 x {config.iterations} x 5"
    return [
        Row(name=f"{name}: a plan", value=seconds["ours"], unit="s"),
        at_least(
            f"{name}: times stable-worldmodel",
            seconds["theirs"] / seconds["ours"],
            "ratio",
            1.5,
        ),
    ]


def controller(quick: bool) -> list[Row]:
    """Compare a generation of V-M-C Car's controllers with the dream's own steps.

    Evolution itself (asking and telling) is no step of the dream; it has a row of its own.
    """
    from dreamgym.train.cma import Controller, Evolution, EvolutionConfig
    from dreamgym.train.cma.evolution import generation

    world, config = worlds.v_m_c(), EvolutionConfig()
    rows, steps = config.popsize * config.rollouts, 20 if quick else worlds.HORIZON
    options = {"output": "torch", "autoreset_mode": "SameStep", "view": "latent"}
    env = dreamgym.DreamVectorEnv(world, rows, max_episode_steps=steps, **options)
    width = world.model.feature_dim
    policy = Controller(env.single_action_space, [0.0] * width, [1.0] * width)
    evolution = Evolution(policy.size, config, seed=0)
    actions, fitness = worlds.actions(rows), torch.zeros(config.popsize).numpy()

    def bare() -> int:
        env.reset(seed=0)
        for _ in range(steps):
            env.step(actions)
        return steps * rows

    def evolve() -> int:
        return generation(env, policy, evolution, config, 0)[1]

    def seconds(call: Any) -> float:
        """Return the seconds of a step: a generation ends when all of its episodes have."""
        start = time.process_time()
        count = call()
        return (time.process_time() - start) / count

    evolution.ask()
    taken: dict[str, list[float]] = {"bare": [], "evolve": []}
    for _ in range(1 if quick else 2):
        taken["bare"].append(seconds(bare))
        taken["evolve"].append(seconds(evolve))
    ratio = median(taken["evolve"]) / median(taken["bare"])
    start = time.process_time()
    evolution.tell(fitness)
    evolution.ask()
    own = time.process_time() - start
    name = f"V-M-C Car, a generation of {config.popsize} x {config.rollouts} x {steps}"
    return [
        below(f"{name}: time of the bare dream", ratio, "ratio", 1.15),
        Row(name=f"{name}: tell and ask", value=own, unit="s"),
    ]


def main() -> None:
    arguments = parser(__doc__.splitlines()[0])
    parts = ("pendulum", "value", "lewm", "controller")
    arguments.add_argument("--parts", nargs="+", choices=parts, default=parts)
    arguments.add_argument("--episodes", type=int, default=100)
    arguments.add_argument("--iterations", type=int, default=30, help="of LeWM's plan")
    chosen = arguments.parse_args()
    torch.set_num_threads(1)
    episodes = 1 if chosen.quick else chosen.episodes
    rows: list[Row] = []
    if "lewm" in chosen.parts:
        rows += lewm(1 if chosen.quick else chosen.iterations, chosen.quick)
    if "controller" in chosen.parts:
        rows += controller(chosen.quick)
    if "value" in chosen.parts:
        rows += pendulum_with_value(episodes, chosen.quick)
    if "pendulum" in chosen.parts:
        rows += pendulum(episodes)
    report(rows, chosen)


if __name__ == "__main__":
    main()
