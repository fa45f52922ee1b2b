"""MCAP and ROS bags of versions 1 and 2: one recording per episode; the user names the topics.

A column is a topic and the path of a field: `/joint_states.position`, `/cmd_vel.linear.x`; of a
topic alone, all of its numbers, or its image. The messages of one topic, the clock, give the rows:
that of the first observation, or the one that is named for `time`. At each of these times

- an observation is the last message so far;
- an action is the first message from then on, before the next row, else the last one so far;
- a reward is the sum, and an end flag the last, of the messages until the next row.

Rows begin when there is a message for every observation. The last row is the last observation.
"""

from __future__ import annotations

import base64
import functools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dreamgym._extras import import_extra
from dreamgym.data.formats.columnar import END_ROLES, UNREADABLE, Table, open_table
from dreamgym.data.formats.common import sort_by_number
from dreamgym.data.formats.image_files import with_channels
from dreamgym.data.formats.interface import (
    Array,
    ForeignDataset,
    ForeignOptions,
    Probe,
    reading_errors,
)
from dreamgym.data.hdf5.guard import open_regular, require_files
from dreamgym.data.image_decoding import MAX_PIXELS, decode_image
from dreamgym.errors import DatasetError

NAME = "MCAP or ROS bag"
_STARTS = (b"\x89MCAP0\r\n", b"#ROSBAG V2.0")
_PATTERNS = ("*.mcap", "*.bag")
_BAG_2 = "metadata.yaml"
_USER = "reading MCAP files and ROS bags"
# Channels of the encodings of sensor_msgs/Image that are read, and their order.
_ENCODINGS = {
    "rgb8": [0, 1, 2],
    "bgr8": [2, 1, 0],
    "rgba8": [0, 1, 2],
    "bgra8": [2, 1, 0],
    "mono8": [0],
    "8UC1": [0],
    "8UC3": [0, 1, 2],
}
_NOT_NUMBERS = frozenset({"header", "stamp"})


def detect(probe: Probe) -> bool:
    """Return whether it is an MCAP file or a bag, or a folder of them."""
    return bool(_recordings(probe))


def read(probe: Probe, options: ForeignOptions) -> ForeignDataset:
    """Open the recordings.

    Raises:
        DatasetError: the topics are not named, do not exist, or their messages cannot be read.
        ModuleNotFoundError: mcap or rosbags is not installed.
    """
    paths = _recordings(probe)
    topics = _first_topics(paths)
    roles = {role: options.columns_for(role) for role in options.columns}
    roles["observation"] = options.keys or ()
    named = [name for role, names in roles.items() if role != "time" for name in names]
    unknown = [name for name in named if _topic_of(name, topics) is None]
    if unknown or not (roles["observation"] and set(roles) & {"action", "previous_action"}):
        what = f"it has no topic for {unknown}" if unknown else "its topics are not named"
        listed = [f"{name} ({kind})" for name, kind in sorted(topics.items())]
        raise DatasetError(
            f"{what}; it has {listed}",
            path=probe.path,
            remedy="name topics and fields: --columns 'observation=/camera,/joint_states.position "
            "action=/cmd_vel.linear.x', in Python ForeignOptions(columns={'observation': "
            "('/camera', '/joint_states.position'), 'action': '/cmd_vel.linear.x'})",
        )
    clock = (*roles.get("time", ()), roles["observation"][0])[0]
    plan = _Plan(topics=topics, roles=roles, clock=str(_topic_of(clock, topics) or clock))
    load = functools.lru_cache(maxsize=2)(lambda number: _Rows(paths[number], plan))
    lengths = []
    for number in range(len(paths)):
        try:
            lengths.append(load(number).count)
        except DatasetError:
            lengths.append(UNREADABLE)
    table = Table(
        handles=("time",),
        path=probe.path,
        format=NAME,
        text=f"{len(paths)} recordings, one row per message of {plan.clock}",
        names=[*topics, *(name for name in named if name not in topics)],
        lengths=lengths,
        read=lambda number, name, part: load(number).read(name, part),
        last_is_observation=True,
    )
    return open_table(table, options, probe.close)


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """What to read.

    Attributes:
        topics: message types by topic.
        roles: columns by role.
        clock: topic whose messages give the rows.
    """

    topics: dict[str, str]
    roles: dict[str, tuple[str, ...]]
    clock: str

    def columns(self) -> dict[str, str]:
        """Return the topic of each column."""
        names = (n for role, names in self.roles.items() if role != "time" for n in names)
        return {name: str(_topic_of(name, self.topics)) for name in names}

    def role_of(self, column: str) -> str:
        """Return the role of a column."""
        return next(role for role, names in self.roles.items() if column in names)


