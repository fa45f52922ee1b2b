"""Datasets opened for reading: segments, splits, keys and verification."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dreamgym.data import (
    Dataset,
    DatasetError,
    DatasetMetadata,
    Episode,
    FrameSkip,
    SkippedDataset,
    record,
)
from dreamgym.data.policies import draws_at_random
from tests.data.samples import (
    assert_same_batch,
    dict_cartpole,
    image_cartpole,
    random_episode,
    slow_segments,
    vector_metadata,
    write,
    write_random,
)


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=5),
    st.integers(1, 12),
    st.sampled_from([1 << 30, 0]),
    st.data(),
)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_segments_match_their_definition(
    tmp_path: Path, lengths: list[int], length: int, memory: int, data: st.DataObject
) -> None:
    path = tmp_path / "d.h5"
    path.unlink(missing_ok=True)
    metadata = DatasetMetadata(
        observation_space=spaces.Dict(
            a=spaces.Box(-1, 1, (2,)), b=spaces.Box(0, 9, (2, 2), np.uint8)
        ),
        action_space=spaces.Box(-1, 1, (1,)),
    )
    rng = np.random.default_rng(0)
    ends = [data.draw(st.booleans()) for _ in lengths]
    episodes = [
        random_episode(
            metadata.observation_space,
            metadata.action_space,
            n,
            rng,
            terminated=end,
            truncated=not end,
        )
        for n, end in zip(lengths, ends, strict=True)
    ]
    write(path, episodes, metadata)
    chosen = data.draw(
        st.lists(st.integers(0, len(lengths) - 1), min_size=1, unique=True), label="episodes"
    )
    with Dataset(path, memory=memory) as dataset:
        sampler = dataset.segments(chosen, length)
        every = sampler.at(np.arange(sampler.num_transitions))
        assert_same_batch(every, slow_segments(dataset, chosen, length))


def test_segments_of_real_data_match_their_definition(cartpole: Path) -> None:
    with Dataset(cartpole) as dataset:
        train, _ = dataset.split(seed=1)
        sampler = dataset.segments(train, 16)
        batch = sampler.at(np.arange(sampler.num_transitions))
        assert_same_batch(batch, slow_segments(dataset, train.tolist(), 16))
        assert sampler.num_transitions == dataset.lengths[train].sum()
        assert batch.terminated.any(axis=1).sum() > 0


def test_draws_are_uniform_over_transitions_and_seeded(tmp_path: Path) -> None:
    with Dataset(write_random(tmp_path / "d.h5", [1, 3, 6])) as dataset:
        sampler = dataset.segments([0, 1, 2], 4)
        a = sampler.draw(64, np.random.default_rng(3))
        assert_same_batch(a, sampler.draw(64, np.random.default_rng(3)))
        every = {row.tobytes(): i for i, row in enumerate(sampler.at(np.arange(10)).observation)}
        drawn = sampler.draw(50_000, np.random.default_rng(0)).observation
        counts = np.bincount([every[row.tobytes()] for row in drawn], minlength=10)
        assert np.abs(counts / 5000 - 1).max() < 0.06


def test_batches_are_fresh_arrays(cartpole: Path) -> None:
    with Dataset(cartpole) as dataset:
        before = dataset.episode(0)
        sampler = dataset.segments([0], 4)
        for array in sampler.at(np.array([0, 0])):
            array[...] = 1
        dataset.episode(0).observations[...] = 7
        np.testing.assert_array_equal(dataset.episode(0).observations, before.observations)


def test_segments_keep_raw_units_and_dtypes(pendulum: Path, tmp_path: Path) -> None:
    with Dataset(pendulum) as dataset:
        batch = dataset.segments([0, 1], 8).draw(5, np.random.default_rng(0))
    assert batch.observation.shape == (5, 9, 3)
    assert batch.action.shape == (5, 8, 1)
    assert batch.action.dtype == batch.reward.dtype == np.float32
    assert batch.terminated.dtype == batch.mask.dtype == bool
    metadata = DatasetMetadata(
        observation_space=spaces.Box(-1, 1, (2,), np.float64),
        action_space=spaces.Box(-1, 1, (1,), np.float64),
    )
    with Dataset(write_random(tmp_path / "d.h5", [5], metadata)) as dataset:
        batch = dataset.segments([0], 2).draw(1, np.random.default_rng(0))
        assert batch.observation.dtype == np.float64
        assert batch.action.dtype == np.float32  # the dtype that models take
        assert dataset.episode(0).actions.dtype == np.float64


@given(st.integers(2, 40), st.floats(0.001, 0.999), st.integers(0, 2**32))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20)
def test_the_split_is_by_episode(tmp_path: Path, count: int, share: float, seed: int) -> None:
    path = tmp_path / f"{count}.h5"
    if not path.exists():
        write_random(path, [2] * count)
    with Dataset(path) as dataset:
        train, held = dataset.split(share, seed)
        assert len(train) >= 1
        assert len(held) >= 1
        assert sorted([*train, *held]) == list(range(count))
        again = dataset.split(share, seed)
        np.testing.assert_array_equal(train, again[0])
        assert abs(len(held) - share * count) <= 1


def test_invalid_arguments_of_split_and_segments(tmp_path: Path, cartpole: Path) -> None:
    dataset = Dataset(write_random(tmp_path / "d.h5", [5]))
    with pytest.raises(DatasetError, match="at least 2"):
        dataset.split()
    with Dataset(cartpole) as dataset:
        with pytest.raises(ValueError, match="held_out"):
            dataset.split(1.0)
        with pytest.raises(ValueError, match="length"):
            dataset.segments([0], 0)
        with pytest.raises(DatasetError, match="no episodes"):
            dataset.segments([], 3)
        with pytest.raises(IndexError):
            dataset.segments([0, 10**6], 3)
        with pytest.raises(IndexError):
            dataset.episode(10**6)
    with pytest.raises(ValueError, match="on_bad"):
        Dataset(cartpole, on_bad="ignore")


def test_the_checksum_depends_on_the_content(tmp_path: Path) -> None:
    a, b, c = (write_random(tmp_path / name, n) for name, n in [("a", [5]), ("b", [5]), ("c", [6])])
    with Dataset(a) as x, Dataset(b) as y, Dataset(c) as z:
        assert x.checksum == y.checksum != z.checksum
        assert len(x.checksum) == 64


def test_vectors_are_drawn_fast(cartpole: Path) -> None:
    """A tenth of the benchmark's 400,000 windows per second: only a Python loop is slower."""
    with Dataset(cartpole) as dataset:
        sampler = dataset.segments(np.arange(len(dataset)), 16)
        rng = np.random.default_rng(0)
        start = time.process_time()
        for _ in range(500):
            sampler.draw(16, rng)
        assert 500 * 16 / (time.process_time() - start) > 40_000


