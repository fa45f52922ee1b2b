"""Rows in memory and in the file: columns, shards, mixtures, prefetching, snapshots."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from gymnasium import spaces

from dreamgym.data import (
    Dataset,
    DatasetError,
    DatasetMetadata,
    DatasetWriter,
    Mixture,
    check,
    prefetch,
    record,
)
from dreamgym.data.hdf5.reader import PREADV_AVAILABLE, PositionedColumn
from dreamgym.data.segments import SegmentSampler
from dreamgym.data.storage import MemoryColumn, SlicedColumn
from tests.data.samples import (
    assert_same_batch,
    image_cartpole,
    random_episode,
    slow_segments,
    write,
    write_random,
)

IMAGES = DatasetMetadata(
    observation_space=spaces.Box(0, 255, (8, 8, 3), np.uint8), action_space=spaces.Discrete(3)
)
POSITIONED = pytest.mark.skipif(not PREADV_AVAILABLE, reason="no positioned reads here")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    lengths = [1, 40, 15, 16, 17, 2, 100]
    return write_random(tmp_path_factory.mktemp("images") / "d.h5", lengths, IMAGES)


@pytest.fixture(scope="module")
def contiguous(images: Path) -> Path:
    path = images.with_name("contiguous.h5")
    path.write_bytes(images.read_bytes())
    with h5py.File(path, "r+") as file:
        values = file["steps/obs/observation"][:]
        del file["steps/obs/observation"]
        file["steps/obs/observation"] = values
    return path


@pytest.fixture(scope="module")
def compressed(images: Path) -> Path:
    path = images.with_name("compressed.h5")
    path.write_bytes(images.read_bytes())
    with h5py.File(path, "r+") as file:
        values = file["steps/obs/observation"][:]
        del file["steps/obs/observation"]
        options = {"chunks": (16, 8, 8, 3), "compression": "gzip", "shuffle": True}
        file.create_dataset("steps/obs/observation", data=values, **options)
    return path


@pytest.mark.parametrize(
    ("which", "memory", "column"),
    [
        ("images", 1 << 30, MemoryColumn),
        pytest.param("images", 0, PositionedColumn, marks=POSITIONED),
        pytest.param("contiguous", 0, PositionedColumn, marks=POSITIONED),
        ("compressed", 0, SlicedColumn),
        ("compressed", 1 << 30, MemoryColumn),
    ],
)
@pytest.mark.parametrize(("length", "frame_skip"), [(1, 1), (16, 1), (40, 1), (5, 3), (3, 50)])
def test_every_kind_of_column_reads_the_same(
    request: pytest.FixtureRequest,
    which: str,
    memory: int,
    column: type,
    length: int,
    frame_skip: int,
) -> None:
    with Dataset(request.getfixturevalue("images")) as reference:
        expected = reference.segments(np.arange(7), length, frame_skip=frame_skip)
        with Dataset(request.getfixturevalue(which), memory=memory) as dataset:
            assert type(dataset._source.observations["observation"]) is column
            sampler = dataset.segments(np.arange(7), length, frame_skip=frame_skip)
            every = np.arange(sampler.num_transitions)
            assert_same_batch(sampler.at(every), expected.at(every))
            for index in range(7):
                np.testing.assert_array_equal(
                    dataset.episode(index).observations, reference.episode(index).observations
                )
            dataset.verify()


def test_the_reference_matches_the_definition(images: Path) -> None:
    with Dataset(images) as dataset:
        sampler = dataset.segments(np.arange(7), 16)
        every = sampler.at(np.arange(sampler.num_transitions))
        assert_same_batch(every, slow_segments(dataset, list(range(7)), 16))


def test_segments_of_some_observation_keys(tmp_path: Path) -> None:
    metadata = DatasetMetadata(
        observation_space=spaces.Dict(a=spaces.Box(-1, 1, (2,)), b=spaces.Box(-1, 1, (3,))),
        action_space=spaces.Discrete(2),
    )
    with Dataset(write_random(tmp_path / "d.h5", [5, 6], metadata)) as dataset:
        batch = dataset.segments([0, 1], 3, keys=["b"]).draw(4, np.random.default_rng(0))
        assert list(batch.observation) == ["b"]
        with pytest.raises(DatasetError, match=r"no observation keys \['c'\].*\['a', 'b'\]"):
            dataset.segments([0], 3, keys=["b", "c"])


def test_keys_are_refused_if_the_space_is_not_a_dict(images: Path) -> None:
    with Dataset(images) as dataset, pytest.raises(DatasetError, match="not a Dict"):
        dataset.segments([0], 3, keys=["observation"])


def test_a_mixture_draws_by_weight(tmp_path: Path) -> None:
    paths = [write_random(tmp_path / f"{n}.h5", [n, n]) for n in (20, 30, 40)]
    datasets = [Dataset(path) for path in paths]
    samplers = [dataset.segments([0, 1], 4) for dataset in datasets]
    mixture = Mixture(samplers, [3, 0, 1])
    batch = mixture.draw(4000, np.random.default_rng(0))
    assert_same_batch(batch, mixture.draw(4000, np.random.default_rng(0)))
    rows = [
        {row.tobytes() for row in sampler.at(np.arange(sampler.num_transitions)).observation}
        for sampler in samplers
    ]
    origin = [[row.tobytes() in known for known in rows] for row in batch.observation]
    shares = np.mean(origin, axis=0)
    assert shares.sum() == 1
    assert shares[1] == 0
    assert abs(shares[0] - 0.75) < 0.03
    assert 0.2 < np.mean(np.array(origin)[:100, 2]) < 0.35  # the segments are not sorted by origin
    for index in (0, 17):  # the arrays of a segment stay together
        sampler = samplers[origin[index].index(True)]
        every = sampler.at(np.arange(sampler.num_transitions))
        at = [o.tobytes() for o in every.observation].index(batch.observation[index].tobytes())
        np.testing.assert_array_equal(batch.reward[index], every.reward[at])


@pytest.mark.parametrize("weights", [[1], [1, -1], [0, 0], [1, float("nan")]])
def test_invalid_mixture_weights_are_refused(images: Path, weights: list[float]) -> None:
    with Dataset(images) as dataset, pytest.raises(ValueError, match="weights"):
        Mixture([dataset.segments([1], 2)] * 2, weights)


@pytest.mark.parametrize("memory", [1 << 30, 0])
def test_prefetching_gives_the_same_batches(images: Path, memory: int) -> None:
    with Dataset(images, memory=memory) as dataset:
        sampler = dataset.segments(np.arange(7), 8)
        plain = np.random.default_rng(5)
        stream = prefetch(sampler, 4, np.random.default_rng(5))
        for _ in range(20):
            assert_same_batch(next(stream), sampler.draw(4, plain))
        stream.close()
    assert not [t for t in threading.enumerate() if t.name == "dreamgym-prefetch"]


def test_prefetching_holds_a_bounded_number_of_batches() -> None:
    drawn = []

    class Counting(SegmentSampler):
        def __init__(self) -> None:
            pass

        def draw(self, batch_size: int, rng: np.random.Generator):  # type: ignore[no-untyped-def]
            drawn.append(batch_size)
            if len(drawn) == 8:
                raise DatasetError("the disk is gone")
            return len(drawn)

    stream = prefetch(Counting(), 4, np.random.default_rng(0), buffer_size=3)
    assert next(stream) == 1
    time.sleep(0.3)
    assert len(drawn) <= 1 + 3 + 1
    with pytest.raises(DatasetError, match="the disk is gone"):
        list(stream)


def test_a_folder_of_shards(tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    whole = [5, 3, 20, 1, 8]
    parts = [write_random(folder / f"{i}.h5", [n]) for i, n in enumerate(whole)]
    episodes = [Dataset(part).episode(0) for part in parts]
    with Dataset(folder) as dataset:
        assert dataset.lengths.tolist() == whole
        for index, episode in enumerate(episodes):
            np.testing.assert_array_equal(dataset.episode(index).observations, episode.observations)
        sampler = dataset.segments(np.arange(5), 6)
        every = sampler.at(np.arange(sampler.num_transitions))
        assert_same_batch(every, slow_segments(dataset, list(range(5)), 6))
    assert check(folder).episodes == 5
    assert check(folder).size_bytes == sum(part.stat().st_size for part in parts)


@pytest.mark.parametrize("memory", [0, 4000, 1 << 30])
def test_shards_of_images(tmp_path: Path, memory: int) -> None:
    for i, lengths in enumerate([[4, 9], [17], [3, 3, 3]]):
        write_random(tmp_path / f"{i}.h5", lengths, IMAGES)
    with Dataset(tmp_path) as reference, Dataset(tmp_path, memory=memory) as dataset:
        every = np.arange(39)
        a, b = (d.segments(np.arange(6), 5).at(every) for d in (reference, dataset))
        assert_same_batch(a, b)
        np.testing.assert_array_equal(
            reference.episode(5).observations, dataset.episode(5).observations
        )
        dataset.verify()


def test_shards_of_different_spaces_or_unfinished_ones_are_refused(tmp_path: Path) -> None:
    write_random(tmp_path / "a.h5", [4])
    write_random(tmp_path / "b.h5", [4], IMAGES)
    with pytest.raises(DatasetError, match=r"b\.h5: its spaces differ from those of a\.h5"):
        Dataset(tmp_path)
    (tmp_path / "b.h5").rename(tmp_path / "b.h5.partial")
    with pytest.raises(DatasetError, match=r"b\.h5\.partial.*dreamgym recover"):
        Dataset(tmp_path)


@POSITIONED
def test_a_file_truncated_while_it_is_open_is_reported(images: Path, tmp_path: Path) -> None:
    path = tmp_path / "d.h5"
    path.write_bytes(images.read_bytes())
    with Dataset(path, memory=0) as dataset:
        sampler = dataset.segments(np.arange(7), 8)
        with path.open("r+b") as file:
            file.truncate(5000)
        with pytest.raises(DatasetError, match=r"steps/obs/observation: it ends .* bytes early"):
            sampler.at(np.arange(sampler.num_transitions))


@POSITIONED
def test_bit_rot_in_rows_left_in_the_file_is_found_by_verify(images: Path, tmp_path: Path) -> None:
    path = tmp_path / "d.h5"
    path.write_bytes(images.read_bytes())
    with h5py.File(path, "r+") as file:
        file["steps/obs/observation"][10, 0, 0, 0] ^= 1
    dataset = Dataset(path, memory=0)
    with pytest.raises(DatasetError, match="episode 1: its checksum does not fit"):
        dataset.verify()
    dataset.close()
    with pytest.raises(DatasetError, match="episode 1: its checksum does not fit"):
        Dataset(path)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_is_bounded_by_the_argument(tmp_path: Path) -> None:
    """400 MB of images are read with less than 150 MB on top of an empty process."""
    metadata = DatasetMetadata(
        observation_space=spaces.Box(0, 255, (64, 64, 3), np.uint8), action_space=spaces.Discrete(2)
    )
    episode = random_episode(*(metadata.observation_space, metadata.action_space), 1000, RNG)
    write(tmp_path / "d.h5", [episode] * 33, metadata)
    code = """
