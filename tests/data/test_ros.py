"""MCAP files and ROS bags, written by the mcap and rosbags libraries."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dreamgym.data import Dataset, DatasetError, ForeignOptions, check
from tests.data.test_formats import flags, read_both_ways
from tests.data.test_logs import IMAGES, OBS, encode

pytest.importorskip("mcap")
pytest.importorskip("rosbags")
T = 6
SECOND = 10**9
KINDS = ("mcap", "mcap of ROS 2", "bag 1", "bag 2")

JOINTS, COMMAND = "/joint_states", "/cmd_vel"
CAMERA, RAW, SCORE = "/camera", "/raw", "/score"


def level(number: int, t: int) -> float:
    return 10.0 * number + t


def timeline(number: int) -> list[tuple[int, str, Any]]:
    """Return the messages of a recording: commands follow the joints by a tenth of a second."""
    found: list[tuple[int, str, Any]] = []
    for t in range(T):
        time = (10 + t) * SECOND
        row = number * T + t
        found.append((time - SECOND // 10, CAMERA, encode(IMAGES[row])))
        found.append((time - SECOND // 20, RAW, IMAGES[row]))
        found.append((time, JOINTS, OBS[row]))
        found.append((time + SECOND // 10, COMMAND, (level(number, t), -1.0)))
        found += [(time + k * SECOND // 5, SCORE, 0.5) for k in (2, 3)]
    return found


def write_mcap(path: Path, number: int) -> Path:
    from mcap.writer import Writer

    with path.open("wb") as file:
        writer = Writer(file)
        writer.start()
        channels = {}
        for topic, schema in (
            (JOINTS, "Joints"), (COMMAND, "Twist"), (CAMERA, "foxglove.CompressedImage"),
            (RAW, "foxglove.RawImage"), (SCORE, "Score"),
        ):  # fmt: skip
            kind = writer.register_schema(schema, "jsonschema", b"{}")
            channels[topic] = writer.register_channel(topic, "json", kind)
        for time, topic, value in timeline(number):
            message: Any = {"position": np.ravel(value).tolist()} if topic == JOINTS else {}
            if topic == COMMAND:
                message = {"linear": {"x": value[0]}, "angular": {"z": value[1]}}
            elif topic == CAMERA:
                message = {"data": base64.b64encode(value).decode(), "format": "png"}
            elif topic == RAW:
                message = {"height": 16, "width": 24, "step": 72, "encoding": "rgb8"}
                message["data"] = base64.b64encode(value.tobytes()).decode()
            elif topic == SCORE:
                message = {"data": value}
            data = json.dumps(message).encode()
            writer.add_message(channels[topic], time, data, time)
        writer.finish()
    return path


def write_bag(path: Path, number: int, kind: str) -> Path:
    from rosbags.rosbag1 import Writer as Writer1
    from rosbags.rosbag2 import StoragePlugin
    from rosbags.rosbag2 import Writer as Writer2
    from rosbags.typesys import Stores, get_typestore

    old = kind == "bag 1"
    store = get_typestore(Stores.ROS1_NOETIC if old else Stores.ROS2_HUMBLE)
    types = store.types

    def header() -> Any:
        stamp = types["builtin_interfaces/msg/Time"](sec=1, nanosec=2)
        more = {"seq": 0} if old else {}
        return types["std_msgs/msg/Header"](stamp=stamp, frame_id="f", **more)

    def make(topic: str, value: Any) -> tuple[str, Any]:
        none = np.empty(0)
        vector = types["geometry_msgs/msg/Vector3"]
        if topic == JOINTS:
            name = "sensor_msgs/msg/JointState"
            joints = value.astype(np.float64)
            return name, types[name](header(), ["a", "b", "c"], joints, none, none)
        if topic == COMMAND:
            name = "geometry_msgs/msg/Twist"
            return name, types[name](vector(value[0], 0, 0), vector(0, 0, value[1]))
        if topic == CAMERA:
            name = "sensor_msgs/msg/CompressedImage"
            return name, types[name](header(), "png", np.frombuffer(value, np.uint8))
        if topic == RAW:
            name = "sensor_msgs/msg/Image"
            flipped = np.ascontiguousarray(value[:, :, ::-1]).reshape(-1)
            return name, types[name](header(), 16, 24, "bgr8", 0, 72, flipped)
        return "std_msgs/msg/Float64", types["std_msgs/msg/Float64"](value)

    if old:
        writer: Any = Writer1(path)
    else:
        plugin = StoragePlugin.MCAP if kind == "mcap of ROS 2" else StoragePlugin.SQLITE3
        writer = Writer2(path, version=9, storage_plugin=plugin)
    with writer:
        connections: dict[str, Any] = {}
        for time, topic, value in timeline(number):
            name, message = make(topic, value)
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, name, typestore=store)
            serialize = store.serialize_ros1 if old else store.serialize_cdr
            writer.write(connections[topic], time, serialize(message, name))
    return path


@pytest.fixture(params=KINDS)
def recordings(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Write a folder of two recordings."""
    folder = tmp_path / "runs"
    folder.mkdir()
    for number in range(2):
        if request.param == "mcap":
            write_mcap(folder / f"run_{number}.mcap", number)
        elif request.param == "bag 1":
            write_bag(folder / f"run_{number}.bag", number, request.param)
        else:
            write_bag(folder / f"run_{number}", number, request.param)
    if request.param == "mcap of ROS 2":  # the file alone, as it is often copied
        for path in list(folder.glob("*/*.mcap")):
            path.rename(folder / f"{path.parent.name}.mcap")
    return folder


