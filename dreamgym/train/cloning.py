"""Behaviour cloning: the policy that recorded the data, imitated.

The baseline beside which a policy of a dream stands: what supervised learning makes of the same
data without a world model (Pomerleau 1989, "ALVINN"; strong on data of good policies, and no better
than those, as in Fu et al. 2020, "D4RL", arXiv 2004.07219).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from dreamgym._device import float32_by_default
from dreamgym.data.mixture import DatasetSource
from dreamgym.data.spaces import space_to_json
from dreamgym.errors import TrainingError
from dreamgym.models import filter_states
from dreamgym.models.base import as_segment, model_device
from dreamgym.train.network import ActorCritic, save
from dreamgym.train.policy import PolicyCard, TrainedPolicy, policy_view, world_checksum
from dreamgym.train.registry import LEARNERS
from dreamgym.world.held_out import WorldData, open_for
from dreamgym.world.world import World, as_world

UPDATES = 2000
BATCH_SIZE = 256
LEARNING_RATE = 1e-3
EVALUATE_EVERY = 100

MAX_TRANSITIONS = 100_000
"""Transitions that are imitated at most; of more, the episodes are drawn at random."""

MAX_FILTERED = 20_000
"""The same where a model filters the observations, which takes longer."""

_CHUNK_ROWS = 4096  # observations that are filtered at once
_SMALLEST_STD = 1e-6


@float32_by_default()
def clone_policy(
    world: World | str | Path,
    data: DatasetSource,
    *,
    out: str | Path | None = None,
    updates: int = UPDATES,
    seed: int = 0,
) -> TrainedPolicy:
    """Imitate the actions in the data by supervised learning.

    An MLP predicts each action from the observation: by cross-entropy for choices, by squared error
    for numbers. The weights with the lowest error on held-out episodes are kept. It sees a
    vector as it is, and of images and Dicts the features of the world's state.

    Args:
        world: a world of the environment: a world, its folder, or the name of one that ships.
        data: a dataset or its path. Of the world's own dataset, the held-out episodes of the fit
            are held out here, too.
        out: file to write; None writes none.
        updates: gradient steps of Adam.
        seed: seed of the weights, the batches, and the model's filter noise.

    Returns:
        The policy, with "BC" as its algorithm.

    Raises:
        DatasetError: the dataset cannot be opened.
        WorldError: its spaces are not the world's.
        TrainingError: the action space is not supported.
        PolicyFileError: the file cannot be written.
    """
    world = as_world(world)
    view = policy_view(world)
    with open_for(world, data) as opened:
        training, held_out = _parts(opened, seed)
        inputs, actions = _transitions(world, view, opened, training, seed)
        checked = _transitions(world, view, opened, held_out, seed)
    mean, std = _moments(inputs)
    space: gym.Space[Any] = world.observation_space
    if view == "latent":
        space = gym.spaces.Box(-np.inf, np.inf, (world.model.feature_dim,), np.float32)
    arguments: dict[str, Any] = {"net_arch": [64, 64], "mean": mean, "std": std}
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        network = ActorCritic(space, world.action_space, **arguments)
    _imitate(network, (inputs, actions), checked, updates=updates, seed=seed)
    learner = next(each for each in LEARNERS.values() if each.suffix == ".safetensors")
    card = PolicyCard(
        algo="BC",
        learner=learner.name,  # whose file this is
        view=view,
        env_id=world.env_id,
        world=world.name,
        world_checksum=world_checksum(world),
        seed=seed,
        steps=0,
        observation_space=space_to_json(space),
        action_space=space_to_json(world.action_space),
        policy=arguments,
        hyperparameters={"updates": updates, "learning_rate": LEARNING_RATE},
        frame_skip=world.frame_skip.to_json(),
    )
    policy = TrainedPolicy(network=network.eval().requires_grad_(False), card=card)
    if out is not None:
        save(policy, learner.policy_path(out))
    return policy


def _parts(opened: WorldData, seed: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the episodes to imitate, and others to choose the weights by."""
    if opened.is_fitted_data:
        return opened.training, opened.held_out
    return opened.dataset.split(seed=seed)


