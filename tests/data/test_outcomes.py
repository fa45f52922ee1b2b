"""Rewards, ends and next observations of foreign files: under which names they are read, what is
lost where the file does not hold the last observations, and what is derived from the data.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from gymnasium import spaces

import dreamgym
from dreamgym.cli.app import main
from dreamgym.data import (
    Dataset,
    DatasetError,
    Episode,
    ForeignOptions,
    MixedDataset,
    check,
    convert,
    pack,
)
from dreamgym.data.formats.keys import find_fields, meaning
from dreamgym.errors import WorldError
from dreamgym.fitting.config import FitConfig

RNG = np.random.default_rng(0)
T = 6
OBS = RNG.normal(size=(4 * T, 3)).astype(np.float32)
NEXT = OBS + 100
ACT = RNG.uniform(-1, 1, size=(4 * T, 2)).astype(np.float32)
REW = np.full(4 * T, 7, np.float32)
ENDS = np.arange(4 * T) % T == T - 1  # four episodes of T rows
TIMEOUTS = ENDS & (np.arange(4 * T) >= 2 * T)  # of which two are cut off by time


def flat(path: Path, **columns: Any) -> Path:
    """Write flat columns to an HDF5 file."""
    with h5py.File(path, "w") as file:
        for name, values in columns.items():
            file[name.replace("__", "/")] = values
    return path


def folder_of(path: Path, count: int = 4, **columns: Any) -> Path:
    """Write one npz file per episode."""
    path.mkdir()
    for k in range(count):
        np.savez(path / f"{k}.npz", **{name: v[k * T : (k + 1) * T] for name, v in columns.items()})
    return path


def demos(path: Path, **columns: Any) -> Path:
    """Write a robomimic file; observations are under `obs/pos`."""
    with h5py.File(path, "w") as file:
        for k in range(4):
            for name, values in columns.items():
                file[f"data/demo_{k}/{name.replace('__', '/')}"] = values[k * T : (k + 1) * T]
    return path


def worldmodel(path: Path, **columns: Any) -> Path:
    """Write a stable-worldmodel file: rewards and flags arrive with the observation."""
    lengths = np.full(4, T)
    columns |= {"ep_len": lengths, "ep_offset": np.cumsum(lengths) - lengths}
    return flat(path, pixels=OBS, action=ACT, **columns)


def episodes_of(path: Path, **options: Any) -> list[Episode]:
    with Dataset(path, foreign=ForeignOptions(**options)) as dataset:
        return [dataset.episode(i) for i in range(len(dataset))]


def flags(episodes: list[Episode]) -> list[tuple[bool, bool]]:
    return [(episode.terminated, episode.truncated) for episode in episodes]


REWARD_NAMES = ("rewards", "reward", "rew", "Reward", "rews")
END_NAMES = ("dones", "done", "terminals", "terminal", "is_last")
NEXT_NAMES = ("next_obs", "next_observations", "next_observation", "obs_next", "obs2")

LAYOUTS: dict[str, Callable[..., Path]] = {
    "D4RL": lambda path, **columns: flat(path, observations=OBS, actions=ACT, **columns),
    "flat, short names": lambda path, **columns: flat(path, obs=OBS, action=ACT, **columns),
    "npz episodes": lambda path, **columns: folder_of(path, obs=OBS, action=ACT, **columns),
    "npz, long names": lambda path, **columns: folder_of(
        path, observations=OBS, actions=ACT, **columns
    ),
    "npz file": lambda path, **columns: _archive(path, obs=OBS, action=ACT, **columns),
    "OGBench": lambda path, **columns: _archive(path, observations=OBS, actions=ACT, **columns),
}


def _archive(path: Path, **columns: Any) -> Path:
    np.savez(path.with_suffix(".npz"), **columns)
    return path.with_suffix(".npz")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("names", list(zip(REWARD_NAMES, END_NAMES, NEXT_NAMES, strict=True)))
def test_outcomes_are_read_under_every_usual_name(
    tmp_path: Path, layout: str, names: tuple[str, str, str]
) -> None:
    reward, end, following = names
    path = LAYOUTS[layout](tmp_path / "d", **{reward: REW, end: ENDS, following: NEXT})
    with pytest.raises(DatasetError, match=f"there is only {end!r}.*terminals='termination'"):
        Dataset(path)
    episodes = episodes_of(path, terminals="termination")
    assert flags(episodes) == [(True, False)] * 4
    for k, episode in enumerate(episodes):
        assert episode.rewards.tolist() == [7] * T
        np.testing.assert_array_equal(episode.observations[:-1], OBS[k * T : (k + 1) * T])
        np.testing.assert_array_equal(episode.observations[-1], NEXT[(k + 1) * T - 1])


@pytest.mark.parametrize("reward", REWARD_NAMES)
def test_robomimic_and_stable_worldmodel_have_other_names_too(tmp_path: Path, reward: str) -> None:
    columns = {"obs__pos": OBS, "next_obs__pos": NEXT, "actions": ACT, reward: REW}
    path = demos(tmp_path / "r.hdf5", **columns, terminated=ENDS, truncated=TIMEOUTS)
    episodes = episodes_of(path)
    assert flags(episodes) == [(True, False)] * 4
    assert {reward for episode in episodes for reward in episode.rewards} == {7}
    path = worldmodel(tmp_path / "s.h5", **{reward: REW[:, None], "done": ENDS})
    with pytest.raises(DatasetError, match="there is only 'done'"):
        Dataset(path)
    episodes = episodes_of(path, terminals="boundary")
    assert flags(episodes) == [(False, True)] * 4
    assert {reward for episode in episodes for reward in episode.rewards} == {7}
    assert isinstance(episodes[0].observations, np.ndarray)  # the rewards are no observation


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"terminals": ENDS, "timeouts": TIMEOUTS}, "terminals win"),
        ({"done": ENDS, "timeout": TIMEOUTS}, "timeouts win"),
        ({"done": ENDS & ~TIMEOUTS, "truncated": TIMEOUTS}, "timeouts win"),
        ({"is_terminal": ENDS & ~TIMEOUTS, "is_last": ENDS}, "timeouts win"),
        ({"terminated": ENDS, "truncated": TIMEOUTS}, "terminals win"),
        ({"infos/timeouts": TIMEOUTS, "dones": ENDS}, "timeouts win"),
    ],
)
@pytest.mark.parametrize("layout", ["D4RL", "npz episodes", "npz file"])
def test_two_end_flags(tmp_path: Path, layout: str, columns: Any, expected: str) -> None:
    """A `done` of Gym is set for time limits too; D4RL's `terminals` are not."""
    path = LAYOUTS[layout](tmp_path / "d", reward=REW, next_obs=NEXT, **columns)
    timed_out = (True, False) if expected == "terminals win" else (False, True)
    assert flags(episodes_of(path)) == [(True, False)] * 2 + [timed_out] * 2


