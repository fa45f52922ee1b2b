"""Foreign formats: files made by the formats' own libraries, or by their documented layout.

`foreign/minari_*` were made with minari 0.5.4 on the real CartPole; `expected.npz` is what minari
itself reads from them. `foreign/stable_worldmodel.h5` was made with the HDF5 writer of
stable-worldmodel 0.1.1.
"""

from __future__ import annotations

import dataclasses
import io
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from gymnasium import spaces

from dreamgym.data import (
    Dataset,
    DatasetError,
    DatasetWriter,
    Episode,
    ForeignOptions,
    check,
    convert,
    pack,
    record,
)
from dreamgym.data.formats import ForeignDataset, Probe, detect_format, registry
from dreamgym.data.formats.common import make_episode, make_metadata
from tests.data.samples import assert_same_batch, assert_same_episode, write_random

FOREIGN = Path(__file__).parent / "foreign"
RNG = np.random.default_rng(0)
OBS = RNG.normal(size=(40, 3)).astype(np.float32)
ACT = RNG.uniform(-1, 1, size=(40, 2)).astype(np.float32)
REW = RNG.normal(size=40).astype(np.float32)


def read_both_ways(source: Path, tmp_path: Path, **options: Any) -> list[Episode]:
    """Read the episodes directly and after a conversion; both must be the same."""
    foreign = ForeignOptions(**options)
    done = convert(source, tmp_path / "native.h5", options=foreign)
    with Dataset(source, foreign=foreign) as direct, Dataset(done.path) as native:
        assert direct.checksum == native.checksum
        assert direct.observation_space == native.observation_space
        episodes = [native.episode(i) for i in range(len(native))]
        for index, episode in enumerate(episodes):
            assert_same_episode(episode, direct.episode(index))
    assert done.episodes == len(episodes)
    card = check(source, foreign=foreign)
    assert card.convention == done.convention
    assert done.format in str(card)
    return episodes


def hdf5(path: Path, **arrays: Any) -> Path:
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            file[name.replace("__", "/")] = values
    return path


def flags(episodes: list[Episode]) -> list[tuple[int, bool, bool, bool]]:
    return [(e.length, e.terminated, e.truncated, e.complete) for e in episodes]


@pytest.mark.parametrize("name", ["minari_vectors", "minari_jpeg"])
def test_minari(tmp_path: Path, name: str) -> None:
    pytest.importorskip("PIL")
    expected = np.load(FOREIGN / name / "expected.npz")
    for source in (FOREIGN / name, FOREIGN / name / "main_data.hdf5"):
        (tmp_path / "native.h5").unlink(missing_ok=True)
        episodes = read_both_ways(source, tmp_path)
        assert len(episodes) == 3
        for i, episode in enumerate(episodes):
            observed = episode.observations
            parts = observed if isinstance(observed, dict) else {"observation": observed}
            for key, values in parts.items():
                np.testing.assert_array_equal(values, expected[f"{i}_obs_{key}"])
            np.testing.assert_array_equal(episode.actions, expected[f"{i}_actions"])
            np.testing.assert_array_equal(episode.rewards, expected[f"{i}_rewards"])
            assert episode.terminated == expected[f"{i}_terminations"][-1]
            assert episode.truncated == expected[f"{i}_truncations"][-1]
    with Dataset(FOREIGN / name) as dataset:
        assert dataset.env_id == "CartPole-v1"
        assert dataset.action_space == spaces.Discrete(2)
        assert dataset.policy == "random"


def test_minari_sorts_by_number(tmp_path: Path) -> None:
    arrays: dict[str, Any] = {}
    for n in range(12):
        arrays[f"episode_{n}__observations"] = np.full((n + 2, 1), n, np.float32)
        arrays[f"episode_{n}__actions"] = np.zeros((n + 1, 1), np.float32)
        arrays[f"episode_{n}__rewards"] = np.zeros(n + 1)
        for flag in ("terminations", "truncations"):
            arrays[f"episode_{n}__{flag}"] = np.zeros(n + 1, bool)
    episodes = read_both_ways(hdf5(tmp_path / "main_data.hdf5", **arrays), tmp_path)
    assert [e.length for e in episodes] == list(range(1, 13))
    assert not any(e.complete for e in episodes)


def test_minari_with_a_missing_observation(tmp_path: Path) -> None:
    shutil.copytree(FOREIGN / "minari_vectors", tmp_path / "m")
    with h5py.File(tmp_path / "m" / "main_data.hdf5", "r+") as file:
        rows = file["episode_1/observations"][:-1]
        del file["episode_1/observations"]
        file["episode_1/observations"] = rows
    with pytest.raises(DatasetError, match=r"/episode_1/observations: .*expected T \+ 1"):
        Dataset(tmp_path / "m")


