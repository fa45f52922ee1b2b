"""The check of a dataset: its card, its notes and problems, and the HTML page."""

from __future__ import annotations

import io
import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from gymnasium import spaces

from dreamgym.data import Dataset, DatasetError, DatasetMetadata, Episode, check, record, write_page
from dreamgym.data.html_report import png
from dreamgym.data.statistics import ChannelStatistics
from tests.data.samples import dict_cartpole, image_cartpole, write, write_random


def test_the_card_of_a_cartpole_dataset(cartpole: Path) -> None:
    card = check(cartpole)
    with Dataset(cartpole) as dataset:
        episodes = [dataset.episode(i) for i in range(len(dataset))]
        assert card.checksum == dataset.checksum
    assert card.ok
    assert card.problems == []
    assert card.env_id == "CartPole-v1"
    assert card.episodes == len(episodes)
    assert card.steps == 2000
    assert card.size_bytes == cartpole.stat().st_size
    assert card.ended["terminated"] == sum(e.terminated for e in episodes)
    assert card.ended["cut off"] == sum(not e.complete for e in episodes)
    assert sum(card.ended.values()) == len(episodes)
    returns = [float(e.rewards.sum()) for e in episodes]
    assert card.returns["mean"] == pytest.approx(np.mean(returns))
    assert card.lengths["max"] == max(e.length for e in episodes)
    actions = np.concatenate([e.actions for e in episodes])
    assert card.actions["share"] == pytest.approx([np.mean(actions == 0), np.mean(actions == 1)])
    observations = np.concatenate([e.observations for e in episodes])
    channel = card.observations["observation"]["per_channel"][2]
    assert channel["min"] == observations[:, 2].min()
    assert channel["std"] == pytest.approx(observations[:, 2].std(), rel=1e-4)


def test_a_card_as_json_and_as_text(pendulum: Path) -> None:
    card = check(pendulum)
    again = json.loads(json.dumps(card.as_dict(), allow_nan=False))
    assert again["ok"] is True
    assert again["ended"] == {"terminated": 0, "truncated": 10, "cut off": 0}
    text = str(card)
    for part in ("Pendulum-v1", "10 truncated", "2,000 steps", "sticky:0.8", "ready to fit"):
        assert part in text