import sys, re
import numpy as np
from dreamgym.data import Dataset, check, prefetch
def resident():
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read()).group(1)) / 1024
before = resident()
with Dataset(sys.argv[1], memory=32 << 20) as dataset:
    sampler = dataset.segments(np.arange(len(dataset)), 16)
    stream = prefetch(sampler, 16, np.random.default_rng(0))
    for _ in range(100):
        next(stream)
    stream.close()
print(resident() - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "d.h5")],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert float(done.stdout) < 150


RNG = np.random.default_rng(0)


def test_recorded_images_read_the_same_from_the_file(tmp_path: Path) -> None:
    path = record(image_cartpole(), steps=300, out=tmp_path / "d.h5")
    with Dataset(path) as held, Dataset(path, memory=0) as streamed:
        assert held.checksum == streamed.checksum
        every = np.arange(300)
        a, b = (d.segments(np.arange(len(d)), 10).at(every) for d in (held, streamed))
        assert_same_batch(a, b)


def test_chunks_that_fill_pages_are_page_aligned(tmp_path: Path) -> None:
    space = spaces.Box(0, 255, (16, 16, 16), np.uint8)  # 16 rows of one page each
    metadata = DatasetMetadata(observation_space=space, action_space=spaces.Discrete(2))
    path = write_random(tmp_path / "d.h5", [40, 20], metadata)
    with DatasetWriter.extend(path) as writer:
        writer.add(random_episode(space, metadata.action_space, 30, RNG))
    with h5py.File(path) as file:
        pixels = file["steps/obs/observation"].id
        places = [pixels.get_chunk_info(i).byte_offset for i in range(pixels.get_num_chunks())]
    assert not any(place % 4096 for place in places)