@pytest.mark.parametrize("layout", ["D4RL", "npz episodes", "npz file"])
@pytest.mark.parametrize("key", ["discount", "masks", "not_done"])
def test_keys_that_cannot_be_read_are_named(tmp_path: Path, layout: str, key: str) -> None:
    path = LAYOUTS[layout](tmp_path / "d", reward=REW, next_obs=NEXT, **{key: ~ENDS})
    message = rf"\['{key}'\] seem to carry ends.*rename them to .*ignore=.*--ignore"
    with pytest.raises(DatasetError, match=message):
        Dataset(path)
    path = LAYOUTS[layout](tmp_path / "e", reward=REW, next_obs=NEXT, dones=ENDS, **{key: ~ENDS})
    with Dataset(path, foreign=ForeignOptions(terminals="termination")) as dataset:
        assert flags([dataset.episode(0)]) == [(True, False)]
    assert (
        f"not read: {key}" in check(path, foreign=ForeignOptions(terminals="boundary")).convention
    )


WRITERS: dict[str, Callable[..., Path]] = {
    "D4RL": flat,
    "npz episodes": folder_of,
    "npz file": _archive,
}


@pytest.mark.parametrize("layout", WRITERS)
@pytest.mark.parametrize("key", ["env_reward", "reward_total", "step-reward", "run.Reward"])
def test_rewards_under_an_unusual_name_are_not_taken_for_none(
    tmp_path: Path, layout: str, key: str
) -> None:
    columns = {"observations": OBS, "next_observations": NEXT, "actions": ACT, key: REW}
    made = WRITERS[layout](tmp_path / "made", **columns, terminated=ENDS)
    with pytest.raises(DatasetError, match="carry rewards"):
        check(made)