class _Rows:
    """The rows of one recording.

    Args:
        path: the recording.
        plan: what to read.

    Raises:
        DatasetError: a topic has no messages, or the recording is damaged.
    """

    def __init__(self, path: Path, plan: _Plan) -> None:
        self._path, self._plan = path, plan
        columns = plan.columns()
        self._times: dict[str, list[int]] = {topic: [] for topic in {*columns.values(), plan.clock}}
        self._messages: dict[str, list[Callable[[], Any]]] = {topic: [] for topic in self._times}
        with reading_errors(path):
            for topic, time, decode in _messages(path, set(self._times)):
                self._times[topic].append(time)
                self._messages[topic].append(decode)
        empty = [topic for topic, times in self._times.items() if not times]
        if empty:
            raise DatasetError(f"it has no messages of the topics {empty}", path=path)
        begin = max(self._times[columns[name]][0] for name in plan.roles["observation"])
        clock = np.array(self._times[plan.clock], np.int64)
        self._clock = clock[clock >= begin]
        self.count = len(self._clock)

    def read(self, column: str, part: slice) -> Array:
        """Return rows of a column, see `Table.read`."""
        topic = self._plan.columns()[column]
        role, times = self._plan.role_of(column), np.array(self._times[topic], np.int64)
        rows, ends = self._clock[part], np.append(self._clock, np.iinfo(np.int64).max)[1:][part]
        if role in ("reward", "previous_reward", *END_ROLES):
            first, last = (
                np.searchsorted(times, rows, "right"),
                np.searchsorted(times, ends, "right"),
            )
            values = [
                [float(np.ravel(self._value(topic, column, k))[0]) for k in range(int(a), int(b))]
                for a, b in zip(first, last, strict=True)
            ]
            if role in END_ROLES:
                return np.array([each[-1] if each else 0.0 for each in values])
            return np.array([sum(each) for each in values], np.float32)
        chosen = np.searchsorted(times, rows, "right") - 1
        if role == "action":
            after = np.searchsorted(times, rows, "left")
            is_soon = (after < len(times)) & (times[np.minimum(after, len(times) - 1)] < ends)
            chosen = np.where(is_soon, after, chosen)
        return self._stack(topic, column, np.maximum(chosen, 0))

    def _stack(self, topic: str, column: str, numbers: Array) -> Array:
        values = [self._value(topic, column, int(number)) for number in numbers]
        shapes = {value.shape for value in values}
        if len(shapes) > 1:
            raise DatasetError(
                f"its messages differ in shape: {sorted(shapes)}", path=self._path, key=column
            )
        return np.stack(values)

    def _value(self, topic: str, column: str, number: int) -> Array:
        try:
            message = self._messages[topic][number]()
            return _field(message, column[len(topic) :], self._plan.topics[topic])
        except DatasetError as error:
            raise DatasetError(
                error.problem, path=self._path, key=column, row=number, remedy=error.remedy
            ) from error


def _topic_of(column: str, topics: dict[str, str]) -> str | None:
    """Return the topic of a column: the longest one that it begins with."""
    fits = [t for t in topics if column == t or column.startswith(f"{t}.")]
    return max(fits, key=len, default=None)


# ---------------------------------------------------------------- fields of messages


