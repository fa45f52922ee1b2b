"""`dreamgym train`: a policy that only ever saw a dream."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from dreamgym.cli.failing import keeping
from dreamgym.cli.options import Device, JsonFile, Seed, given
from dreamgym.cli.showing import number, progress_bar, say, write_json


def train(
    world: Annotated[
        str,
        typer.Argument(metavar="WORLD", help="A folder of dreamgym fit, or a world that ships."),
    ],
    algo: Annotated[
        str,
        typer.Option("--algo", metavar="NAME", help="PPO, A2C, SAC, TD3 or DQN (the extra sb3)."),
    ] = "PPO",
    seed: Seed = 0,
    steps: Annotated[
        int | None,
        typer.Option(
            "--steps",
            min=1,
            metavar="N",
            help="Dream steps, rounded up to whole rollouts of all copies; by default ALGO's own.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="The policy; by default WORLD-ALGO.zip here."),
    ] = None,
    num_envs: Annotated[
        int | None,
        typer.Option("--num-envs", min=1, metavar="N", help="Copies of the dream side by side."),
    ] = None,
    view: Annotated[
        str | None,
        typer.Option(
            "--view", metavar="VIEW", help="observation or latent; by default the world's own."
        ),
    ] = None,
    horizon: Annotated[
        int | None,
        typer.Option(
            "--horizon", min=1, metavar="N", help="Length of dreams; by default the world's own."
        ),
    ] = None,
    gamma: Annotated[
        float | None,
        typer.Option("--gamma", min=0.0, max=1.0, metavar="X", help="Discount of rewards."),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(
            "--temperature",
            metavar="X",
            help="By default 1; above it the dream is more uncertain than the model.",
        ),
    ] = None,
    device: Device = "cpu",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Let a policy that stands there give way.")
    ] = False,
    json_file: JsonFile = None,
) -> None:
    """Train a policy inside WORLD; the real environment is not touched.

    Example: [bold]dreamgym train worlds/cartpole --algo PPO --seed 0 --out cartpole-ppo.zip[/]
    """
    from dreamgym.train import TrainConfig, train_policy, with_zip_suffix
    from dreamgym.world import load

    dreamt = load(world)
    target = with_zip_suffix(out) if out is not None else Path(f"{dreamt.name}-{algo}.zip")
    if target.exists() and not overwrite:
        raise FileExistsError(f"{target} exists already; give another path or --overwrite")
    chosen = given(
        num_envs=num_envs, view=view, horizon=horizon, gamma=gamma, temperature=temperature
    )
    config = TrainConfig(device=device, **chosen)
    begin = time.perf_counter()
    with keeping(lambda: "nothing was written"), progress_bar("train") as report:
        policy = train_policy(
            dreamt, algo=algo, seed=seed, steps=steps, out=target, config=config, progress=report
        )
    seconds = time.perf_counter() - begin
    card = policy.card.as_dict()
    speed = {"seconds": seconds, "steps_per_second": card["steps"] / seconds}
    named = {"policy": str(target), "network": card["policy"]}
    write_json(json_file, {**card, **named, **speed})
    last = f", dream return {number(policy.curve[-1][1])} at the end" if policy.curve else ""
    say(f"{target}: {algo}, {number(card['steps'])} dream steps, {number(seconds)} s{last}")