@pytest.mark.parametrize("layout", WRITERS)
@pytest.mark.parametrize(
    ("key", "other", "same"),
    [
        ("rewards", {"reward": 2 * REW}, {"reward": REW.astype(np.float64)}),
        ("observations", {"obs": NEXT}, {"obs": OBS}),
        ("actions", {"action": -ACT}, {"action": ACT}),
        ("terminals", {"dones": ENDS | (np.arange(4 * T) % T == 2)}, {"dones": ENDS}),
    ],
)
def test_two_keys_that_differ_are_not_chosen_between(
    tmp_path: Path, layout: str, key: str, other: Any, same: Any
) -> None:
    columns = {"observations": OBS, "next_observations": NEXT, "actions": ACT, "rewards": REW}
    columns |= {"terminals": ENDS & ~TIMEOUTS, "timeouts": TIMEOUTS}
    if layout == "npz episodes" and key == "terminals":
        other = {"dones": np.ones(4 * T, bool)}  # of an episode, the last flag counts
        columns |= {"terminals": ENDS & False, "timeouts": ENDS & False}
        same = {"dones": ENDS & False}
    (name,) = other
    differing = WRITERS[layout](tmp_path / "differing", **columns, **other)
    with pytest.raises(DatasetError, match=f"--ignore {name}"):
        check(differing)
    assert check(differing, foreign=ForeignOptions(ignore=(name,))).episodes == 4
    assert check(WRITERS[layout](tmp_path / "same", **columns, **same)).episodes == 4


def test_rewards_that_may_arrive_later_are_refused(tmp_path: Path) -> None:
    columns = {"reward": REW, "is_first": np.roll(ENDS, 1), "is_terminal": ENDS}
    path = LAYOUTS["npz episodes"](tmp_path / "d", **columns)
    with pytest.raises(DatasetError, match=r"'is_first', as RLDS and Dreamer.*--ignore is_first"):
        Dataset(path)
    assert len(episodes_of(path, ignore=("is_first",))) == 4


def test_a_later_file_with_other_keys_is_refused(tmp_path: Path) -> None:
    path = LAYOUTS["npz episodes"](tmp_path / "d")
    np.savez(path / "5.npz", obs=OBS[:T], action=ACT[:T], reward=REW[:T])
    with pytest.raises(
        DatasetError, match=r"5\.npz: episode 4: its keys \['reward'\] seem to carry rewards"
    ):
        Dataset(path)
    path = LAYOUTS["npz, long names"](tmp_path / "e", rewards=REW)
    np.savez(path / "5.npz", observations=OBS[:T], actions=ACT[:T])
    with pytest.raises(DatasetError, match=r"5\.npz: episode 4: it has no rewards, unlike"):
        Dataset(path)
    path = demos(tmp_path / "r.hdf5", obs__pos=OBS, actions=ACT, rewards=REW)
    with h5py.File(path, "r+") as file:
        del file["data/demo_2/rewards"]
    with pytest.raises(DatasetError, match="/data/demo_2: it has no rewards, unlike other"):
        Dataset(path)


def test_several_episodes_in_one_npz_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    np.savez(tmp_path / "d" / "0.npz", obs=OBS, action=ACT, reward=REW, terminated=ENDS)
    with pytest.raises(DatasetError, match=r"terminated: it is set at row 5 of 24.*one file per"):
        Dataset(tmp_path / "d")


def test_flat_columns_without_any_end_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no column that says where its episodes end"):
        Dataset(LAYOUTS["D4RL"](tmp_path / "d", rewards=REW, next_observations=NEXT))