def _transitions(
    world: World, view: str, opened: WorldData, episodes: NDArray[Any], seed: int
) -> tuple[Tensor, Tensor]:
    """Return what a policy saw (N, ...) and did (N, ...) in some episodes, in random order."""
    limit = MAX_TRANSITIONS if view == "observation" else MAX_FILTERED
    order = np.random.default_rng(seed).permutation(episodes)
    lengths = np.asarray(opened.dataset.lengths)[order]
    needed = int(np.searchsorted(np.cumsum(lengths), limit)) + 1
    seen, done = [], []
    for chunk in _chunks(order[:needed], lengths[:needed]):
        segment = as_segment(
            opened.dataset.windows(
                chunk, np.zeros(len(chunk), np.int64), int(opened.dataset.lengths[chunk].max())
            ),
            model_device(world.model),
        )
        inputs = segment.observation
        if view == "latent":
            shape = (*segment.mask.shape, world.model.noise_dim)
            noise = torch.rand(
                (shape[0], shape[1] + 1, shape[2]), generator=torch.Generator().manual_seed(seed)
            )
            with torch.no_grad():
                states = filter_states(world.model, segment, noise.to(segment.mask.device))
                flat = {key: leaf.flatten(0, 1) for key, leaf in states.items()}
                inputs = world.model.features(flat).unflatten(0, noise.shape[:2])
        if not isinstance(inputs, Tensor):
            raise TrainingError("a policy of the observation view needs a Box")
        seen.append(inputs[:, :-1][segment.mask].cpu())
        done.append(segment.action[segment.mask].cpu())
    return torch.cat(seen)[:limit], torch.cat(done)[:limit]


def _chunks(episodes: NDArray[Any], lengths: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Divide episodes into chunks of similar lengths that are filtered side by side."""
    order = np.argsort(lengths, kind="stable")
    start = 0
    while start < len(order):
        # Padded to the longest of the chunk, which is its last.
        stop = start + 1
        while stop < len(order) and (stop + 1 - start) * lengths[order[stop]] <= _CHUNK_ROWS:
            stop += 1
        yield episodes[order[start:stop]]
        start = stop


def _moments(inputs: Tensor) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation of each number; 1 for one that does not change."""
    flat = inputs.flatten(1).double()
    std = flat.std(0, correction=0)
    rounding = _SMALLEST_STD * flat.abs().amax(0).clamp(min=_SMALLEST_STD)
    return flat.mean(0).tolist(), torch.where(std > rounding, std, 1.0).tolist()


def _imitate(
    network: ActorCritic,
    training: tuple[Tensor, Tensor],
    held_out: tuple[Tensor, Tensor],
    *,
    updates: int,
    seed: int,
) -> None:
    """Fit the actor to actions, and keep the weights with the lowest held-out error."""
    optimizer = torch.optim.Adam(network.actor.parameters(), LEARNING_RATE)
    generator = torch.Generator().manual_seed(seed)
    inputs, targets = training[0], network.codec.inverse(training[1])
    checked = held_out[0], network.codec.inverse(held_out[1])
    best, weights = float("inf"), network.state_dict()
    for update in range(updates):
        rows = torch.randint(len(inputs), (BATCH_SIZE,), generator=generator)
        loss = _error(network, inputs[rows], targets[rows])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if (update + 1) % EVALUATE_EVERY and update + 1 < updates:
            continue
        with torch.no_grad():
            error = float(_error(network, *checked))
        if error < best:
            best = error
            weights = {key: leaf.clone() for key, leaf in network.state_dict().items()}
    network.load_state_dict(weights)


def _error(network: ActorCritic, inputs: Tensor, targets: Tensor) -> Tensor:
    """Return the mean error of the actor's outputs about encoded actions."""
    outputs = network.actor(network.standardise(inputs))
    if network.codec.continuous:
        return F.mse_loss(outputs, targets)
    parts = zip(outputs.split(network.codec.sizes, -1), targets.unbind(-1), strict=True)
    return torch.stack([F.cross_entropy(logits, choice) for logits, choice in parts]).sum()