def _field(message: Any, path: str, kind: str) -> Array:
    """Return a field of a message as numbers, or its image."""
    for name in path.split(".")[1:]:
        inner = message.get(name) if isinstance(message, dict) else None
        if not isinstance(message, dict) and not name.startswith("_"):
            inner = getattr(message, name, None)
        if inner is None:
            raise DatasetError(
                f"its messages ({kind}) have no field {name!r}; they have {_field_names(message)}"
            )
        message = inner
    if not path and kind.endswith("CompressedImage"):
        return with_channels(decode_image(_bytes(_part(message, "data"))))
    if not path and kind.endswith(("/Image", "RawImage")):
        return _raw_image(message)
    return _numbers(message)


def _field_names(message: Any) -> list[str]:
    if isinstance(message, dict):
        return sorted(message)
    if hasattr(message, "DESCRIPTOR"):  # protobuf
        return [each.name for each in message.DESCRIPTOR.fields]
    return [name for name in getattr(message, "__dataclass_fields__", ()) if name[0] != "_"]


def _numbers(value: Any) -> Array:
    """Return a number, an array, or all numbers of a message, in the order of its fields."""
    if isinstance(value, dict):
        parts = [_numbers(v) for k, v in value.items() if k not in _NOT_NUMBERS]
    elif hasattr(value, "__dataclass_fields__"):
        names = [n for n in value.__dataclass_fields__ if n not in _NOT_NUMBERS and n[0] != "_"]
        parts = [_numbers(getattr(value, name)) for name in names]
    elif hasattr(value, "DESCRIPTOR"):  # protobuf
        names = [f.name for f in value.DESCRIPTOR.fields if f.name not in _NOT_NUMBERS]
        parts = [_numbers(getattr(value, name)) for name in names]
    elif isinstance(value, str | bytes):
        return np.empty(0)
    elif isinstance(value, bool | int | float | np.generic):
        return np.asarray(value)
    else:
        items = list(value) if not isinstance(value, np.ndarray) else value
        array = np.asarray(items)
        if array.dtype.kind in "biuf":
            return array
        parts = [_numbers(item) for item in items]
    return np.concatenate([np.ravel(part) for part in parts]) if parts else np.empty(0)


def _part(message: Any, name: str) -> Any:
    return message.get(name) if isinstance(message, dict) else getattr(message, name, None)


def _bytes(data: Any) -> bytes:
    if isinstance(data, str):
        try:
            return base64.b64decode(data, validate=True)
        except ValueError as error:
            raise DatasetError(f"its data are not base64 ({error})") from error
    return bytes(data if data is not None else b"")


def _raw_image(message: Any) -> Array:
    encoding = str(_part(message, "encoding"))
    if encoding not in _ENCODINGS:
        raise DatasetError(
            f"its images are encoded as {encoding!r}; expected one of {sorted(_ENCODINGS)}"
        )
    height, width = int(_part(message, "height")), int(_part(message, "width"))
    step = int(_part(message, "step") or 0)
    channels = 4 if "a8" in encoding else len(_ENCODINGS[encoding])
    data = np.frombuffer(_bytes(_part(message, "data")), np.uint8)
    if not 0 < height * width <= MAX_PIXELS or step < width * channels or len(data) < height * step:
        raise DatasetError(
            f"its image of {height} x {width} pixels has {len(data):,} bytes, {step:,} a row"
        )
    rows = data[: height * step].reshape(height, step)[:, : width * channels]
    return rows.reshape(height, width, channels)[:, :, _ENCODINGS[encoding]]


# ---------------------------------------------------------------- containers


def _recordings(probe: Probe) -> list[Path]:
    """Return the recordings: the file, the bag of version 2, or those in a folder."""
    if not probe.is_folder:
        return [probe.path] if probe.head.startswith(_STARTS) else []
    if (probe.path / _BAG_2).is_file():
        return [probe.path]
    bags = [path.parent for path in probe.files(f"*/{_BAG_2}")]
    for found in (*(list(probe.files(pattern)) for pattern in _PATTERNS), bags):
        if found:
            by_name = {path.stem: path for path in found}
            return [by_name[name] for name in sort_by_number(by_name)]
    return []


