"""Formats of named columns: CSV and Parquet logs, ALOHA, Zarr replay buffers, Dreamer."""

from __future__ import annotations

import io
import json
import pickle
import re
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from gymnasium import spaces

from dreamgym.data import Dataset, DatasetError, ForeignOptions, check, convert
from tests.data.test_formats import flags, read_both_ways

RNG = np.random.default_rng(0)
T = 6
OBS = RNG.normal(size=(4 * T, 3)).astype(np.float32)
ACT = RNG.uniform(-1, 1, size=(4 * T, 2)).astype(np.float32)
REW = RNG.normal(size=4 * T).astype(np.float32)
ENDS = np.arange(4 * T) % T == T - 1
EPISODES = np.arange(4 * T) // T
IMAGES = RNG.integers(0, 256, (4 * T, 16, 24, 3), dtype=np.uint8)


def encode(image: np.ndarray, kind: str = "PNG") -> bytes:
    Image = pytest.importorskip("PIL.Image")
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format=kind)
    return buffer.getvalue()


# ---------------------------------------------------------------- CSV and Parquet

COLUMNS = {
    "observation": ("x", "y", "angle"),
    "action": ("left", "right"),
    "reward": "score",
    "terminated": "fell",
}


def log_columns(**more: Any) -> dict[str, Any]:
    names = ("x", "y", "angle", "left", "right", "score")
    values = np.concatenate([OBS, ACT, REW[:, None]], axis=1).T
    return dict(zip(names, values, strict=True)) | {"fell": ENDS.astype(int)} | more


def write_csv(path: Path, columns: dict[str, Any], delimiter: str = ",") -> Path:
    lines = [delimiter.join(columns)]
    for row in zip(*columns.values(), strict=True):
        lines.append(delimiter.join("" if v is None else str(v) for v in row))
    path.write_text("\n".join(lines) + "\n")
    return path


def write_parquet(path: Path, columns: dict[str, Any]) -> Path:
    pa = pytest.importorskip("pyarrow")
    table = {name: v.tolist() if hasattr(v, "tolist") else v for name, v in columns.items()}
    pytest.importorskip("pyarrow.parquet").write_table(pa.table(table), path)
    return path


@pytest.fixture(params=["csv", "tsv", "parquet"])
def write_log(request: pytest.FixtureRequest) -> Any:
    pytest.importorskip("pyarrow")
    if request.param == "parquet":
        return lambda path, columns: write_parquet(path.with_suffix(".parquet"), columns)
    delimiter = {"csv": ",", "tsv": "\t"}[request.param]
    return lambda path, columns: write_csv(
        path.with_suffix("." + request.param), columns, delimiter
    )


def check_log(episodes: list[Any]) -> None:
    assert flags(episodes) == [(T, True, False, True)] * 4
    for k, episode in enumerate(episodes):
        part = slice(k * T, (k + 1) * T)
        np.testing.assert_allclose(episode.observations[:-1], OBS[part], rtol=1e-6)
        assert episode.observations.dtype == np.float32
        np.testing.assert_allclose(episode.actions, ACT[part], rtol=1e-6)
        np.testing.assert_allclose(episode.rewards, REW[part], rtol=1e-6)


def test_a_log_whose_columns_the_user_names(write_log: Any, tmp_path: Path) -> None:
    path = write_log(tmp_path / "log", log_columns(time=np.arange(4 * T), run=EPISODES))
    with pytest.raises(DatasetError, match=r"not known which.*\['angle', 'fell'.*--columns"):
        Dataset(path)
    check_log(read_both_ways(path, tmp_path, columns=COLUMNS | {"time": "time"}, repeat_last=True))


def test_episodes_of_a_log_without_numbers(write_log: Any, tmp_path: Path) -> None:
    """They are told apart by the end flags, or by the files."""
    options = {"columns": COLUMNS, "repeat_last": True}
    check_log(read_both_ways(write_log(tmp_path / "log", log_columns()), tmp_path, **options))
    (tmp_path / "logs").mkdir()
    for k in range(4):
        part = slice(k * T, (k + 1) * T)
        columns = {name: values[part] for name, values in log_columns().items()}
        write_log(tmp_path / "logs" / f"run_{k}", columns)
    (tmp_path / "native.h5").unlink()
    check_log(read_both_ways(tmp_path / "logs", tmp_path, **options))