def test_dict_observations_are_read_by_key(tmp_path: Path) -> None:
    with Dataset(record(dict_cartpole(), steps=100, out=tmp_path / "d.h5")) as dataset:
        batch = dataset.segments([0], 3).draw(2, np.random.default_rng(0))
        assert list(batch.observation) == ["a/b %.", "angle", "pixels"]
        assert batch.observation["angle"].shape == (2, 4)
        assert batch.observation["pixels"].dtype == np.uint8


def test_a_dataset_of_some_keys(tmp_path: Path) -> None:
    path = record(dict_cartpole(), steps=60, out=tmp_path / "d.h5")
    with Dataset(path) as whole, Dataset(path, keys=["pixels", "angle"]) as some:
        assert list(some.observation_space.spaces) == ["angle", "pixels"]  # the space's order
        assert some.selection == {"keys": ["angle", "pixels"]}
        assert whole.selection == {}
        assert some.checksum == whole.checksum
        assert list(some.episode(0).observations) == ["angle", "pixels"]
        np.testing.assert_array_equal(
            some.episode(0).observations["angle"], whole.episode(0).observations["angle"]
        )
        batch = some.segments([0], 4).draw(2, np.random.default_rng(0))
        assert set(batch.observation) == {"pixels", "angle"}
    with pytest.raises(DatasetError, match="no observation keys"):
        Dataset(path, keys=["pixel"])


def test_episodes_left_in_the_file_are_verified_when_first_read(tmp_path: Path) -> None:
    path = record(image_cartpole(), steps=200, out=tmp_path / "d.h5")
    with h5py.File(path, "r+") as file:
        file["steps/obs/observation"][int(file["episodes/start"][2]) + 1, 0, 0, 0] ^= 1
    with Dataset(path, memory=0) as dataset:
        dataset.episode(1)
        with pytest.raises(DatasetError, match="episode 2: its checksum"):
            dataset.episode(2)
        with pytest.raises(DatasetError, match="episode 2: its checksum"):
            dataset.verify()