def test_names() -> None:
    assert meaning("infos/TimeLimit.truncated") == meaning("Dones") == "ends"
    assert meaning("next-obs") == "next observations"
    assert meaning("reward_forward") == "rewards"
    assert [meaning(name) for name in ("forward", "observations", "qpos", "infos")] == [None] * 4
    found = find_fields(["infos/reward", "rewards", "obs", "terminals", "infos/qpos"])
    assert (found.rewards, found.ends, found.unread) == ("rewards", "terminals", ("infos/reward",))
    assert find_fields(["infos/reward"]).rewards == "infos/reward"
    assert find_fields(["reward"], ignore=["reward"]).outcome_keys == ()


# ---------------------------------------------------------------- what is lost

SUCCESS = ENDS.astype(np.float32)  # a reward on the last row of each episode


@pytest.fixture(params=["D4RL", "npz episodes", "npz file", "robomimic"])
def without_next(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., Path]:
    """Write a dataset without next observations."""

    def write(rewards: np.ndarray, ends: np.ndarray = ENDS) -> Path:
        if request.param == "robomimic":
            return demos(
                tmp_path / "d.hdf5", obs__pos=OBS, actions=ACT, rewards=rewards, dones=ends
            )
        return LAYOUTS[request.param](tmp_path / "d", rewards=rewards, dones=ends)

    return write


QUICK = FitConfig(updates=1, starts=4, segment_length=2, batch_size=2)


@pytest.mark.parametrize("base", [0, -1])
def test_lost_ends_and_rewards_are_problems(
    without_next: Callable[..., Path], tmp_path: Path, base: int
) -> None:
    path = without_next(SUCCESS + base)
    foreign = ForeignOptions(terminals="termination")
    done = convert(path, tmp_path / "native.h5", options=foreign)
    packed = pack(done.path, tmp_path / "packed.h5")
    for card in (check(path, foreign=foreign), check(done.path), check(packed)):
        assert not card.ok
        note = "the last transition of 4 episodes is lost, .* 4 terminations and a reward of"
        assert any(re.search(note, text) for text in card.notes)
        assert any("all 4 terminations are lost" in problem for problem in card.problems)
        assert any(f"all rewards but {base} are lost" in problem for problem in card.problems)
        assert card.ended["cut off"] == 4
    assert any("is lost" in note for note in done.notes)
    with pytest.raises(DatasetError, match=r"all 4 terminations are lost.*--allow-loss"):
        dreamgym.fit(done.path, config=QUICK)


def test_losses_can_be_accepted(without_next: Callable[..., Path], tmp_path: Path) -> None:
    foreign = ForeignOptions(terminals="termination", allow_loss=True)
    done = convert(without_next(SUCCESS), tmp_path / "native.h5", options=foreign)
    card = check(done.path)
    assert card.ok
    assert any("all 4 terminations are lost" in note for note in card.notes)
    dreamgym.fit(done.path, config=QUICK)


def test_losses_that_leave_enough_are_only_noted(without_next: Callable[..., Path]) -> None:
    path = without_next(np.arange(4 * T, dtype=np.float32))
    card = check(path, foreign=ForeignOptions(terminals="boundary"))
    assert card.ok
    assert any("0 terminations and a reward of 56 in all" in note for note in card.notes)


def test_with_next_observations_nothing_is_lost(tmp_path: Path) -> None:
    path = LAYOUTS["D4RL"](tmp_path / "d", rewards=SUCCESS, terminated=ENDS, next_observations=NEXT)
    card = check(path)
    assert card.ok
    assert card.ended["terminated"] == 4
    assert not any("lost" in note for note in card.notes)


def test_a_mixture_is_refused_only_if_all_parts_are(tmp_path: Path) -> None:
    common = {"rewards": SUCCESS, "terminated": ENDS}
    lossy = LAYOUTS["D4RL"](tmp_path / "a", **common)
    good = LAYOUTS["D4RL"](tmp_path / "b", **common, next_observations=NEXT)
    with Dataset(lossy) as a, Dataset(good) as b:
        assert a.problems
        assert not MixedDataset([(a, 1.0), (b, 1.0)]).problems
        assert MixedDataset([(a, 1.0), (a, 1.0)]).problems


# ---------------------------------------------------------------- actions, keys, environments


