"""The horizon and what ends a dream, for models of which the right choice is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium.wrappers import TimeLimit

import dreamgym
from dreamgym.data import Dataset
from dreamgym.metrics import recommend
from tests.metrics.small_fits import HAZARD, Swing
from tests.metrics.test_open_loop import Known

EDGE = 1.5
CAP = 30


class Edge(Swing):
    """Ends where the angle leaves its bounds, and never by chance."""

    def step(self, action):
        seen, reward, _, truncated, info = super().step(action)
        return seen, reward, bool(abs(seen[0]) > EDGE), truncated, info


class Foretelling(Known):
    """Knows the truth, but for what it says of the end: by chance, or at the edge with a leak."""

    def __init__(self, hazard: float, *, edge: bool) -> None:
        super().__init__()
        self.hazard, self.edge = hazard, edge

    def step(self, state, action, noise, temperature=1.0):
        state, said = super().step(state, action, noise)
        chance = torch.full_like(said.termination, self.hazard)
        beyond = state["state"][:, 0].abs() > EDGE
        if self.edge:
            chance = torch.where(beyond, 1.0 - self.hazard, chance)
        return state, said._replace(termination=chance)


class Drifting(Known):
    """Right for some steps, and further and further off from then on."""

    def step(self, state, action, noise, temperature=1.0):
        state, said = super().step(state, action, noise)
        return {**state, "state": state["state"] * 1.25}, said


def dataset_of(env, folder):
    return dreamgym.record(env, steps=4000, out=folder / "data.h5", seed=0)


@pytest.fixture(scope="module")
def by_chance(tmp_path_factory):
    with Dataset(dataset_of(Swing(), tmp_path_factory.mktemp("chance"))) as dataset:
        yield dataset


@pytest.fixture(scope="module")
def at_the_edge(tmp_path_factory):
    with Dataset(dataset_of(Edge(), tmp_path_factory.mktemp("edge"))) as dataset:
        yield dataset


def default_config(model, dataset, cap=CAP):
    return recommend(model, dataset, np.arange(dataset.num_episodes), cap=cap)


def test_chance_is_sampled(by_chance):
    found = default_config(Foretelling(HAZARD, edge=False), by_chance)
    assert found.termination == "sample"
    ends = found.reasons["ends"]
    assert min(ends["scores"], key=ends["scores"].get) == "sample"
    assert ends["steps_alive_in_dreams"] == pytest.approx(ends["steps_alive"], rel=0.15)


def test_a_sharp_end_that_leaks_is_thresholded(at_the_edge):
    found = default_config(Foretelling(0.05, edge=True), at_the_edge)
    assert 0.1 <= found.termination <= 0.75
    scores = found.reasons["ends"]["scores"]
    assert scores[str(found.termination)] < 0.5 * scores["sample"]


def test_a_tie_is_sampled(at_the_edge):
    found = default_config(Foretelling(1e-6, edge=True), at_the_edge)
    assert found.termination == "sample"


def test_where_nothing_ends_there_is_nothing_to_choose_by(by_chance, tmp_path):
    class Endless(Swing):
        def step(self, action):
            seen, reward, _, truncated, info = super().step(action)
            return seen, reward, False, truncated, info

    with Dataset(dataset_of(Endless(), tmp_path)) as dataset:
        found = default_config(Foretelling(0.0, edge=False), dataset)
    assert found.termination == "sample"
    assert found.reasons["ends"] == {}


def test_a_good_model_keeps_the_cap_and_one_that_drifts_does_not(by_chance):
    assert default_config(Known(), by_chance).horizon == CAP
    assert default_config(Known(), by_chance, cap=200).horizon == 200  # no episode is so long
    drifting = default_config(Drifting(), by_chance)
    assert drifting.horizon == 15
    assert "worse than repeating" in drifting.reasons["horizon"]
    assert default_config(Drifting(), by_chance, cap=5).horizon == 5


def test_a_model_that_does_not_decode_keeps_the_cap(by_chance):
    assert default_config(Known(decodes=False), by_chance).horizon == CAP


def test_episodes_too_short_to_dream_in_keep_the_cap_and_the_reason_says_so(tmp_path):
    with Dataset(dataset_of(TimeLimit(Swing(), 3), tmp_path)) as dataset:
        found = default_config(Known(), dataset)
    assert found.horizon == CAP
    assert "too few windows" in found.reasons["horizon"]
