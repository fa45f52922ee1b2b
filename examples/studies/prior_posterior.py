"""Study: how fast does a model that no longer sees lose the thread?

    python examples/studies/prior_posterior.py

An RSSM is fitted to Pendulum. Its posterior sees every observation, its prior only the first ones:
`prior_posterior.png` shows the error of both against the steps since the last observation, beside
a forecast that repeats it. The posterior's line is what the state cannot hold; where the prior
crosses the third line, dreams from a single start know nothing more. The mean of eight dreams is
compared as well: it is the forecast, and a single dream is a sample.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

import dreamgym
from dreamgym.metrics import open_loop_errors
from dreamgym.models import RSSMConfig, as_segment, filter_states

HORIZON = 50


@torch.no_grad()
def posterior_error(model, dataset, episodes) -> float:
    """Return the error of decoded posteriors, in units of the observations' spread."""
    batch = dataset.segments(episodes, HORIZON).draw(64, np.random.default_rng(0))
    segment = as_segment(batch, torch.device("cpu"))
    noise = torch.rand(64, HORIZON + 1, model.noise_dim, generator=torch.Generator().manual_seed(0))
    states = filter_states(model, segment, noise)
    decoded = torch.stack(
        [model.decode({key: leaf[:, t] for key, leaf in states.items()}) for t in range(1, HORIZON)]
    ).transpose(0, 1)
    truth = segment.observation[:, 1:HORIZON]
    valid = segment.mask[:, : HORIZON - 1]
    spread = truth[valid].std(0)
    return float((((decoded - truth) / spread)[valid] ** 2).mean() ** 0.5)


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out/study"), help="folder of results")
    parser.add_argument("--quick", action="store_true", help="run all of it, too briefly to learn")
    options = parser.parse_args(given)
    options.out.mkdir(parents=True, exist_ok=True)

    data = dreamgym.record(
        "Pendulum-v1",
        steps=2000 if options.quick else 20_000,
        policy="sticky:0.8",
        out=options.out / "pendulum.h5",
        overwrite=True,
    )
    small = RSSMConfig(deter=16, hidden=16, stoch=4, classes=4, units=16, layers=1)
    config = dreamgym.default_config(
        "rssm",
        updates=10 if options.quick else 1500,
        model=small if options.quick else None,
        horizon=HORIZON,
    )
    world = dreamgym.fit(data, family="rssm", seed=0, config=config)

    with dreamgym.Dataset(data) as dataset:
        _, held_out = dataset.split(config.held_out, 0)  # as the fit split it
        horizons = range(1, HORIZON + 1, 10 if options.quick else 1)
        prior = open_loop_errors(world.model, dataset, held_out, horizons=horizons)
        posterior = posterior_error(world.model, dataset, held_out)
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    axes.axhline(posterior, color="black", label="posterior")
    axes.plot(prior.horizons, prior.mean, label="prior, mean of 8 dreams")
    axes.plot(prior.horizons, prior.sampled, label="prior, one dream")
    axes.plot(prior.horizons, prior.repeat_last, ":", label="repeat the last observation")
    axes.set(xlabel="steps since the last observation", ylabel="error (in spreads)", ylim=(0, None))
    axes.legend()
    figure.savefig(options.out / "prior_posterior.png")
    print(f"posterior {posterior:.3f}")
    for k, error, last in zip(prior.horizons, prior.mean, prior.repeat_last, strict=True):
        if k % 10 == 1:
            print(f"{k} steps ahead: prior {error:.3f}, repeat the last {last:.3f}")
    print(options.out / "prior_posterior.png")


if __name__ == "__main__":
    main()