def test_bounds_of_actions_come_from_all_episodes(tmp_path: Path) -> None:
    """A channel of at least half of [-1, 1] is normalised; others keep their range."""
    actions = np.stack([ACT[:, 0], ACT[:, 1] * 0.05, ACT[:, 1] * 30], axis=1)
    low, high = actions.min(axis=0), actions.max(axis=0)
    expected = spaces.Box(
        np.array([-1, low[1], low[2]], np.float32), np.array([1, high[1], high[2]], np.float32)
    )
    outcomes = {"rewards": REW, "terminated": ENDS}
    sources = {
        "D4RL": flat(tmp_path / "d.hdf5", observations=OBS, actions=actions, **outcomes),
        "npz": folder_of(tmp_path / "n", obs=OBS, action=actions, **outcomes),
        "Ha & Schmidhuber": folder_of(tmp_path / "h", obs=OBS, action=actions),
        "robomimic": demos(tmp_path / "r.hdf5", obs__pos=OBS, actions=actions, **outcomes),
    }
    for path in sources.values():
        card = check(path, foreign=ForeignOptions(allow_loss=True))
        assert any("bounds of the actions are taken from the data" in note for note in card.notes)
        with Dataset(path) as dataset:
            assert dataset.action_space == expected
        given = spaces.Box(-100, 100, (3,))
        with Dataset(path, foreign=ForeignOptions(action_space=given)) as dataset:
            assert dataset.action_space == given


def test_unbounded_actions_are_noted(tmp_path: Path) -> None:
    path = LAYOUTS["D4RL"](tmp_path / "d", rewards=REW, terminated=ENDS, next_observations=NEXT)
    space = spaces.Box(-np.inf, np.inf, (2,))
    card = check(path, foreign=ForeignOptions(action_space=space))
    assert any("infinite bound, and learners need finite" in note for note in card.notes)


def minari(folder: Path, *, nested: bool, described: bool) -> Path:
    """Write a Minari dataset of Dict observations, perhaps with a Dict inside the Dict."""
    folder.mkdir()
    inner = "goal/kettle" if nested else "goal"
    with h5py.File(folder / "main_data.hdf5", "w") as file:
        for k in range(3):
            group = file.create_group(f"episode_{k}")
            group["observations/pos"] = OBS[: T + 1]
            group[f"observations/{inner}"] = OBS[: T + 1, :1]
            group["actions"], group["rewards"] = ACT[:T], REW[:T]
            group["terminations"], group["truncations"] = np.zeros(T, bool), ENDS[:T]
    if described:

        def box(width: int) -> dict[str, Any]:
            low, high = [-50.0] * width, [50.0] * width
            return {"type": "Box", "dtype": "float32", "shape": [width], "low": low, "high": high}

        goal = {"type": "Dict", "subspaces": {"kettle": box(1)}} if nested else box(1)
        space = {"type": "Dict", "subspaces": {"pos": box(3), "goal": goal}}
        (folder / "metadata.json").write_text(json.dumps({"observation_space": json.dumps(space)}))
    return folder


@pytest.mark.parametrize("described", [False, True])
@pytest.mark.parametrize("nested", [False, True])
def test_keys_choose_in_minari(tmp_path: Path, nested: bool, described: bool) -> None:
    source = minari(tmp_path / "m", nested=nested, described=described)
    goal = "goal/kettle" if nested else "goal"
    bound = 50.0 if described else np.inf
    for keys, memory in (((goal,), 1 << 30), (("pos",), 0), ((goal, "pos"), 0), (None, 1 << 30)):
        with Dataset(source, foreign=ForeignOptions(keys=keys), memory=memory) as dataset:
            space = dataset.observation_space
            assert set(space.spaces) == set(keys or (goal, "pos"))
            for key, box in space.spaces.items():
                assert box.high.max() == bound
                seen = dataset.episode(1).observations[key]
                np.testing.assert_array_equal(seen, OBS[: T + 1, : box.shape[0]])
    with Dataset(source, keys=[goal]) as dataset:
        assert set(dataset.observation_space.spaces) == {goal}
    card = check(source)
    assert any("nested Dicts" in note for note in card.notes) == nested
    with pytest.raises(DatasetError, match=r"no observations \['door'\]; it has \['goal"):
        Dataset(source, foreign=ForeignOptions(keys=("door",)))