@pytest.mark.parametrize("memory", [0, 1 << 30])
@pytest.mark.parametrize("ends", [True, False])
def test_a_single_episode_is_cut_into_blocks_that_share_no_observation(
    tmp_path: Path, ends: bool, memory: int
) -> None:
    path = write_counting(tmp_path / "d.h5", steps=130, terminated=ends)
    with Dataset(path, memory=memory) as whole:
        blocks = whole.in_blocks()
        assert blocks.checksum == whole.checksum
        assert blocks.num_episodes == 4
        assert blocks.lengths.tolist() == [31, 31, 31, 34]
        assert blocks.terminated.tolist() == [False, False, False, ends]
        episodes = [blocks.episode(index) for index in range(4)]
        assert not any(episode.truncated or episode.complete for episode in episodes[:3])
        seen = np.concatenate([episode.observations[:, 0] for episode in episodes])
        np.testing.assert_array_equal(seen, np.arange(131))
        for episode in episodes:
            np.testing.assert_array_equal(episode.actions[:, 0], episode.observations[:-1, 0])
            np.testing.assert_array_equal(episode.rewards, episode.observations[1:, 0])
        blocks.verify()
        padded = blocks.windows([0, 3], [29, 32], 4)
        assert padded.mask.tolist() == [[True, True, False, False]] * 2
        assert padded.action[0, :, 0].tolist() == [29, 30, 0, 0]
        assert padded.reward[0].tolist() == [30, 31, 0, 0]
        assert padded.terminated.tolist() == [[False] * 4, [False, ends, False, False]]
        training, held_out = blocks.split(0.25)
        assert (len(training), len(held_out)) == (3, 1)


def test_blocks_of_a_dataset_with_a_frame_skip_begin_at_its_steps(tmp_path: Path) -> None:
    path = write_counting(tmp_path / "d.h5", steps=300)
    with Dataset(path) as dataset:
        blocks = SkippedDataset(dataset, FrameSkip(steps=4)).in_blocks()
        first = [float(blocks.episode(index).observations[0, 0]) for index in range(2)]
        last = float(blocks.episode(0).observations[-1, 0])
        assert blocks.num_episodes == 2
        assert [value % 4 for value in (*first, last)] == [0, 0, 0]
        assert last == first[1] - 4


def test_what_has_several_episodes_or_is_too_short_is_not_cut(tmp_path: Path) -> None:
    with Dataset(write_random(tmp_path / "a.h5", [100, 100])) as several:
        assert several.in_blocks() is several
    with Dataset(write_random(tmp_path / "b.h5", [63])) as short:
        assert short.in_blocks() is short
        with pytest.raises(DatasetError, match=r"1 episode.*max_episode_steps=200.*--max-episode"):
            short.split()


def test_the_time_limit_is_the_one_length_of_truncated_episodes(tmp_path: Path) -> None:
    def limit(*episodes: tuple[int, str]) -> int | None:
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.h5"
        written = [counting_episode(steps, end) for steps, end in episodes]
        with Dataset(write(path, written, COUNTING)) as dataset:
            return dataset.time_limit

    assert limit((7, "truncated"), (7, "truncated"), (3, "terminated"), (5, "cut off")) == 7
    assert limit((7, "truncated"), (5, "terminated")) is None, "one length says nothing"
    assert limit((7, "truncated"), (6, "truncated")) is None
    assert limit((7, "truncated"), (7, "truncated"), (9, "terminated")) is None
    assert limit((7, "cut off"), (7, "terminated")) is None


COUNTING = DatasetMetadata(
    observation_space=spaces.Box(-np.inf, np.inf, (1,)),
    action_space=spaces.Box(-np.inf, np.inf, (1,)),
)


def counting_episode(steps: int, end: str) -> Episode:
    count = np.arange(steps + 1, dtype=np.float32)[:, None]
    return Episode(
        observations=count,
        actions=count[:-1],
        rewards=count[1:, 0],
        terminated=end == "terminated",
        truncated=end == "truncated",
        complete=end != "cut off",
    )


def write_counting(path: Path, *, steps: int, terminated: bool = False) -> Path:
    """Write an episode whose observations count its steps; an action is the count before it."""
    return write(
        path, [counting_episode(steps, "terminated" if terminated else "cut off")], COUNTING
    )


def test_a_folder_knows_the_policy_of_every_file(tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    for name, lengths, policy in (("a", [4, 5], "sticky:0.8"), ("b", [3, 6, 2], "PPO")):
        write_random(folder / f"{name}.h5", lengths, replace(vector_metadata(), policy=policy))
    with Dataset(folder) as dataset:
        assert dataset.policy == "sticky:0.8 + PPO"
        assert dataset.random_actions.tolist() == [True, True, False, False, False]
    assert draws_at_random("sticky:0.8 + random")
    assert not draws_at_random("sticky:0.8 + PPO")