def test_minari_with_a_broken_image(tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    shutil.copytree(FOREIGN / "minari_jpeg", tmp_path / "m")
    with h5py.File(tmp_path / "m" / "main_data.hdf5", "r+") as file:
        file["episode_0/observations/image"][2] = np.zeros(5, np.uint8)
    with pytest.raises(DatasetError, match="row 2: it is not a JPEG"):
        Dataset(tmp_path / "m")


def test_stable_worldmodel_aligns_rewards_with_the_action_before(tmp_path: Path) -> None:
    source = FOREIGN / "stable_worldmodel.h5"
    episodes = read_both_ways(source, tmp_path)
    assert flags(episodes) == [
        (5, True, False, True),
        (3, False, True, True),
        (8, True, False, True),
    ]
    with h5py.File(source) as file:
        for episode, start in zip(episodes, file["ep_offset"][:], strict=True):
            stop = start + episode.length + 1
            assert set(episode.observations) == {"pixels", "proprio"}
            np.testing.assert_array_equal(
                episode.observations["pixels"], file["pixels"][start:stop]
            )
            np.testing.assert_array_equal(episode.actions, file["action"][start : stop - 1])
            np.testing.assert_array_equal(episode.rewards, np.arange(1, episode.length + 1))
            assert np.isnan(file["reward"][start])
            assert np.isnan(file["action"][stop - 1]).all()


def test_stable_worldmodel_by_key_and_without_reward(tmp_path: Path) -> None:
    path = shutil.copy(FOREIGN / "stable_worldmodel.h5", tmp_path / "s.h5")
    with h5py.File(path, "r+") as file:
        for name in ("reward", "terminated", "truncated"):
            del file[name]
    episodes = read_both_ways(path, tmp_path, keys=("pixels",), terminals="boundary")
    assert isinstance(episodes[0].observations, np.ndarray)
    assert flags(episodes)[0] == (5, False, True, True)
    assert not episodes[0].rewards.any()


@pytest.mark.parametrize("offsets", [[0, 5, 10], [0, -6, 10], [0, 6, 2**40]])
def test_stable_worldmodel_with_bad_offsets(tmp_path: Path, offsets: list[int]) -> None:
    path = Path(shutil.copy(FOREIGN / "stable_worldmodel.h5", tmp_path / "s.h5"))
    with h5py.File(path, "r+") as file:
        file["ep_offset"][...] = offsets
    with pytest.raises(DatasetError, match=r"ep_offset|rows"):
        Dataset(path)


def d4rl(path: Path, **more: Any) -> Path:
    terminals = np.zeros(40, bool)
    terminals[[9, 29]] = True
    return hdf5(path, observations=OBS, actions=ACT, rewards=REW, terminals=terminals, **more)


def test_d4rl_with_timeouts(tmp_path: Path) -> None:
    timeouts = np.zeros(40, bool)
    timeouts[[19, 29]] = True
    episodes = read_both_ways(d4rl(tmp_path / "d.hdf5", timeouts=timeouts), tmp_path)
    # Without next_observations the last transition, and so the end, is incomplete.
    assert flags(episodes) == [(9, False, False, False)] * 4
    np.testing.assert_array_equal(episodes[1].observations, OBS[10:20])
    np.testing.assert_array_equal(episodes[1].rewards, REW[10:19])


def test_d4rl_with_next_observations(tmp_path: Path) -> None:
    timeouts = np.zeros(40, bool)
    timeouts[[19, 29]] = True
    following = np.concatenate([OBS[1:], OBS[:1]]) + 100
    path = d4rl(tmp_path / "d.hdf5", timeouts=timeouts, next_observations=following)
    episodes = read_both_ways(path, tmp_path)
    assert flags(episodes) == [
        (10, True, False, True),
        (10, False, True, True),
        (10, True, False, True),
        (10, False, False, False),
    ]
    np.testing.assert_array_equal(episodes[0].observations[-1], following[9])
    np.testing.assert_array_equal(episodes[2].actions, ACT[20:30])


def test_d4rl_without_timeouts_needs_an_option(tmp_path: Path) -> None:
    path = d4rl(tmp_path / "d.hdf5", next_observations=OBS)
    with pytest.raises(DatasetError, match=r"terminals='termination' or terminals='boundary'"):
        convert(path, tmp_path / "native.h5")
    assert not (tmp_path / "native.h5").exists()
    boundary = read_both_ways(path, tmp_path, terminals="boundary")
    assert flags(boundary)[0] == (10, False, True, True)
    (tmp_path / "native.h5").unlink()
    termination = read_both_ways(path, tmp_path, terminals="termination")
    assert flags(termination)[0] == (10, True, False, True)


def test_d4rl_with_columns_of_different_lengths(tmp_path: Path) -> None:
    path = d4rl(tmp_path / "d.hdf5", timeouts=np.zeros(39, bool))
    with pytest.raises(DatasetError, match="differ in length"):
        Dataset(path)


def ogbench(path: Path, ends: list[int]) -> Path:
    terminals = np.zeros(40, np.float32)
    terminals[ends] = 1
    np.savez(path, observations=OBS, actions=ACT, terminals=terminals)
    return path


def test_ogbench_terminals_are_boundaries(tmp_path: Path) -> None:
    episodes = read_both_ways(ogbench(tmp_path / "o.npz", [9, 39]), tmp_path)
    assert flags(episodes) == [(9, False, True, True), (29, False, True, True)]
    np.testing.assert_array_equal(episodes[1].observations, OBS[10:40])
    np.testing.assert_array_equal(episodes[1].actions, ACT[10:39])
    assert not episodes[1].rewards.any()


def test_ogbench_is_read_as_by_its_own_loader(tmp_path: Path) -> None:
    """`ogbench.utils.load_dataset` (1.2.2) keeps the rows that are not terminal."""
    path = ogbench(tmp_path / "o.npz", [9, 39])
    valid = np.load(path)["terminals"] == 0
    episodes = read_both_ways(path, tmp_path)
    np.testing.assert_array_equal(
        np.concatenate([e.observations[:-1] for e in episodes]), OBS[valid]
    )
    np.testing.assert_array_equal(
        np.concatenate([e.observations[1:] for e in episodes]),
        OBS[np.concatenate([[False], valid[:-1]])],
    )
    np.testing.assert_array_equal(np.concatenate([e.actions for e in episodes]), ACT[valid])


def test_ogbench_without_an_end_in_the_last_row(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="do not make complete trajectories"):
        Dataset(ogbench(tmp_path / "o.npz", [9]))


def robomimic(path: Path, dones: bool, following: bool) -> Path:
    arrays: dict[str, Any] = {}
    for n, length in ((0, 4), (10, 6), (2, 5)):
        base = f"data__demo_{n}__"
        arrays[base + "actions"] = ACT[:length]
        arrays[base + "rewards"] = REW[:length]
        arrays[base + "dones"] = (np.arange(length) == length - 1) & dones
        for key, rows in (("pos", OBS), ("img", (OBS[:, :, None, None] * 50).astype(np.uint8))):
            arrays[f"{base}obs__{key}"] = rows[:length]
            if following:
                arrays[f"{base}next_obs__{key}"] = rows[1 : length + 1]
    return hdf5(path, **arrays)


def test_robomimic(tmp_path: Path) -> None:
    path = robomimic(tmp_path / "r.hdf5", dones=True, following=True)
    with pytest.raises(DatasetError, match="dones depend on done_mode"):
        Dataset(path)
    episodes = read_both_ways(path, tmp_path, terminals="termination")
    assert [e.length for e in episodes] == [4, 5, 6]  # by number: 0, 2, 10
    assert all(e.terminated for e in episodes)
    np.testing.assert_array_equal(episodes[1].observations["pos"], OBS[:6])
    assert episodes[1].observations["img"].dtype == np.uint8
    (tmp_path / "native.h5").unlink()
    only = read_both_ways(path, tmp_path, terminals="boundary", keys=("pos",))
    assert set(only[0].observations) == {"pos"}
    assert all(e.truncated and not e.terminated for e in only)


def test_robomimic_without_next_observations(tmp_path: Path) -> None:
    path = robomimic(tmp_path / "r.hdf5", dones=False, following=False)
    episodes = read_both_ways(path, tmp_path)
    assert flags(episodes) == [(n, False, False, False) for n in (3, 4, 5)]
    with pytest.raises(DatasetError, match=r"no observations \['depth'\]"):
        Dataset(path, foreign=ForeignOptions(keys=("depth",)))


def test_ha_and_schmidhuber(tmp_path: Path) -> None:
    folder = tmp_path / "rollouts"
    folder.mkdir()
    frames = RNG.integers(0, 256, (9, 8, 8, 3), dtype=np.uint8)
    for name, length in (("123", 9), ("77", 5)):
        actions = ACT[:length].astype(np.float16)
        np.savez_compressed(folder / f"{name}.npz", obs=frames[:length], action=actions)
    episodes = read_both_ways(folder, tmp_path)
    assert flags(episodes) == [(8, False, False, False), (4, False, False, False)]
    np.testing.assert_array_equal(episodes[0].observations, frames)
    assert episodes[0].actions.dtype == np.float32
    with Dataset(folder, foreign=ForeignOptions(repeat_last=True)) as dataset:
        assert dataset.lengths.tolist() == [9, 5]
        np.testing.assert_array_equal(dataset.episode(1).observations[-1], frames[4])


def npz_episode(path: Path, rows: int, length: int, **more: Any) -> None:
    np.savez(path, observations=OBS[:rows], actions=ACT[:length], rewards=REW[:length], **more)


def test_a_folder_of_npz_episodes(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    npz_episode(folder / "ep_2.npz", 6, 5, terminated=True, truncated=False)
    npz_episode(folder / "ep_10.npz", 8, 7, terminated=np.zeros(7, bool), truncated=np.ones(7))
    npz_episode(folder / "ep_1.npz", 4, 4)
    episodes = read_both_ways(folder, tmp_path)
    assert flags(episodes) == [
        (3, False, False, False),
        (5, True, False, True),
        (7, False, True, True),
    ]
    with pytest.raises(DatasetError, match=r"single value; .* one of several episodes, give its"):
        Dataset(folder / "ep_2.npz")
    npz_episode(folder / "ep_3.npz", 6, 5, dones=np.ones(5))
    with pytest.raises(DatasetError, match=r"ep_3\.npz.*only 'dones'"):
        Dataset(folder)
    npz_episode(folder / "ep_3.npz", 9, 5)
    with pytest.raises(DatasetError, match=r"neither T nor T \+ 1"):
        Dataset(folder)


def test_npz_is_never_unpickled(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "hacked",))

    np.savez(
        tmp_path / "o.npz",
        observations=np.array([Bomb()], dtype=object),
        actions=ACT,
        terminals=ACT[:, 0],
    )
    with pytest.raises(DatasetError, match="observations: it cannot be read"):
        Dataset(tmp_path / "o.npz")
    assert not (tmp_path / "hacked").exists()


def test_npz_header_that_declares_a_terabyte(tmp_path: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f4", "fortran_order": False, "shape": (2**38,)}
    )
    np.savez(tmp_path / "o.npz", actions=ACT, terminals=ACT[:, 0])
    with zipfile.ZipFile(tmp_path / "o.npz", "a") as archive:
        archive.writestr("observations.npy", header.getvalue())
    with pytest.raises(DatasetError, match="observations"):
        Dataset(tmp_path / "o.npz")


def test_integer_actions_need_an_action_space(tmp_path: Path) -> None:
    path = tmp_path / "o.npz"
    ends = np.zeros(40)
    ends[-1] = 1
    np.savez(path, observations=OBS, actions=np.arange(40) % 3, terminals=ends)
    with pytest.raises(DatasetError, match="action_space=Discrete"):
        Dataset(path)
    episodes = read_both_ways(path, tmp_path, action_space=spaces.Discrete(3))
    assert episodes[0].actions.tolist() == (np.arange(39) % 3).tolist()


def test_bad_episodes_are_refused_or_skipped(tmp_path: Path) -> None:
    timeouts = np.arange(40) % 10 == 9
    path = d4rl(tmp_path / "d.hdf5", timeouts=timeouts)
    with h5py.File(path, "r+") as file:
        file["observations"][13, 1] = np.nan
    with pytest.raises(DatasetError, match=r"d\.hdf5: observation: episode 1, row 3: it holds NaN"):
        convert(path, tmp_path / "a.h5")
    assert not list(tmp_path.glob("a.h5*"))
    done = convert(path, tmp_path / "a.h5", on_bad="skip")
    assert done.episodes == 3
    assert len(done.skipped) == 1
    with Dataset(path, on_bad="skip") as dataset:
        assert dataset.num_episodes == 3
        assert "episode 1, row 3" in dataset.skipped[0]
    assert not check(path).ok
    with pytest.raises(DatasetError, match="episode 1"):
        Dataset(path)


def test_actions_outside_the_given_space(tmp_path: Path) -> None:
    path = d4rl(tmp_path / "d.hdf5", timeouts=np.arange(40) % 10 == 9)
    narrow = ForeignOptions(action_space=spaces.Box(-0.5, 0.5, (2,)))
    with pytest.raises(DatasetError, match=r"of 9 actions lie outside .*never clips silently"):
        Dataset(path, foreign=narrow)


def test_whole_episodes_that_exceed_the_memory_are_refused(tmp_path: Path) -> None:
    path = ogbench(tmp_path / "o.npz", [9, 39])
    with pytest.raises(DatasetError, match="dreamgym convert"):
        Dataset(path, memory=100)


def test_check_takes_whole_episodes_that_exceed_the_memory(tmp_path: Path, monkeypatch) -> None:
    path = ogbench(tmp_path / "o.npz", [9, 39])
    card = check(path)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    monkeypatch.setattr("dreamgym.data.checking._MEMORY", 100)
    changing = {"windows_per_second": 0, "created": ""}
    assert dataclasses.replace(check(path), **changing) == dataclasses.replace(card, **changing)
    assert not list(temporary.iterdir())


@pytest.mark.parametrize("following", [False, True])
@pytest.mark.parametrize("repeat", [False, True])
@pytest.mark.parametrize("keys", [False, True])
def test_d4rl_stays_in_its_file(tmp_path: Path, following: bool, repeat: bool, keys: bool) -> None:
    columns = {"observations": OBS, "next_observations": OBS + np.uint8(1)}
    if not following:
        del columns["next_observations"]
    if keys:
        columns = {f"{name}/{k}": v for name, v in columns.items() for k in "ab"}
    ends = np.isin(np.arange(40), [0, 9, 29])
    more = {"actions": ACT, "rewards": REW, "terminals": ends, "timeouts": ends & False}
    path = tmp_path / "d.hdf5"
    with h5py.File(path, "w") as file:
        for name, values in {**columns, **more}.items():
            file[name] = values
    options = ForeignOptions(repeat_last=repeat, allow_loss=True)
    with (
        Dataset(path, foreign=options) as held,
        Dataset(path, foreign=options, memory=0) as stays,
    ):
        assert held.in_memory
        assert not stays.in_memory
        assert held.checksum == stays.checksum
        assert len(held) == len(stays)
        for index in range(len(held)):
            assert_same_episode(held.episode(index), stays.episode(index))
        one, other = (d.segments(np.arange(len(d)), 4) for d in (held, stays))
        rows = np.arange(one.num_transitions)
        assert_same_batch(one.at(rows), other.at(rows))


PEAK = """
import resource, sys, warnings
from dreamgym.data import Dataset, DatasetError, check, checking
warnings.simplefilter("ignore")
checking._MEMORY = 16 << 20
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    check(sys.argv[1])
except DatasetError as error:
    print(error, file=sys.stderr)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no resource usage")
@pytest.mark.parametrize("kind", ["D4RL", "D4RL as npz", "OGBench", "robomimic"])
def test_a_small_file_of_large_contents_is_read_in_parts(tmp_path: Path, kind: str) -> None:
    """245 MB of black images, compressed to little."""
    count, shape = 20_000, (64, 64, 3)
    ends = np.arange(count) % 100 == 99
    path = tmp_path / ("x.npz" if kind in ("D4RL as npz", "OGBench") else "x.hdf5")
    actions = np.zeros((count, 2), np.float32)
    if path.suffix == ".npz":
        columns = {"actions": actions, "terminals": ends}
        columns |= {"rewards": ends * 1.0} if kind != "OGBench" else {}
        images = np.broadcast_to(np.zeros((), np.uint8), (count, *shape))
        np.savez_compressed(path, observations=images, **columns)
    else:
        with h5py.File(path, "w") as file:
            group = file
            demos = 200 if kind == "robomimic" else 1
            for demo in range(demos):
                if kind == "robomimic":
                    group = file.create_group(f"data/demo_{demo}")
                rows = count // demos
                name = "obs/image" if kind == "robomimic" else "observations"
                images = group.create_dataset(
                    name, (rows, *shape), np.uint8, chunks=(50, *shape), compression="gzip"
                )
                for first in range(0, rows, 100):
                    images[first : first + 100] = np.zeros((100, *shape), np.uint8)
                group["actions"], group["rewards"] = actions[:rows], np.zeros(rows)
                group["dones" if kind == "robomimic" else "terminals"] = ends[:rows]
                if kind != "robomimic":
                    group["timeouts"] = ends[:rows] & False
    assert path.stat().st_size < 4 << 20
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(path)], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 130, done.stderr


@pytest.mark.parametrize("kind", ["hdf5", "npz"])
def test_one_episode_that_unpacks_to_too_much_is_refused(
    tmp_path: Path, monkeypatch, kind: str
) -> None:
    images = np.zeros((41, 64, 64, 3), np.uint8)
    path = tmp_path / "d.hdf5"
    if kind == "npz":
        np.savez_compressed(tmp_path / "1.npz", observations=images, actions=ACT, rewards=REW)
        path = tmp_path
    else:
        with h5py.File(path, "w") as file:
            file.create_dataset("observations", data=images[:40], compression="gzip")
            file["actions"], file["rewards"] = ACT, REW
            file["terminals"] = file["timeouts"] = np.zeros(40, bool)
    check(path)
    for module in ("formats.interface", "hdf5.guard"):
        monkeypatch.setattr(f"dreamgym.data.{module}.MAX_UNPACKED", 100_000)
    with pytest.raises(DatasetError, match=r"it unpacks to \S+ bytes"):
        check(path)


def test_links_in_foreign_files_are_not_followed(tmp_path: Path) -> None:
    path = d4rl(tmp_path / "d.hdf5", timeouts=np.arange(40) % 10 == 9)
    with h5py.File(path, "r+") as file:
        del file["rewards"]
        file["rewards"] = h5py.ExternalLink("other.h5", "/x")
    with pytest.raises(DatasetError, match="/rewards: it is an external link"):
        Dataset(path)


@pytest.mark.parametrize("method", ["gzip", "zstd"])
def test_packing_keeps_every_bit(tmp_path: Path, method: Any) -> None:
    if method == "zstd":
        pytest.importorskip("hdf5plugin")
    source = record("CartPole-v1", steps=1500, out=tmp_path / "a.h5")
    packed = pack(source, tmp_path / "b.h5", level=9, method=method)
    assert packed.stat().st_size < source.stat().st_size
    with Dataset(source) as a, Dataset(packed) as b:
        assert a.checksum == b.checksum
        assert a.env_spec == b.env_spec
        for index in range(len(a)):
            assert_same_episode(a.episode(index), b.episode(index))
    assert check(packed).ok
    with pytest.raises(DatasetError, match="exists already"):
        pack(source, packed)
    with pytest.raises(ValueError, match="level"):
        pack(source, tmp_path / "c.h5", level=10)
    with pytest.raises(ValueError, match="method"):
        pack(source, tmp_path / "c.h5", method="zip")  # type: ignore[arg-type]
    (tmp_path / "d.h5").write_bytes(source.read_bytes()[:9000])
    with pytest.raises(DatasetError, match="truncated"):
        pack(tmp_path / "d.h5", tmp_path / "e.h5")
    assert not (tmp_path / "e.h5").exists()
    with pytest.raises(DatasetError, match="packed"):
        DatasetWriter.extend(packed)
    assert packed.exists()


def test_native_datasets_are_not_converted(tmp_path: Path) -> None:
    path = write_random(tmp_path / "a.h5", [4, 5])
    with pytest.raises(DatasetError, match="native dataset already"):
        convert(path, tmp_path / "b.h5")


@pytest.mark.parametrize("name", ["minari_vectors", "minari_jpeg", "stable_worldmodel.h5"])
def test_observations_beyond_the_memory_stay_in_the_file(tmp_path: Path, name: str) -> None:
    source = FOREIGN / name
    with Dataset(source) as held, Dataset(source, memory=0) as left:
        assert (held.in_memory, left.in_memory) == (True, False)
        assert held.checksum == left.checksum
        for index in range(len(held)):
            assert_same_episode(held.episode(index), left.episode(index))
        left.verify()
        for skip in (1, 2):
            a, b = (d.segments(np.arange(len(d)), 5, frame_skip=skip) for d in (held, left))
            every = np.arange(a.num_transitions)
            for x, y in zip(a.at(every), b.at(every), strict=True):
                for key in x if isinstance(x, dict) else [None]:
                    np.testing.assert_array_equal(*((x, y) if key is None else (x[key], y[key])))


@pytest.mark.parametrize("which", range(3))
def test_a_damaged_heap_does_not_hang(tmp_path: Path, which: int) -> None:
    """JPEG rows are in HDF5's global heap; an object of zeros there makes HDF5 loop forever."""
    shutil.copytree(FOREIGN / "minari_jpeg", tmp_path / "d")
    path = tmp_path / "d" / "main_data.hdf5"
    raw = bytearray(path.read_bytes())
    at = -1
    for _ in range(which + 1):
        at = raw.find(b"GCOL", at + 1)
    second = at + 16 + 16 + (int.from_bytes(raw[at + 24 : at + 32], "little") + 7) // 8 * 8
    raw[second : second + 16] = bytes(16)
    path.write_bytes(raw)
    with pytest.raises(DatasetError, match=r"global heap at byte .* is damaged"):
        Dataset(tmp_path / "d")


def make_samples(folder: Path) -> dict[str, Path]:
    """Make a small dataset of each format, by its name."""
    timeouts = np.arange(40) % 10 == 9
    from tests.data import test_logs, test_ros  # which import this module

    for name in ("rollouts", "mine"):
        (folder / name).mkdir()
    np.savez(folder / "rollouts" / "1.npz", obs=OBS, action=ACT)
    npz_episode(folder / "mine" / "1.npz", 6, 5)
    return {
        "Minari": FOREIGN / "minari_vectors",
        "robomimic": robomimic(folder / "r.hdf5", dones=False, following=True),
        "stable-worldmodel": FOREIGN / "stable_worldmodel.h5",
        "LeRobot": FOREIGN / "lerobot_image_v3",
        "d3rlpy": FOREIGN / "d3rlpy.h5",
        "Lance": FOREIGN / "worldmodel.lance",
        "D4RL": d4rl(folder / "d.hdf5", timeouts=timeouts),
        "OGBench": ogbench(folder / "o.npz", [39]),
        "Ha & Schmidhuber": folder / "rollouts",
        "npz episodes": folder / "mine",
        "ALOHA/ACT": test_logs.write_aloha(folder / "aloha", "raw"),
        "Zarr replay buffer": test_logs.write_zarr(folder / "z.zarr", 2),
        "Dreamer": test_logs.write_dreamer(folder / "dreamer", 2),
        "RLDS": FOREIGN / "rlds",
        "flat columns": hdf5(folder / "f.hdf5", state=OBS, control=ACT),
        "MCAP or ROS bag": test_ros.write_mcap(folder / "run.mcap", 0),
        "CSV or Parquet log": test_logs.write_csv(folder / "log.csv", test_logs.log_columns()),
    }


def test_exactly_one_format_detects_each_sample(tmp_path: Path) -> None:
    """So the order of the table does not matter for these."""
    samples = make_samples(tmp_path)
    assert set(samples) == {candidate.NAME for candidate in registry.FORMATS}
    for name, path in samples.items():
        with Probe(path) as probe:
            found = [candidate.NAME for candidate in registry.FORMATS if candidate.detect(probe)]
            assert found == [name]
            detected = detect_format(probe)
            assert detected is not None
            assert name == detected.NAME


def test_native_datasets_are_not_foreign(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    path = write_random(tmp_path / "shards" / "a.h5", [4, 5])
    for native in (path, path.parent):
        with Probe(native) as probe:
            assert detect_format(probe) is None
    with h5py.File(path, "r+") as file:  # damaged, but still native: the reader reports it
        del file.attrs["format"]
    with Probe(path) as probe:
        assert detect_format(probe) is None


def make_unknown(folder: Path) -> dict[str, Path]:
    """Make files and folders that are not datasets, by how the error must describe them."""
    for name in ("bags", "empty"):
        (folder / name).mkdir()
    for number in range(2):
        (folder / "bags" / f"{number}.xyz").write_bytes(b"xyz")
    (folder / "bags" / "meta").mkdir()
    np.savez(folder / "x.npz", images=OBS)
    return {
        r"a folder with 2 files \(2 of \.xyz\) and the folders \['meta'\]": folder / "bags",
        "an empty folder": folder / "empty",
        r"an HDF5 file with the keys \['x'\]": hdf5(folder / "x.hdf5", x=OBS),
        r"an npz archive with the arrays \['images'\]": folder / "x.npz",
    }


def test_unknown_formats_get_the_same_error_from_every_verb(tmp_path: Path) -> None:
    for found, path in make_unknown(tmp_path).items():
        expected = f"unknown format: it is {found}; .*native.*Minari.*npz episodes.*DatasetWriter"
        with pytest.raises(DatasetError, match=expected):
            Dataset(path)
        with pytest.raises(DatasetError, match=expected):
            check(path)
        with pytest.raises(DatasetError, match=expected):
            convert(path, tmp_path / "native.h5")
        assert not list(tmp_path.glob("native.h5*"))


PARTS = [
    ("lerobot_image_v3", "data"),
    ("lerobot_image_v3", "data/chunk-000/file-000.parquet"),
    ("lerobot_video_v3", "videos/observation.images.top/chunk-000/file-000.mp4"),
    ("lerobot_image_v21", "meta/info.json"),
    ("worldmodel.lance", "data"),
    ("minari_vectors", "metadata.json"),
    ("rlds", "features.json"),
]


@pytest.mark.parametrize(("name", "part"), PARTS, ids=lambda text: text.replace("/", "-"))
def test_a_part_of_a_dataset_names_the_whole(name: str, part: str) -> None:
    """A Parquet file of LeRobot alone would lack its cameras and tasks."""
    with pytest.raises(DatasetError, match=rf"it is a part of a .* dataset; give the .*{name}$"):
        check(FOREIGN / name / part)


def test_a_log_beside_a_dataset_is_not_a_part_of_it(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    from tests.data.test_logs import COLUMNS, log_columns, write_csv

    copy = Path(shutil.copytree(FOREIGN / "worldmodel.lance", tmp_path / "d"))
    path = write_csv(copy / "log.csv", log_columns())
    options = ForeignOptions(columns=COLUMNS, repeat_last=True)
    assert check(path, foreign=options).episodes == 4


def test_a_folder_of_datasets_names_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(FOREIGN / "minari_vectors", tmp_path / "cartpole" / "random-v0")
    monkeypatch.chdir(tmp_path / "cartpole")
    for path in (tmp_path / "cartpole", "."):
        with pytest.raises(
            DatasetError, match=r"'random-v0' is a Minari dataset; give .*random-v0"
        ):
            check(path)


class TextFolder:
    """A format with a container that no other format uses: a folder of text files."""

    NAME = "texts"

    def detect(self, probe: Probe) -> bool:
        return bool(probe.files("*.txt"))

    def read(self, probe: Probe, options: ForeignOptions) -> ForeignDataset:
        paths = probe.files("*.txt")

        def episodes() -> Iterator[Episode]:
            for path in paths:
                rows = np.loadtxt(path, delimiter=",", dtype=np.float32)
                yield make_episode(rows[:, :2], rows[:-1, 2:], None, (False, True), path)

        first = next(episodes())
        return ForeignDataset(
            format=self.NAME,
            convention="texts: one file per episode",
            metadata=make_metadata(
                options, first.observations, first.actions, probe.path, self.NAME
            ),
            episodes=episodes,
            close=probe.close,
        )


def test_a_new_format_may_have_any_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(3):
        np.savetxt(folder / f"{number}.txt", RNG.normal(size=(number + 3, 3)), delimiter=",")
    monkeypatch.setattr(registry, "FORMATS", (*registry.FORMATS, TextFolder()))
    episodes = read_both_ways(folder, tmp_path)
    assert [episode.length for episode in episodes] == [2, 3, 4]


def test_hdf5_after_a_user_block(tmp_path: Path) -> None:
    """MATLAB writes such files: the HDF5 signature is not at the start."""
    timeouts = np.arange(40) % 10 == 9
    plain = d4rl(tmp_path / "d.hdf5", timeouts=timeouts)
    with h5py.File(tmp_path / "block.hdf5", "w", userblock_size=512) as file:
        for name, values in (
            ("observations", OBS),
            ("actions", ACT),
            ("rewards", REW),
            ("terminals", np.isin(np.arange(40), [9, 29])),
            ("timeouts", timeouts),
        ):
            file[name] = values
    read_both_ways(tmp_path / "block.hdf5", tmp_path)
    with Dataset(plain) as a, Dataset(tmp_path / "block.hdf5") as b:
        assert a.checksum == b.checksum


def test_links_are_not_followed_while_detecting(tmp_path: Path) -> None:
    robomimic(tmp_path / "r.hdf5", dones=False, following=True)
    with h5py.File(tmp_path / "link.hdf5", "w") as file:
        file["data"] = h5py.ExternalLink("r.hdf5", "/data")
    with pytest.raises(DatasetError, match=r"unknown format.*\['data'\]"):
        Dataset(tmp_path / "link.hdf5")


def test_a_stray_npz_file_in_a_folder_of_episodes(tmp_path: Path) -> None:
    npz_episode(tmp_path / "ep_1.npz", 6, 5)
    np.savez(tmp_path / "ep_2.npz", statistics=OBS)
    with pytest.raises(DatasetError, match=r"ep_2\.npz: observations: episode 1: it is missing"):
        Dataset(tmp_path)


def test_rewards_that_do_not_match_the_actions(tmp_path: Path) -> None:
    np.savez(tmp_path / "ep_1.npz", observations=OBS[:6], actions=ACT[:5], rewards=REW[:7])
    message = r"ep_1\.npz: rewards: it has rewards of shape \(7,\) for 5 actions"
    with pytest.raises(DatasetError, match=message):
        Dataset(tmp_path)


def test_scalars_in_place_of_columns(tmp_path: Path) -> None:
    np.savez(tmp_path / "o.npz", observations=1.0, actions=ACT, terminals=ACT[:, 0])
    with pytest.raises(DatasetError, match="observations: it is a single value; expected rows"):
        Dataset(tmp_path / "o.npz")


def test_minari_without_observations(tmp_path: Path) -> None:
    shutil.copytree(FOREIGN / "minari_vectors", tmp_path / "m")
    with h5py.File(tmp_path / "m" / "main_data.hdf5", "r+") as file:
        del file["episode_1/observations"]
        file.create_group("episode_1/observations")
    with pytest.raises(DatasetError, match=r"/episode_1/observations: .*it has no observations"):
        Dataset(tmp_path / "m")


def test_robomimic_with_other_next_observations(tmp_path: Path) -> None:
    path = robomimic(tmp_path / "r.hdf5", dones=False, following=True)
    with h5py.File(path, "r+") as file:
        del file["data/demo_2/next_obs/pos"]
    with pytest.raises(
        DatasetError, match=r"/data/demo_2/next_obs: episode 1: it has the keys \['img'\]"
    ):
        Dataset(path)


def cut_npz(folder: Path, **columns: np.ndarray) -> Path:
    folder.mkdir()
    for number in range(3):
        np.savez(folder / f"{number}.npz", **columns)
    middle = folder / "1.npz"
    middle.write_bytes(middle.read_bytes()[:200])
    return folder


def short_robomimic(path: Path, name: str) -> Path:
    robomimic(path, dones=False, following=True)
    with h5py.File(path, "r+") as file:
        rows = file[f"data/demo_2/{name}"][:-2]
        del file[f"data/demo_2/{name}"]
        file[f"data/demo_2/{name}"] = rows
    return path


@pytest.mark.parametrize(
    "which", ["npz episodes", "Ha & Schmidhuber", "actions", "obs/img", "rewards"]
)
def test_an_episode_that_cannot_be_read_is_skipped(tmp_path: Path, which: str) -> None:
    if which == "npz episodes":
        path = cut_npz(tmp_path / "d", observations=OBS[:6], actions=ACT[:5], rewards=REW[:5])
    elif which == "Ha & Schmidhuber":
        path = cut_npz(tmp_path / "d", obs=OBS[:6], action=ACT[:6])
    else:
        path = short_robomimic(tmp_path / "r.hdf5", which)
    with pytest.raises(DatasetError, match="episode 1"):
        Dataset(path)
    done = convert(path, tmp_path / "native.h5", on_bad="skip")
    assert done.episodes == 2
    assert len(done.skipped) == 1
    with Dataset(path, on_bad="skip") as dataset:
        assert len(dataset) == 2
        assert "episode 1" in dataset.skipped[0]
    assert len(check(path).problems) == 1