def test_keys_choose_in_flat_files_of_dicts(tmp_path: Path) -> None:
    outcomes = {"rewards": REW, "terminated": ENDS, "actions": ACT}
    path = flat(
        tmp_path / "d.hdf5",
        observations__pos=OBS,
        observations__goal=OBS[:, :1],
        next_observations__pos=NEXT,
        next_observations__goal=NEXT[:, :1],
        **outcomes,
    )
    for keys in (("pos",), ("goal", "pos")):
        episode = episodes_of(path, keys=keys)[1]
        assert set(episode.observations) == set(keys)
        np.testing.assert_array_equal(episode.observations["pos"][:-1], OBS[T : 2 * T])
        np.testing.assert_array_equal(episode.observations["pos"][-1], NEXT[2 * T - 1])


def test_keys_of_a_single_array_are_refused(tmp_path: Path) -> None:
    paths = [LAYOUTS[layout](tmp_path / layout, rewards=REW, terminated=ENDS) for layout in LAYOUTS]
    paths.append(folder_of(tmp_path / "ha", obs=OBS, action=ACT))
    paths.append(_archive(tmp_path / "og", observations=OBS, actions=ACT, terminals=ENDS))
    for path in paths:
        with pytest.raises(DatasetError, match=r"a single array.*--key"):
            Dataset(path, foreign=ForeignOptions(keys=("pos",)))


def test_keys_choose_in_a_given_space(tmp_path: Path) -> None:
    source = minari(tmp_path / "m", nested=True, described=False)
    box = spaces.Box(-9, 9, (1,))
    space = spaces.Dict(pos=spaces.Box(-9, 9, (3,)), goal=spaces.Dict(kettle=box))
    chosen = ForeignOptions(keys=("goal/kettle",), observation_space=space)
    with Dataset(source, foreign=chosen) as dataset:
        assert dataset.observation_space == spaces.Dict({"goal/kettle": box})


def test_check_refuses_keys_of_a_native_dataset(tmp_path: Path) -> None:
    path = dreamgym.record("CartPole-v1", steps=20, out=tmp_path / "d.h5")
    with pytest.raises(DatasetError, match="native dataset, of which check reads all"):
        check(path, foreign=ForeignOptions(keys=("pos",)))


def test_a_named_environment_is_known_to_the_dataset(tmp_path: Path) -> None:
    path = LAYOUTS["D4RL"](tmp_path / "d", rewards=REW, terminated=ENDS, next_observations=NEXT)
    sources = (path, minari(tmp_path / "m", nested=False, described=True))
    for number, source in enumerate(sources):
        out = tmp_path / f"{number}.h5"
        done = convert(source, out, options=ForeignOptions(env_id="Pendulum-v1"))
        with Dataset(done.path) as dataset:
            assert dataset.env_id == "Pendulum-v1"
            assert json.loads(dataset.env_spec)["id"] == "Pendulum-v1"
            assert json.loads(dataset.env_spec)["max_episode_steps"] == 200
    with Dataset(path, foreign=ForeignOptions(env_id="NotHere-v3")) as dataset:
        world = dreamgym.fit(dataset, config=QUICK)
    world.save(tmp_path / "world")
    assert dreamgym.load(tmp_path / "world").env_id == "NotHere-v3"
    with pytest.raises(WorldError, match=r"NotHere-v3.*not registered.*--env MODULE:NotHere-v3"):
        world.real_env()


def test_the_verbs_have_the_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    columns = {"reward": SUCCESS, "done": ENDS, "is_first": np.roll(ENDS, 1)}
    path = LAYOUTS["npz episodes"](tmp_path / "d", **columns)
    options = ["--terminals", "termination", "--ignore", "is_first"]
    for line, code in (
        (["check", str(path), *options], 1),
        (["check", str(path), *options, "--allow-loss"], 0),
        (["convert", str(path), str(tmp_path / "a.h5"), *options, "--allow-loss"], 0),
    ):
        with pytest.raises(SystemExit) as leave:
            main(line)
        assert (leave.value.code or 0) == code
        assert "4 terminations" in capsys.readouterr().out
