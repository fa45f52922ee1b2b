"""Start states depend on their own windows only, not on how the data are read."""

from __future__ import annotations

from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch

from dreamgym.data import (
    AnyDataset,
    Dataset,
    DatasetMetadata,
    Episode,
    FrameSkip,
    MixedDataset,
    SkippedDataset,
    record,
)
from dreamgym.models import MDNRNNConfig, ModelSpec, Segment, filter_states
from dreamgym.models.statistics import measure_statistics
from dreamgym.world import start_states
from dreamgym.world.start_states import burn_in
from tests.data.samples import image_cartpole, write

LENGTHS = [3, 30, 1, 12, 45, 8, 20]
LENGTH = 5
SPACE = gym.spaces.Box(0, 100, (2,))


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset in which each observation holds its episode and its row."""
    rng = np.random.default_rng(0)
    episodes = [
        Episode(
            observations=np.stack([np.full(n + 1, i), np.arange(n + 1)], 1).astype(np.float32),
            actions=rng.uniform(-1, 1, (n, 1)).astype(np.float32),
            rewards=np.zeros(n, np.float32),
            terminated=i % 2 == 0,
            truncated=i % 2 == 1,
            complete=True,
        )
        for i, n in enumerate(LENGTHS)
    ]
    metadata = DatasetMetadata(
        observation_space=SPACE, action_space=gym.spaces.Box(-1, 1, (1,), np.float32)
    )
    return write(tmp_path_factory.mktemp("starts") / "d.h5", episodes, metadata)


def build_model(dataset: AnyDataset) -> torch.nn.Module:
    """A model that filters vectors without noise, so that a state depends on observations only."""
    torch.manual_seed(0)
    spec = ModelSpec(family="mdn-rnn", config=MDNRNNConfig(hidden=8, trunk=8, head=8))
    model = spec.build(dataset.observation_space, dataset.action_space)
    pairs = (dataset.episode(i) for i in range(dataset.num_episodes))
    model.set_statistics(measure_statistics((e.observations, e.rewards) for e in pairs))
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize("skip", [1, 3])
def test_a_start_state_is_filtered_from_its_window_alone(path: Path, skip: int) -> None:
    """Padding, earlier rows and other episodes play no part; a last row is never a start."""
    with Dataset(path) as inner:
        dataset = SkippedDataset(inner, FrameSkip(steps=skip)) if skip > 1 else inner
        model = build_model(dataset)
        chosen = np.array([0, 1, 3, 4]) if skip == 1 else np.arange(dataset.num_episodes - 1)
        bank = burn_in(model, dataset, chosen, count=300, length=LENGTH, seed=1)
        decoded = model.decode(bank.states).round().int().numpy()
        by_number = {int(dataset.episode(i).observations[0, 0]): i for i in chosen}
        assert (bank.num_episode_starts, bank.size) == (150, 300)
        assert (decoded[:150, 1] == 0).all()
        assert set(decoded[:, 0]) == set(by_number)
        for k, (number, row) in enumerate(decoded.tolist()):
            episode, t = dataset.episode(by_number[number]), row // skip
            assert t < episode.length
            begin = max(0, t - LENGTH)
            window = Segment(
                torch.from_numpy(episode.observations[None, begin : t + 1]),
                torch.from_numpy(episode.actions[None, begin:t]),
                torch.zeros(1, t - begin),
                torch.zeros(1, t - begin, dtype=torch.bool),
                torch.ones(1, t - begin, dtype=torch.bool),
            )
            expected = filter_states(model, window, torch.rand(1, t - begin + 1, model.noise_dim))
            for key, leaf in expected.items():
                torch.testing.assert_close(bank.states[key][k], leaf[0, -1])


def test_starts_from_anywhere_are_uniform_over_steps(path: Path) -> None:
    with Dataset(path) as dataset:
        model = build_model(dataset)
        bank = burn_in(model, dataset, np.array([1, 4]), count=8000, length=1)
    decoded = model.decode(bank.states).round().int().numpy()[4000:]
    counts = np.bincount(decoded[:, 1], minlength=45)
    assert len(counts) == 45
    both, one = counts[:30], counts[30:]
    # 75 steps in all: two episodes have the first 30, one has the others.
    assert both.mean() == pytest.approx(2 * 4000 / 75, rel=0.1)
    assert one.mean() == pytest.approx(4000 / 75, rel=0.1)
    assert set(decoded[:, 0]) == {1, 4}


def test_start_states_do_not_depend_on_memory_or_chunk_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = record(image_cartpole(), steps=200, out=tmp_path / "d.h5")
    banks = []
    for memory, size in (
        (1 << 30, start_states.CHUNK_BYTES),
        (0, start_states.CHUNK_BYTES),
        (0, 20_000),
    ):
        monkeypatch.setattr(start_states, "CHUNK_BYTES", size)
        with Dataset(path, memory=memory) as dataset:
            mixed = MixedDataset([(dataset, 1.0)])
            model = build_model(dataset)
            every = np.arange(dataset.num_episodes)
            banks.append(burn_in(model, dataset, every, count=40))
            banks.append(burn_in(model, mixed, every, count=40))
    for bank in banks[1:]:
        for key, leaf in bank.states.items():
            torch.testing.assert_close(leaf, banks[0].states[key])