COLUMNS = {
    "observation": (f"{JOINTS}.position", CAMERA, RAW),
    "action": (f"{COMMAND}.linear.x", f"{COMMAND}.angular.z"),
    "reward": f"{SCORE}.data",
}


def test_topics_are_aligned_to_the_clock(recordings: Path, tmp_path: Path) -> None:
    episodes = read_both_ways(recordings, tmp_path, columns=COLUMNS, terminals="boundary")
    assert flags(episodes) == [(T - 1, False, True, True)] * 2
    for number, episode in enumerate(episodes):
        part = slice(number * T, (number + 1) * T)
        seen = episode.observations
        np.testing.assert_allclose(seen[f"{JOINTS}.position"], OBS[part], rtol=1e-6)
        np.testing.assert_array_equal(seen[CAMERA], IMAGES[part])
        np.testing.assert_array_equal(seen[RAW], IMAGES[part])
        expected = [[level(number, t), -1] for t in range(T - 1)]
        np.testing.assert_array_equal(episode.actions, expected)
        np.testing.assert_array_equal(episode.rewards, np.ones(T - 1))


def test_another_clock(recordings: Path) -> None:
    """At the commands, an action is the command of that time, and the joints are a tenth old."""
    columns = COLUMNS | {"time": COMMAND, "observation": f"{JOINTS}.position"}
    named = ForeignOptions(columns=columns)
    with Dataset(recordings, foreign=named) as dataset:
        episode = dataset.episode(1)
        np.testing.assert_array_equal(episode.actions[:, 0], [level(1, t) for t in range(T - 1)])
        np.testing.assert_allclose(episode.observations, OBS[T : 2 * T], rtol=1e-6)


def test_topics_must_be_named(recordings: Path) -> None:
    with pytest.raises(
        DatasetError, match=r"topics are not named; it has \['/camera \(.*--columns"
    ):
        check(recordings)
    columns = COLUMNS | {"action": "/nothing"}
    with pytest.raises(DatasetError, match=r"no topic for \['/nothing'\]"):
        check(recordings, foreign=ForeignOptions(columns=columns))
    columns = COLUMNS | {"action": f"{COMMAND}.linear.w"}
    with pytest.raises(DatasetError, match="have no field 'w'"):
        Dataset(recordings, foreign=ForeignOptions(columns=columns))


def test_a_wrong_field_lists_those_there_are(recordings: Path) -> None:
    columns = {"observation": f"{JOINTS}.pos", "action": f"{COMMAND}.linear.x"}
    with pytest.raises(DatasetError, match=r"no field 'pos'; they have \[.*'position'"):
        Dataset(recordings, foreign=ForeignOptions(columns=columns))


def test_a_topic_that_may_hold_rewards_is_not_lost(recordings: Path) -> None:
    columns = {"observation": f"{JOINTS}.position", "action": COMMAND}
    with Dataset(recordings, foreign=ForeignOptions(columns=columns)) as dataset:
        assert dataset.action_space.shape[0] in (2, 6)  # all numbers of the message
        assert not dataset.returns.any()


def test_a_cut_recording_is_skipped(recordings: Path) -> None:
    path = sorted(recordings.glob("run_1*"))[-1]
    if path.is_dir():
        (path,) = path.glob("*.db3")
    path.write_bytes(path.read_bytes()[:3000])
    with Dataset(recordings, foreign=ForeignOptions(columns=COLUMNS), on_bad="skip") as dataset:
        assert len(dataset) == 1
        assert "run_1" in dataset.skipped[0]


def test_protobuf_messages(tmp_path: Path) -> None:
    writer = pytest.importorskip("mcap_protobuf.writer")
    from google.protobuf.struct_pb2 import ListValue
    from google.protobuf.wrappers_pb2 import DoubleValue

    with (tmp_path / "run.mcap").open("wb") as file, writer.Writer(file) as made:
        for t in range(T):
            seen = ListValue()
            seen.extend([float(t), 2.0])
            made.write_message("/seen", seen, log_time=t * SECOND, publish_time=t * SECOND)
            made.write_message("/taken", DoubleValue(value=t / 10), log_time=t * SECOND + 1)
    columns = {"observation": "/seen.values", "action": "/taken.value"}
    named = ForeignOptions(columns=columns, terminals="boundary")
    with Dataset(tmp_path / "run.mcap", foreign=named) as dataset:
        episode = dataset.episode(0)
        np.testing.assert_allclose(episode.actions[:, 0], np.arange(T - 1) / 10)


def test_names_of_message_types_are_not_executed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """rosbags makes Python code of message types, of names that its grammar allows."""
    from rosbags.rosbag1 import Writer

    monkeypatch.chdir(tmp_path)
    odd = "a/msg/B:\n    pass\nopen('hacked', 'w').close()\nclass C"
    with Writer(tmp_path / "run.bag") as writer:
        connection = writer.add_connection("/t", odd, msgdef="float64 data\n", md5sum="0" * 32)
        writer.write(connection, 1, bytes(8))
    with pytest.raises(DatasetError, match="Could not parse"):
        check(tmp_path / "run.bag", foreign=ForeignOptions(columns=COLUMNS))
    assert not (tmp_path / "hacked").exists()