def test_constant_and_saturated_channels_are_noted(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    observations = rng.normal(size=(101, 4)).astype(np.float32)
    observations[:, 1] = 3.0
    observations[:, 2] = np.minimum(observations[:, 2], -0.5)
    episode = Episode(
        observations=observations,
        actions=rng.integers(0, 2, size=100),
        rewards=np.ones(100, np.float32),
        terminated=True,
        truncated=False,
        complete=True,
    )
    metadata = DatasetMetadata(
        observation_space=spaces.Box(-np.inf, np.inf, (4,)), action_space=spaces.Discrete(2)
    )
    card = check(write(tmp_path / "d.h5", [episode, episode], metadata))
    assert card.ok
    assert any("1 constant channels in 'observation': 1" in note for note in card.notes)
    assert any("1 saturated channels in 'observation': 2" in note for note in card.notes)


def test_the_card_of_a_dict_of_images_and_numbers(tmp_path: Path) -> None:
    card = check(record(dict_cartpole(), steps=200, out=tmp_path / "d.h5"))
    assert card.ok
    assert set(card.observations) == {"pixels", "a/b %.", "angle"}
    assert card.observations["pixels"]["channels"] == 16 * 16 * 3
    str(card)


def test_a_single_episode_is_a_problem(tmp_path: Path) -> None:
    card = check(write_random(tmp_path / "d.h5", [9]))
    assert not card.ok
    assert "at least 2" in card.problems[0]
    assert "not ready: it has problems" in str(card)


def test_a_single_long_episode_is_noted(tmp_path: Path) -> None:
    card = check(write_random(tmp_path / "d.h5", [64]))
    assert card.ok
    assert any("cuts into blocks" in note and "max_episode_steps" in note for note in card.notes)


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no such file"):
        check(tmp_path / "none.h5")


def test_near_duplicates_are_noted(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    metadata = DatasetMetadata(
        observation_space=spaces.Box(-np.inf, np.inf, (2,)), action_space=spaces.Discrete(2)
    )

    def walk(noise: float, seed: int) -> Episode:
        steps = np.random.default_rng(seed).normal(size=(21, 2)).cumsum(axis=0)
        return Episode(
            observations=(steps + noise * rng.normal(size=steps.shape)).astype(np.float32),
            actions=rng.integers(0, 2, size=20),
            rewards=np.zeros(20, np.float32),
            terminated=True,
            truncated=False,
            complete=True,
        )

    episodes = [walk(0, 1), walk(0, 2), walk(1e-5, 1), walk(0.3, 2), walk(0, 3)]
    card = check(write(tmp_path / "d.h5", episodes, metadata))
    assert card.ok
    assert [note for note in card.notes if "nearly the same" in note] == [
        "1 pairs of episodes are nearly the same: 0 and 2"
    ]


def test_real_episodes_are_not_duplicates(cartpole: Path, pendulum: Path) -> None:
    for path in (cartpole, pendulum):
        assert not any("nearly" in note for note in check(path).notes)


def test_coverage_and_throughput(pendulum: Path) -> None:
    card = check(pendulum)
    assert card.actions["coverage"] == [1.0]
    assert card.windows_per_second > 1000


@pytest.mark.parametrize("which", ["cartpole", "images", "dict"])
def test_the_html_page_has_pictures(tmp_path: Path, cartpole: Path, which: str) -> None:
    path = cartpole
    if which != "cartpole":
        make = image_cartpole if which == "images" else dict_cartpole
        path = record(make(), steps=120, out=tmp_path / "<odd> name.h5")
    card = write_page(path, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert card.ok
    assert "ready to fit" in page
    assert "<svg" in page
    assert ("data:image/png;base64," in page) == (which != "cartpole")
    assert "<odd>" not in page
    assert "http" not in page.replace("http-equiv", "")


def test_the_html_page_of_a_dataset_without_a_good_episode(tmp_path: Path) -> None:
    path = write_random(tmp_path / "d.h5", [4])
    with h5py.File(path, "r+") as file:
        file["steps/reward"][0] = 9.0
    card = write_page(path, tmp_path / "page.html")
    assert not card.ok
    assert "checksum does not fit" in (tmp_path / "page.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 1), (5, 7, 3), (5, 7, 4)])
def test_png_is_read_back_by_pillow(shape: tuple[int, ...]) -> None:
    image_of = pytest.importorskip("PIL.Image")
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    with image_of.open(io.BytesIO(png(image))) as read:
        expected = image.reshape(5, 7) if image.size == 35 else image[:, :, :3]
        np.testing.assert_array_equal(np.asarray(read), expected)


def test_reward_figures_are_of_actions_only(cartpole: Path) -> None:
    """The zero in the last row of an episode is not a reward: CartPole gives 1 per step."""
    rewards = check(cartpole).rewards
    assert (rewards["min"], rewards["mean"], rewards["max"]) == (1.0, 1.0, 1.0)
    assert rewards["rows"] == 2000


@pytest.mark.parametrize("actions", [spaces.Discrete(2), spaces.Box(-1, 1, (2,))])
def test_a_dataset_without_a_finite_row_has_a_readable_card(
    tmp_path: Path, actions: spaces.Space
) -> None:
    metadata = DatasetMetadata(observation_space=spaces.Box(-1, 1, (3,)), action_space=actions)
    path = write_random(tmp_path / "d.h5", [4, 5], metadata)
    with h5py.File(path, "r+") as file:
        file["steps/obs/observation"][:, 0] = np.nan
        if isinstance(actions, spaces.Box):
            file["steps/action"][:] = np.nan
    card = check(path)
    assert not card.ok
    assert "no row is finite" in str(card)
    assert ("no action is finite" in str(card)) == isinstance(actions, spaces.Box)
    json.dumps(card.as_dict(), allow_nan=False)


def notes_on(tmp_path: Path, observations: np.ndarray, actions: np.ndarray | None = None) -> str:
    """Return the notes on two episodes, each with half of the rows."""
    rng = np.random.default_rng(0)
    half = len(observations) // 2
    if actions is None:
        actions = rng.uniform(-1, 1, (2 * half, 1))
    episodes = [
        Episode(
            observations=observations[first : first + half],
            actions=actions[first : first + half - 1].astype(np.float32),
            rewards=rng.normal(size=half - 1).astype(np.float32),
            terminated=True,
            truncated=False,
            complete=True,
        )
        for first in (0, half)
    ]
    metadata = DatasetMetadata(
        observation_space=spaces.Box(-np.inf, np.inf, observations.shape[1:], observations.dtype),
        action_space=spaces.Box(-1, 1, actions.shape[1:], np.float32),
    )
    card = check(write(tmp_path / "d.h5", episodes, metadata))
    assert card.ok
    return "; ".join(card.notes)


def test_variation_that_float32_cannot_hold_beside_an_offset_is_noted(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(200, 3))
    rows[:, 1] += 4e6
    rows[:, 2] = 4e6  # constant: no digits to lose
    notes = notes_on(tmp_path, rows)
    assert "channel 1 of 'observation' loses digits in float32" in notes
    assert "steps of 0.48" in notes
    assert "subtract the offset" in notes


def test_angles_that_wrap_are_noted_and_flags_noise_and_clipped_channels_are_not(
    tmp_path: Path,
) -> None:
    rng = np.random.default_rng(0)
    turn = rng.normal(0.2, 0.2, 400).cumsum()
    rows = np.stack(
        [
            np.arctan2(np.sin(turn), np.cos(turn)),
            np.rad2deg(turn) % 360,
            np.sin(turn),
            rng.integers(0, 2, 400),
            rng.uniform(size=400),
            rng.standard_cauchy(400).clip(-1, 1),
        ],
        axis=1,
    ).astype(np.float32)
    notes = notes_on(tmp_path, rows)
    assert "channels 0, 1 of 'observation' wrap like an angle" in notes
    assert "range of 6.2" in notes
    assert "sine and cosine" in notes


def test_codes_of_classes_stored_as_floats_are_noted_and_flags_are_not(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(0, [2, 5], (100, 2)).astype(np.float32)
    notes = notes_on(tmp_path, np.concatenate([codes, rng.normal(size=(100, 1))], 1, dtype="f4"))
    assert "channel 1 of 'observation' only holds whole numbers" in notes
    plain = notes_on(tmp_path / "plain", rng.normal(size=(600, 2)).astype(np.float32))
    assert not plain


def test_numbers_of_the_action_that_never_change_are_noted(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    actions = rng.uniform(-1, 1, (100, 3))
    actions[:, 1] = 0.5
    notes = notes_on(tmp_path, rng.normal(size=(100, 2)), actions)
    assert notes.count("never change") == 1
    assert "the numbers 1 of the actions never change" in notes
    assert "record with a policy that varies them" in notes


# ---------------------------------------------------------------- many episodes, many bytes


def test_duplicates_are_found_among_many_episodes_that_begin_and_end_alike(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    metadata = DatasetMetadata(
        observation_space=spaces.Box(0, 255, (4, 4, 3), np.uint8), action_space=spaces.Discrete(2)
    )

    def film(seed: int) -> Episode:
        frames = np.random.default_rng(seed).integers(0, 256, (6, 4, 4, 3), dtype=np.uint8)
        frames[[0, -1]] = 7  # the title, and "game over"
        return Episode(
            observations=frames,
            actions=rng.integers(0, 2, size=5),
            rewards=np.zeros(5, np.float32),
            terminated=True,
            truncated=False,
            complete=True,
        )

    card = check(write(tmp_path / "d.h5", [film(seed) for seed in [*range(20), 3]], metadata))
    assert any("1 pairs of episodes are nearly the same: 3 and 20" in note for note in card.notes)


def test_statistics_of_bytes_are_those_of_numbers() -> None:
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 256, (700, 5, 3), dtype=np.uint8)
    rows[:, 0] = 9
    rows[:, 1] = rng.integers(254, 256, (700, 3))
    fast, plain = ChannelStatistics((5, 3)), ChannelStatistics((5, 3))
    for first in range(0, 700, 300):
        fast.add(rows[first : first + 300])
        plain.add(rows[first : first + 300].astype(np.float32))
    assert fast.constant == plain.constant == [0, 1, 2]
    assert fast.saturated == plain.saturated
    assert fast.as_dict().keys() == plain.as_dict().keys()
    for name in ("count", "low", "high", "mean", "std"):
        np.testing.assert_allclose(getattr(fast, name), getattr(plain, name))


def test_few_steps_are_noted(tmp_path: Path) -> None:
    tiny = check(write_random(tmp_path / "tiny.h5", [4, 6, 5]))
    assert "it holds 15 steps in 3 episodes: far too few to fit or to judge a world" in tiny.notes
    assert tiny.ok
    enough = check(write_random(tmp_path / "enough.h5", [300, 200]))
    assert not any("far too few" in note for note in enough.notes)
