"""Saving: the episode as datasets that say what they are, and the pictures as a video."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import dreamgym
from dreamgym.data import Dataset
from dreamgym.play import PlaySession, save_clip, save_episodes
from dreamgym.play import session as session_module
from tests.small_worlds import small_world


def test_the_dream_and_reality_are_saved_apart(cartpole, tmp_path):
    cartpole.reset(seed=4)
    moments = [cartpole.step(np.int64(action)) for action in (1, 0, 1)]
    dream, real = save_episodes(cartpole, tmp_path)
    for path, shown in ((dream, moments), (real, [moment.real for moment in moments])):
        with Dataset(path) as dataset:
            (episode,) = [dataset.episode(0)]
            assert episode.actions.tolist() == [1, 0, 1]
            assert np.array_equal(episode.observations[1:], [each.observation for each in shown])
            assert np.allclose(episode.rewards, [each.reward for each in shown])
            assert not episode.complete
    with Dataset(dream) as dataset:
        assert dataset.metadata.env_spec is None, "a dream is no real environment"
        assert "predictions" in dataset.metadata.notes[0]
    with Dataset(real) as dataset:
        assert dataset.metadata.env_id == "CartPole-v1"
        assert dataset.metadata.policy == "play"
        assert dataset.episode(0).seed == 4


def test_a_dataset_of_other_spaces_is_left_alone(cartpole, tmp_path):
    other = dreamgym.record("Pendulum-v1", steps=5, out=tmp_path / "CartPole-MDNRNN-v0-real.h5")
    cartpole.step(np.int64(1))
    assert [each.name for each in save_episodes(cartpole, tmp_path)] == [
        "CartPole-MDNRNN-v0-dream.h5",
        "CartPole-MDNRNN-v0-real-1.h5",
    ]
    with Dataset(other) as dataset:
        assert dataset.num_steps == 5


def test_the_episodes_of_a_person_are_data_to_fit_to(cartpole, tmp_path):
    cartpole.horizon = 12
    for seed in range(3):
        cartpole.reset(seed=seed)
        while not cartpole.now.done:
            cartpole.step(np.int64(cartpole.now.step % 2))
        _, path = save_episodes(cartpole, tmp_path)
    with Dataset(path) as dataset:
        assert [dataset.episode(index).seed for index in range(3)] == [0, 1, 2]
    assert dreamgym.check(path).ok


def test_what_an_edit_made_is_no_step(cartpole, tmp_path):
    for action in (1, 0):
        cartpole.step(np.int64(action))
    edited = cartpole.edit_observation(0, 0.5)
    (path,) = save_episodes(cartpole, tmp_path)
    assert path.name.endswith("-real.h5"), "no step of the dream leads to the edit"
    step = cartpole.step(np.int64(1))
    dream, real = save_episodes(cartpole, tmp_path / "again")
    with Dataset(dream) as dataset:
        observations = dataset.episode(0).observations
    assert np.array_equal(observations, [edited.observation, step.observation])
    with Dataset(real) as dataset:
        assert dataset.num_steps == 3, "reality was not edited"


def test_where_reality_was_put_somewhere_its_steps_are_not_saved(cartpole, tmp_path):
    cartpole.reset(start="anywhere", row=6)
    cartpole.step(np.int64(1))
    (path,) = save_episodes(cartpole, tmp_path)
    assert path.name.endswith("-dream.h5")


def test_only_the_past_is_saved(cartpole, tmp_path):
    for action in (1, 0, 1):
        cartpole.step(np.int64(action))
    cartpole.go_to(2)
    dream, _ = save_episodes(cartpole, tmp_path)
    with Dataset(dream) as dataset:
        assert dataset.num_steps == 2


def test_ends_are_saved_as_what_they_are(cartpole, tmp_path):
    cartpole.horizon = 2
    for action in (1, 0):
        cartpole.step(np.int64(action))
    dream, real = save_episodes(cartpole, tmp_path)
    with Dataset(dream) as dataset:
        episode = dataset.episode(0)
        assert (episode.terminated, episode.truncated, episode.complete) == (False, True, True)
    with Dataset(real) as dataset:
        assert not dataset.episode(0).complete


def test_a_clip_shows_the_dream_beside_reality(cartpole, tmp_path):
    av = pytest.importorskip("av")
    pytest.importorskip("moviepy")
    for action in (1, 0, 1):
        cartpole.step(np.int64(action))
    path = save_clip(cartpole, tmp_path, fps=10)
    assert [each.name for each in tmp_path.iterdir()] == [path.name]
    with av.open(str(path)) as video:
        frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
    assert len(frames) == 4
    assert frames[0].shape == (400, 1208, 3)
    assert save_clip(cartpole, tmp_path).name != path.name


def test_nothing_that_was_played_is_nothing_to_save(cartpole, tmp_path):
    for save in (save_clip, save_episodes):
        with pytest.raises(ValueError, match=r"take a step|no step"):
            save(cartpole, tmp_path)
    assert not list(tmp_path.iterdir())


def test_dreams_without_pictures_have_no_clip(tmp_path):
    session = PlaySession(small_world(horizon=100), device="cpu")
    session.player = "random"
    session.step()
    with pytest.raises(ValueError, match="no pictures"):
        save_clip(session, tmp_path)
    session.close()


def test_two_pages_that_save_at_once_lose_nothing(cartpole, tmp_path):
    pytest.importorskip("moviepy")
    cartpole.step(np.int64(1))
    with ThreadPoolExecutor(4) as pages:
        clips = list(pages.map(lambda _: save_clip(cartpole, tmp_path), range(4)))
        list(pages.map(lambda _: save_episodes(cartpole, tmp_path), range(4)))
    assert len({*clips}) == 4
    for name in ("dream", "real"):
        with Dataset(tmp_path / f"CartPole-MDNRNN-v0-{name}.h5") as dataset:
            assert dataset.num_episodes == 4


def test_an_episode_whose_start_was_dropped_has_no_seed(monkeypatch, tmp_path):
    monkeypatch.setattr(session_module, "MOST_MOMENTS", 3)
    session = PlaySession("CartPole-MDNRNN-v0", device="cpu")
    session.reset(seed=4)
    for action in (1, 0, 1, 0):
        session.step(np.int64(action))
    _, real = save_episodes(session, tmp_path)
    session.close()
    with Dataset(real) as dataset:
        assert dataset.num_steps == 2
        assert dataset.episode(0).seed is None