def test_snapshots_of_a_dataset_that_is_being_written(tmp_path: Path) -> None:
    """A snapshot holds exactly the episodes that had been committed when it was taken."""
    rng = np.random.default_rng(0)
    episodes = [
        random_episode(IMAGES.observation_space, IMAGES.action_space, n, rng) for n in (30, 3, 50)
    ]
    with DatasetWriter(tmp_path / "d.h5", IMAGES) as writer:
        for count, episode in enumerate(episodes * 3):
            writer.add(episode)
            with Dataset.snapshot(tmp_path / "d.h5", memory=0) as dataset:
                assert dataset.num_episodes == count + 1
                dataset.verify()
                np.testing.assert_array_equal(
                    dataset.episode(count).observations, episode.observations
                )


@pytest.mark.parametrize("memory", [0, 1 << 30])
def test_reading_while_another_process_writes(tmp_path: Path, memory: int) -> None:
    """Snapshots of a growing file are valid, and the number of their episodes never falls."""
    code = """
import sys, numpy as np
from dreamgym.data import DatasetWriter
from tests.data.samples import random_episode
from tests.data.test_storage import IMAGES
rng = np.random.default_rng(0)
episodes = [random_episode(IMAGES.observation_space, IMAGES.action_space, n, rng) for n in (9, 40)]
with DatasetWriter("d.h5", IMAGES) as writer:
    while writer.num_episodes < 4000:
        writer.add(episodes[writer.num_episodes % 2])
        if writer.num_episodes == 3:
            print("ready", flush=True)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=subprocess.PIPE,
    )
    assert process.stdout.readline() == b"ready\n"
    counts = []
    try:
        while len(counts) < 8 and process.poll() is None:
            with Dataset.snapshot(tmp_path / "d.h5", memory=memory) as dataset:
                dataset.verify()
                counts.append(dataset.num_episodes)
            time.sleep(0.02)
    finally:
        process.kill()
        process.communicate()
    assert counts[0] >= 3
    assert counts == sorted(counts)
    assert counts[-1] > counts[0]