def _is_ros(path: Path) -> bool:
    """Return whether rosbags reads it: a bag, or an MCAP file of ROS 2 messages."""
    if path.is_dir() or not _is_mcap(path):
        return True
    return any(encoding == "cdr" for _, encoding in _mcap_topics(path).values())


def _is_mcap(path: Path) -> bool:
    with open_regular(path) as file:
        return file.read(len(_STARTS[0])) == _STARTS[0]


def _first_topics(paths: list[Path]) -> dict[str, str]:
    """Return the message types by topic of the first recording that can be read."""
    failure: DatasetError | None = None
    for path in paths:
        try:
            with reading_errors(path):
                return _topics(path)
        except DatasetError as error:
            failure = failure or error
    raise failure or DatasetError("it has no recordings")


def _topics(path: Path) -> dict[str, str]:
    if not _is_ros(path):
        return {topic: kind for topic, (kind, _) in _mcap_topics(path).items()}
    with _open_bag(path) as bag:
        return {connection.topic: connection.msgtype for connection in bag.connections}


def _messages(path: Path, topics: set[str]) -> Iterator[tuple[str, int, Callable[[], Any]]]:
    """Return topic, time in nanoseconds and a function that decodes it, of each message."""
    if not _is_ros(path):
        yield from _mcap_messages(path, topics)
        return
    with _open_bag(path) as bag:
        wanted = [each for each in bag.connections if each.topic in topics]
        store = bag.typestore
        decode = store.deserialize_cdr if bag.is2 else store.deserialize_ros1
        for connection, time, data in bag.messages(connections=wanted) if wanted else ():
            yield connection.topic, int(time), functools.partial(decode, data, connection.msgtype)


def _open_bag(path: Path) -> Any:
    highlevel = import_extra("rosbags.highlevel", _USER)
    stores = import_extra("rosbags.typesys", _USER)
    # rosbags makes Python classes of message types; its grammar allows nothing but names in them.
    default = stores.get_typestore(stores.Stores.LATEST)  # of bags without definitions
    if path.is_dir():
        require_files(path)
    try:
        return highlevel.AnyReader([path], default_typestore=default)
    except (highlevel.AnyReaderError, OSError) as error:
        raise DatasetError(f"it is not a readable ROS bag ({error})", path=path) from error


def _mcap_topics(path: Path) -> dict[str, tuple[str, str]]:
    """Return message type and encoding by topic of an MCAP file."""
    reader = import_extra("mcap.reader", _USER)
    with open_regular(path) as file:
        summary = reader.make_reader(file).get_summary()
        if summary is not None and summary.channels:
            schemas = {number: schema.name for number, schema in summary.schemas.items()}
            return {
                channel.topic: (schemas.get(channel.schema_id, ""), channel.message_encoding)
                for channel in summary.channels.values()
            }
        return {
            channel.topic: ("" if schema is None else schema.name, channel.message_encoding)
            for schema, channel, _ in reader.make_reader(file).iter_messages()
        }


def _mcap_messages(path: Path, topics: set[str]) -> Iterator[tuple[str, int, Callable[[], Any]]]:
    reader = import_extra("mcap.reader", _USER)
    decoders: dict[int, Callable[[bytes], Any]] = {}
    with open_regular(path) as file:
        for schema, channel, message in reader.make_reader(file).iter_messages(topics=list(topics)):
            if channel.id not in decoders:
                decoders[channel.id] = _mcap_decoder(channel.message_encoding, schema, path)
            decode = functools.partial(decoders[channel.id], message.data)
            yield channel.topic, int(message.log_time), decode


def _mcap_decoder(encoding: str, schema: Any, path: Path) -> Callable[[bytes], Any]:
    if encoding == "json":
        return json.loads
    if encoding == "protobuf":
        decoder = import_extra("mcap_protobuf.decoder", _USER).DecoderFactory()
        found: Callable[[bytes], Any] | None = decoder.decoder_for(encoding, schema)
        if found is not None:
            return found
    raise DatasetError(
        f"its messages are encoded as {encoding!r}; expected JSON, Protobuf or ROS messages",
        path=path,
    )