def test_usual_names_need_no_option(write_log: Any, tmp_path: Path) -> None:
    columns = {f"obs_{i}": OBS[:, i] for i in range(3)} | {"action": ACT[:, 0], "reward": REW}
    columns |= {"episode": EPISODES, "terminated": ENDS.astype(int)}
    episodes = read_both_ways(write_log(tmp_path / "log", columns), tmp_path, repeat_last=True)
    assert flags(episodes) == [(T, True, False, True)] * 4
    assert episodes[0].actions.shape == (T, 1)


def test_a_last_row_without_an_action_is_the_last_observation(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    left = [None if end else value for value, end in zip(ACT[:, 0], ENDS, strict=True)]
    columns = {"obs": OBS[:, 0], "action": left, "reward": REW, "done": ENDS.astype(int)}
    path = write_csv(tmp_path / "log.csv", columns)
    episodes = read_both_ways(path, tmp_path, terminals="termination")
    assert flags(episodes) == [(T - 1, True, False, True)] * 4
    np.testing.assert_allclose(episodes[1].observations[:, 0], OBS[T : 2 * T, 0], rtol=1e-6)


def test_rewards_and_actions_that_arrive(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    path = write_csv(tmp_path / "log.csv", log_columns())
    columns = {
        "observation": "x",
        "previous_action": "left",
        "previous_reward": "score",
        "terminated": "fell",
    }
    episodes = read_both_ways(path, tmp_path, columns=columns)
    assert flags(episodes) == [(T - 1, True, False, True)] * 4
    np.testing.assert_allclose(episodes[1].actions[:, 0], ACT[T + 1 : 2 * T, 0], rtol=1e-6)
    np.testing.assert_allclose(episodes[1].rewards, REW[T + 1 : 2 * T], rtol=1e-6)


def test_images_in_a_log_and_beside_it(write_log: Any, tmp_path: Path) -> None:
    (tmp_path / "frames").mkdir()
    names = [f"frames/{row}.png" for row in range(4 * T)]
    for name, image in zip(names, IMAGES, strict=True):
        (tmp_path / name).write_bytes(encode(image))
    path = write_log(tmp_path / "log", log_columns(camera=names))
    columns = COLUMNS | {"observation": ("camera", "x", "y")}
    episodes = read_both_ways(path, tmp_path, columns=columns, repeat_last=True)
    np.testing.assert_array_equal(episodes[1].observations["camera"][:-1], IMAGES[T : 2 * T])
    np.testing.assert_allclose(episodes[1].observations["vector"][:-1], OBS[T : 2 * T, :2], 1e-6)
    (tmp_path / names[7]).unlink()
    with pytest.raises(DatasetError, match=r"camera: .*row 1: there is no such file"):
        Dataset(path, foreign=ForeignOptions(columns=columns))
    with Dataset(path, foreign=ForeignOptions(columns=columns), on_bad="skip") as dataset:
        assert len(dataset) == 3
    outside = write_log(tmp_path / "bad", log_columns(camera=["../../etc/hostname.png"] * 24))
    with pytest.raises(DatasetError, match="is outside the dataset"):
        Dataset(outside, foreign=ForeignOptions(columns=columns))


def test_images_as_bytes_in_parquet(tmp_path: Path) -> None:
    data = [{"bytes": encode(image), "path": None} for image in IMAGES]
    path = write_parquet(tmp_path / "log.parquet", log_columns(camera=data))
    columns = {"observation": "camera", "action": "left", "done": "fell"}
    episodes = read_both_ways(
        path, tmp_path, columns=columns, terminals="boundary", repeat_last=True, ignore=("score",)
    )
    assert flags(episodes) == [(T, False, True, True)] * 4
    np.testing.assert_array_equal(episodes[3].observations[:-1], IMAGES[3 * T :])


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"observation": "z"}, r"no column 'z', only \['angle'"),
        ({"observation": "x", "action": "left", "reward": ("score", "x")}, "one reward column"),
        (
            {"observation": "x", "action": "left", "time": "score"},
            "score: .*it goes back; name the column that tells.*sort the log by it",
        ),
    ],
)
def test_wrong_columns(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    pytest.importorskip("pyarrow")
    path = write_csv(tmp_path / "log.csv", log_columns())
    with pytest.raises(DatasetError, match=message):
        Dataset(path, foreign=ForeignOptions(columns=columns))


def test_options_that_contradict() -> None:
    with pytest.raises(ValueError, match="named for \\['colour'\\]; expected some of observation"):
        ForeignOptions(columns={"colour": "x"})
    with pytest.raises(ValueError, match="both name observations"):
        ForeignOptions(columns={"observation": "x"}, keys=("y",))


def test_scattered_episodes_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    path = write_csv(tmp_path / "log.csv", log_columns(episode=np.arange(4 * T) % 2))
    with pytest.raises(DatasetError, match="rows of an episode are not together; sort the log"):
        Dataset(path, foreign=ForeignOptions(columns=COLUMNS))


USUAL = {f"obs_{i}": OBS[:, i] for i in range(3)} | {"action": ACT[:, 0], "reward": REW}
STEPS = np.arange(4 * T) % T


def notes_of(path: Path, **options: Any) -> str:
    return "\n".join(check(path, foreign=ForeignOptions(repeat_last=True, **options)).notes)


@pytest.mark.parametrize("name", ["t", "Time", "step"])
def test_a_time_that_restarts_shows_episodes(write_log: Any, tmp_path: Path, name: str) -> None:
    path = write_log(tmp_path / "log", {name: STEPS} | USUAL)
    with pytest.raises(
        DatasetError, match=rf"{name}: .*restarts 3 times.*episode=NAME\).*--columns time={name}"
    ):
        Dataset(path)
    episodes = read_both_ways(path, tmp_path, columns={"time": name}, repeat_last=True)
    assert flags(episodes) == [(T, False, False, False)] * 4
    np.testing.assert_allclose(episodes[2].observations[:-1], OBS[2 * T : 3 * T], rtol=1e-6)


def test_a_time_that_restarts_between_end_flags(write_flat: Any, tmp_path: Path) -> None:
    """The end of an episode that was truncated has no flag."""
    path = write_flat(x=OBS, u=ACT, t=STEPS, fell=ENDS & (EPISODES != 1))
    columns = {"observation": "x", "action": "u", "terminated": "fell"}
    with pytest.raises(DatasetError, match=r"t: .*restarts 1 time:"):
        Dataset(path, foreign=ForeignOptions(columns=columns))
    episodes = read_both_ways(path, tmp_path, columns=columns | {"time": "t"}, repeat_last=True)
    assert flags(episodes) == [(T, k != 1, False, k != 1) for k in range(4)]
    np.testing.assert_array_equal(episodes[1].actions, ACT[T : 2 * T])


def test_episodes_that_are_mixed_row_by_row(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    path = write_csv(tmp_path / "log.csv", {"t": np.sort(STEPS)} | USUAL)
    expected = "18 of 23 rows have the time of the row before; if rows of several episodes are mix"
    with pytest.raises(DatasetError, match=expected):
        Dataset(path, foreign=ForeignOptions(columns={"time": "t"}))
    assert expected in notes_of(path)
    apart = write_csv(tmp_path / "apart.csv", {"t": STEPS // 6, "episode": EPISODES} | USUAL)
    assert "rows have the time" not in notes_of(apart)


@pytest.mark.parametrize("named", [False, True])
def test_a_time_that_goes_back_within_an_episode(tmp_path: Path, named: bool) -> None:
    pytest.importorskip("pyarrow")
    time = STEPS.copy()
    time[T + 2 : T + 4] = time[T + 2 : T + 4][::-1]
    path = write_csv(tmp_path / "log.csv", {"time": time, "episode": EPISODES} | USUAL)
    if named:
        with pytest.raises(DatasetError, match="time: episode 1, row 3: it goes back; sort the"):
            Dataset(path, foreign=ForeignOptions(columns={"time": "time"}))
    else:
        assert "'time' goes back, first in episode 1, row 3; sort the log by it" in notes_of(path)


def test_samples_that_are_missing_are_noted(write_log: Any, tmp_path: Path) -> None:
    clock = 0.1 * np.arange(4 * T) + RNG.uniform(0, 0.02, 4 * T)
    columns = {"time": clock, "episode": EPISODES} | USUAL
    assert "uneven" not in notes_of(write_log(tmp_path / "log", columns))
    kept = np.arange(4 * T) % 7 != 3
    gaps = {name: values[kept] for name, values in columns.items()}
    assert "the steps of 'time' are uneven: 2 of 17" in notes_of(write_log(tmp_path / "gap", gaps))


def test_the_advice_for_a_log_of_one_episode(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    long = {name: np.tile(values, 4) for name, values in USUAL.items()}
    notes = notes_of(write_csv(tmp_path / "log.csv", long))
    assert "it holds 1 episode" in notes
    assert "--columns episode=NAME" in notes
    assert "--max-episode-steps" not in notes
    short = check(
        write_csv(tmp_path / "short.csv", USUAL), foreign=ForeignOptions(repeat_last=True)
    )
    assert any("--columns episode=NAME" in problem for problem in short.problems)


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_decimal_commas(tmp_path: Path, delimiter: str) -> None:
    pytest.importorskip("pyarrow")
    columns = {n: [str(v).replace(".", ",") for v in values] for n, values in USUAL.items()}
    path = write_csv(tmp_path / "log.csv", columns | {"episode": EPISODES}, delimiter)
    episodes = read_both_ways(path, tmp_path, repeat_last=True)
    np.testing.assert_allclose(episodes[3].observations[:-1], OBS[3 * T :], rtol=1e-6)
    np.testing.assert_allclose(episodes[3].rewards, REW[3 * T :], rtol=1e-6)


def test_columns_of_text_are_named(write_log: Any, tmp_path: Path) -> None:
    odd = [f"{value:.3f}" for value in REW]
    odd[2] = "open"
    columns = log_columns(mode=["auto"] * 4 * T, gain=odd)
    path = write_log(tmp_path / "log", columns)
    with pytest.raises(DatasetError, match=r"not known which.*; as text.*\['gain', 'mode'\]; name"):
        Dataset(path)
    with pytest.raises(DatasetError, match=r"gain: row 2: it holds text \('open'\); expected numb"):
        Dataset(path, foreign=ForeignOptions(columns=COLUMNS | {"reward": "gain"}))
    assert "columns that are not read: 'mode', 'gain';" in notes_of(path, columns=COLUMNS)
    usual = {"mode": columns["mode"], "t": np.arange(4 * T)} | USUAL
    assert "columns that are not read: 't', 'mode';" in notes_of(write_log(tmp_path / "u", usual))


def test_a_log_without_a_header(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    path = tmp_path / "log.csv"
    numbered = write_csv(path, {str(i): values for i, values in enumerate(USUAL.values())})
    columns = {"observation": ("0", "1"), "action": "3", "reward": "4"}
    with Dataset(numbered, foreign=ForeignOptions(columns=columns)) as dataset:  # as pandas writes
        assert dataset.num_steps == 4 * T - 1
    path.write_text(path.read_text().split("\n", 1)[1])
    with pytest.raises(DatasetError, match=r"first line is all numbers \(.*\): .*no header; write"):
        Dataset(path, foreign=ForeignOptions(columns=columns))


def test_nan_is_named_by_its_column(write_log: Any, tmp_path: Path) -> None:
    columns = {name: values.copy() for name, values in log_columns(run=EPISODES).items()}
    columns["y"][T + 2] = columns["right"][3 * T + 1] = np.nan
    path = write_log(tmp_path / "log", columns)
    options = ForeignOptions(columns=COLUMNS, repeat_last=True)
    problems = check(path, foreign=options).problems
    assert "y: episode 1, row 2: it holds NaN; " in problems[0]
    assert "right: episode 3, row 1: it holds NaN; " in problems[1]
    assert all("--skip-bad" in problem for problem in problems)
    done = convert(path, tmp_path / "native.h5", options=options, on_bad="skip")
    assert [reason.split(": ", 1)[1] for reason in done.skipped] == [
        "y: episode 1, row 2: it holds NaN",
        "right: episode 3, row 1: it holds NaN",
    ]


# ---------------------------------------------------------------- HDF5 and npz


@pytest.fixture(params=["hdf5", "npz"])
def write_flat(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    def write(**columns: Any) -> Path:
        path = tmp_path / f"flat.{request.param}"
        if request.param == "npz":
            np.savez(path, **columns)
            return path
        with h5py.File(path, "w") as file:
            for name, values in columns.items():
                file[name] = values
        return path

    return write


@pytest.mark.parametrize("how", ["numbers", "lengths", "ends", "flags"])
def test_flat_columns_whose_names_are_not_usual(write_flat: Any, tmp_path: Path, how: str) -> None:
    episodes = {"numbers": EPISODES, "lengths": np.full(4, T), "ends": np.arange(1, 5) * T}
    columns = {"x": OBS, "u": ACT, "score": REW, "fell": ENDS, "camera": IMAGES}
    named: dict[str, Any] = {"observation": "x", "action": "u", "reward": "score"}
    named["terminated"] = "fell"
    if how != "flags":
        columns["where"], named["episode"] = episodes[how], "where"
    path = write_flat(**columns)
    with pytest.raises(DatasetError, match=r"not known which.*'camera'.*--columns"):
        Dataset(path)
    check_log(read_both_ways(path, tmp_path, columns=named, repeat_last=True))
    both = ForeignOptions(columns=named | {"observation": ("x", "camera")}, repeat_last=True)
    with Dataset(path, foreign=both, memory=0) as dataset:
        np.testing.assert_array_equal(
            dataset.episode(2).observations["camera"][:-1], IMAGES[2 * T : 3 * T]
        )


def test_episodes_that_do_not_fit_the_rows(write_flat: Any) -> None:
    path = write_flat(x=OBS, u=ACT, where=np.array([5, 6]))
    columns = {"observation": "x", "action": "u", "episode": "where"}
    with pytest.raises(DatasetError, match="where: it has 2 values for 24 rows"):
        Dataset(path, foreign=ForeignOptions(columns=columns))


def test_columns_of_another_length_are_refused_by_name(write_flat: Any) -> None:
    path = write_flat(x=OBS, u=ACT, score=REW[:-1])
    columns = {"observation": "x", "action": "u", "reward": "score"}
    with pytest.raises(DatasetError, match="score: it has 23 rows; expected 24, as 'u' has"):
        Dataset(path, foreign=ForeignOptions(columns=columns))


def test_columns_in_groups(tmp_path: Path) -> None:
    path = tmp_path / "nested.h5"
    with h5py.File(path, "w") as file:
        file["robot/sensors/joints"], file["robot/torque"] = OBS, ACT
        file["robot/score"], file["meta/trial"], file["meta/fell"] = REW, EPISODES, ENDS
        file["meta/cycle"] = file["robot"]
        file["meta/elsewhere"] = h5py.SoftLink("/robot/torque")
    with pytest.raises(
        DatasetError, match=r"not known which.*\['meta/fell', 'meta/trial', 'robot/sc"
    ):
        Dataset(path)
    columns = {"observation": "joints", "action": "robot/torque", "reward": "score"}
    columns |= {"terminated": "fell", "episode": "meta/trial"}
    check_log(read_both_ways(path, tmp_path, columns=columns, repeat_last=True))


OWN = {"observation": "joints", "action": "torque", "reward": "gain", "terminated": "fell"}


def own_episodes(more: int = 0, **others: np.ndarray) -> list[dict[str, np.ndarray]]:
    """Return the arrays of each episode, with more observations than actions if wanted."""
    columns = {"torque": ACT, "gain": REW, "fell": ENDS, "name": np.array("x")} | others
    episodes = []
    for k in range(4):
        part = slice(k * T, (k + 1) * T)
        episodes.append({n: v[part] if v.ndim else v for n, v in columns.items()})
        episodes[-1]["joints"] = np.concatenate([OBS[part], OBS[:more]])
    return episodes


def write_own_files(folder: Path, episodes: list[dict[str, np.ndarray]] | None = None) -> Path:
    folder.mkdir()
    for k, arrays in enumerate(own_episodes() if episodes is None else episodes):
        np.savez(folder / f"ep_{k}.npz", **arrays)
    return folder


def write_own_groups(
    path: Path, episodes: list[dict[str, np.ndarray]] | None = None, prefix: str = ""
) -> Path:
    with h5py.File(path, "w") as file:
        file["about/rate"] = np.arange(3)
        for k, arrays in enumerate(own_episodes() if episodes is None else episodes):
            for name, values in arrays.items():
                text = values.dtype.kind == "U"
                file[f"{prefix}trial_{k}/{name}"] = str(values) if text else values
    return path


@pytest.fixture(params=["groups", "groups in a group", "npz files"])
def write_own(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    if request.param == "npz files":
        return lambda episodes: write_own_files(tmp_path / "own", episodes)
    prefix = "data/" if request.param == "groups in a group" else ""
    return lambda episodes: write_own_groups(tmp_path / "own.h5", episodes, prefix)


@pytest.mark.parametrize("more", [0, 1])
def test_episodes_of_columns_of_any_names(write_own: Any, tmp_path: Path, more: int) -> None:
    path = write_own(own_episodes(more))
    with pytest.raises(DatasetError, match=r"not known which.*'joints', .*'torque'.*--columns"):
        Dataset(path)
    episodes = read_both_ways(path, tmp_path, columns=OWN, repeat_last=True)
    check_log(episodes)
    assert (episodes[0].observations[-1] == OBS[0 if more else T - 1]).all()
    with Dataset(path, foreign=ForeignOptions(columns=OWN, repeat_last=True), memory=0) as left:
        np.testing.assert_array_equal(left.episode(3).observations, episodes[3].observations)


def test_episodes_of_columns_that_are_bad(write_own: Any) -> None:
    episodes = own_episodes(clock=STEPS)
    episodes[1]["joints"] = OBS[:5]
    del episodes[2]["gain"]
    episodes[3]["clock"] = np.arange(T)[::-1]
    path = write_own(episodes)
    options = ForeignOptions(columns=OWN | {"time": "clock"}, repeat_last=True)
    with pytest.raises(DatasetError, match="clock: episode 3, row 1: it goes back; sort"):
        Dataset(path, foreign=options)
    options = ForeignOptions(columns=OWN, repeat_last=True)
    with Dataset(path, foreign=options, on_bad="skip") as dataset:
        assert len(dataset) == 2
        assert re.search("_1.*joints: .*5 rows; expected 6, as 'torque' has", dataset.skipped[0])
        assert re.search("gain.*it is missing", dataset.skipped[1])


def test_groups_that_are_no_episodes(tmp_path: Path) -> None:
    """If a column is named by its whole path, `arm_0` and `arm_1` are two arms."""
    path = tmp_path / "arms.h5"
    with h5py.File(path, "w") as file:
        for arm in range(2):
            file[f"arm_{arm}/joints"], file[f"arm_{arm}/torque"] = OBS, ACT
    names = {
        "observation": ("arm_0/joints", "arm_1/joints"),
        "action": ("arm_0/torque", "arm_1/torque"),
    }
    with Dataset(path, foreign=ForeignOptions(columns=names)) as dataset:
        assert dataset.action_space.shape == (4,)
        assert len(dataset) == 1


def test_an_array_that_declares_more_rows_than_there_are(tmp_path: Path) -> None:
    path = tmp_path / "own.h5"
    with h5py.File(path, "w") as file:
        for k, arrays in enumerate(own_episodes()):
            for name in ("joints", "torque"):
                file[f"trial_{k}/{name}"] = arrays[name]
        for name in ("joints", "torque"):
            del file[f"trial_2/{name}"]
            file.create_dataset(f"trial_2/{name}", (10**12, 3), "f4", chunks=(1024, 3))
    options = ForeignOptions(columns={"observation": "joints", "action": "torque"})
    with Dataset(path, foreign=options, on_bad="skip") as dataset:
        assert len(dataset) == 3
        assert "stores only 0 bytes" in dataset.skipped[0]


# ---------------------------------------------------------------- ALOHA


def write_aloha(folder: Path, kind: str) -> Path:
    folder.mkdir()
    for k in range(4):
        part = slice(k * T, (k + 1) * T)
        with h5py.File(folder / f"episode_{k}.hdf5", "w") as file:
            file.attrs["sim"] = True
            file["action"] = ACT[part]
            file["observations/qpos"], file["observations/qvel"] = OBS[part], OBS[part] * 2
            place = "observations/images/top"
            if kind == "raw":
                file[place] = IMAGES[part]
                continue
            rows = [np.frombuffer(encode(image), np.uint8) for image in IMAGES[part]]
            if kind == "padded":  # as compress_data.py of ACT writes
                longest = max(map(len, rows))
                file[place] = np.stack([np.pad(row, (0, longest - len(row))) for row in rows])
                file.attrs["compress"] = True
            else:
                made = file.create_dataset(place, (T,), h5py.vlen_dtype(np.uint8))
                for t, row in enumerate(rows):
                    made[t] = row
    return folder


@pytest.mark.parametrize("kind", ["raw", "padded", "variable"])
def test_aloha(tmp_path: Path, kind: str) -> None:
    folder = write_aloha(tmp_path / "d", kind)
    episodes = read_both_ways(folder, tmp_path)
    assert flags(episodes) == [(T - 1, False, False, False)] * 4
    for k, episode in enumerate(episodes):
        part = slice(k * T, (k + 1) * T)
        seen = episode.observations
        assert set(seen) == {"images/top", "qpos", "qvel"}
        np.testing.assert_array_equal(seen["images/top"], IMAGES[part])
        np.testing.assert_array_equal(seen["qpos"], OBS[part])
        np.testing.assert_array_equal(episode.actions, ACT[part][:-1])
    single = ForeignOptions(keys=("top",), terminals="boundary", repeat_last=True)
    with Dataset(folder / "episode_2.hdf5", foreign=single) as dataset:
        assert flags([dataset.episode(0)]) == [(T, False, True, True)]
        assert dataset.observation_space == spaces.Box(0, 255, (16, 24, 3), np.uint8)


def test_a_cut_aloha_file_is_skipped(tmp_path: Path) -> None:
    folder = write_aloha(tmp_path / "d", "raw")
    cut = folder / "episode_1.hdf5"
    cut.write_bytes(cut.read_bytes()[:4000])
    with pytest.raises(DatasetError, match=r"episode_1\.hdf5"):
        Dataset(folder)
    with Dataset(folder, on_bad="skip") as dataset:
        assert len(dataset) == 3
        assert "episode_1.hdf5" in dataset.skipped[0]


# ---------------------------------------------------------------- Zarr


def write_zarr(path: Path, version: int, **arrays: Any) -> Path:
    zarr = pytest.importorskip("zarr")
    store: Any = str(path)
    if path.suffix == ".zip":
        store = zarr.storage.ZipStore(str(path), mode="w")
    root = zarr.open_group(store, mode="w", zarr_format=version)
    data, meta = root.create_group("data"), root.create_group("meta")
    arrays = {"img": IMAGES.astype(np.float32), "state": OBS, "action": ACT} | arrays
    for name, values in arrays.items():
        data.create_array(name, data=values, chunks=(5, *values.shape[1:]))
    meta.create_array("episode_ends", data=np.array([T, 3 * T, 4 * T]))
    if path.suffix == ".zip":
        store.close()
    return path


@pytest.mark.parametrize("name", ["d.zarr", "d.zarr.zip"])
@pytest.mark.parametrize("version", [2, 3])
def test_zarr(tmp_path: Path, name: str, version: int) -> None:
    """PushT's buffer holds its images as floats."""
    path = write_zarr(tmp_path / name, version)
    episodes = read_both_ways(path, tmp_path, repeat_last=True, terminals="boundary")
    assert flags(episodes) == [(n, False, True, True) for n in (T, 2 * T, T)]
    seen = episodes[1].observations
    assert set(seen) == {"img", "state"}
    assert seen["img"].dtype == np.uint8
    np.testing.assert_array_equal(seen["img"][:-1], IMAGES[T : 3 * T])
    np.testing.assert_array_equal(episodes[1].actions, ACT[T : 3 * T])


def test_zarr_that_declares_what_is_not_there(tmp_path: Path) -> None:
    path = write_zarr(tmp_path / "d.zarr", 2)
    shape = path / "data" / "img" / ".zarray"
    shape.write_text(shape.read_text().replace("24,\n", "24000000,\n", 1))
    with pytest.raises(DatasetError, match="img"):
        Dataset(path)


@pytest.mark.parametrize("place", ["compressor", "filters"])
def test_zarr_with_a_codec_that_unpickles(tmp_path: Path, place: str) -> None:
    path = write_zarr(tmp_path / "d.zarr", 2)
    file = path / "data" / "state" / ".zarray"
    codec: Any = {"id": "pickle", "protocol": 5}
    changed = json.loads(file.read_text()) | {place: codec if place == "compressor" else [codec]}
    file.write_text(json.dumps(changed))
    (path / "data" / "state" / "0.0").write_bytes(pickle.dumps(Bomb(tmp_path / "hacked")))
    with pytest.raises(DatasetError, match="pickle"):
        Dataset(path)
    assert not (tmp_path / "hacked").exists()


class Bomb:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


# ---------------------------------------------------------------- Dreamer


def write_dreamer(
    folder: Path, version: int, *, discrete: bool = False, **more: np.ndarray
) -> Path:
    """Write episodes of T rows; in version 3 they are in chunks of 2 T rows."""
    folder.mkdir()
    actions = np.eye(3, dtype=np.float32)[RNG.integers(0, 3, 4 * T)] if discrete else ACT.copy()
    actions[np.roll(ENDS, 1) if version == 2 else ENDS] = 0
    columns = {
        "image": IMAGES,
        "action": actions,
        "reward": np.where(np.roll(ENDS, 1), 0, REW),
        "is_first": np.roll(ENDS, 1),
        "is_last": ENDS,
        "is_terminal": ENDS & (EPISODES != 1),
        "discount": np.ones(4 * T, np.float32),
    } | more
    rows = T if version == 2 else 2 * T
    for k in range(4 * T // rows):
        part = slice(k * rows, (k + 1) * rows)
        np.savez(folder / f"2026{k}-{rows}.npz", **{n: v[part] for n, v in columns.items()})
    return folder


@pytest.mark.parametrize("version", [2, 3])
def test_dreamer(tmp_path: Path, version: int) -> None:
    folder = write_dreamer(tmp_path / "d", version)
    episodes = read_both_ways(folder, tmp_path)
    ended = (T - 1, True, False, True)
    assert flags(episodes) == [ended, (T - 1, False, True, True), ended, ended]
    for k, episode in enumerate(episodes):
        part = slice(k * T, (k + 1) * T)
        np.testing.assert_array_equal(episode.observations, IMAGES[part])
        np.testing.assert_array_equal(episode.rewards, REW[part][1:])
        shift = ACT[part][1:] if version == 2 else ACT[part][:-1]
        np.testing.assert_array_equal(episode.actions, shift)


def test_dreamer_one_hot_actions(tmp_path: Path) -> None:
    folder = write_dreamer(tmp_path / "d", 2, discrete=True)
    episodes = read_both_ways(folder, tmp_path, action_space=spaces.Discrete(3))
    assert episodes[0].actions.dtype == np.int64
    assert set(np.concatenate([e.actions for e in episodes])) == {0, 1, 2}


def test_dreamer_actions_that_may_belong_to_either_row(tmp_path: Path) -> None:
    folder = write_dreamer(tmp_path / "d", 2)
    for path in folder.glob("*.npz"):
        arrays = dict(np.load(path))
        np.savez(path, **(arrays | {"action": np.ones_like(arrays["action"])}))
    with pytest.raises(DatasetError, match="--columns previous_action=action or"):
        check(folder)
    assert (
        check(folder, foreign=ForeignOptions(columns={"previous_action": "action"})).episodes == 4
    )


def test_columns_that_are_not_read_are_named(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "log.csv", log_columns(trial=EPISODES))
    some = ForeignOptions(columns={"observation": ("x", "y"), "action": "left", "reward": "score"})
    (note,) = (note for note in check(path, foreign=some).notes if "not read" in note)
    assert "'angle', 'right', 'fell', 'trial'" in note
    every = ForeignOptions(columns=COLUMNS | {"episode": "trial"})
    assert not any("not read" in note for note in check(path, foreign=every).notes)
