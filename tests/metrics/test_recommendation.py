"""Recommended horizon and termination rule, for models for which the right choice is known."""

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
    """Terminates where the angle leaves its bounds, and never by chance."""

    def step(self, action):
        seen, reward, _, truncated, info = super().step(action)
        return seen, reward, bool(abs(seen[0]) > EDGE), truncated, info


class KnownDynamics(Known):
    """True dynamics with a constant hazard, or with a termination at the edge that leaks."""

    def __init__(self, hazard: float, *, edge: bool) -> None:
        super().__init__()
        self.hazard, self.edge = hazard, edge

    def step(self, state, action, noise, temperature=1.0):
        state, prediction = super().step(state, action, noise)
        chance = torch.full_like(prediction.termination, self.hazard)
        beyond = state["state"][:, 0].abs() > EDGE
        if self.edge:
            chance = torch.where(beyond, 1.0 - self.hazard, chance)
        return state, prediction._replace(termination=chance)


class Drifting(Known):
    """Right for some steps, then increasingly wrong."""

    def step(self, state, action, noise, temperature=1.0):
        state, prediction = super().step(state, action, noise)
        return {**state, "state": state["state"] * 1.25}, prediction


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


def recommendation(model, dataset, cap=CAP):
    return recommend(model, dataset, np.arange(dataset.num_episodes), cap=cap)


def test_terminations_by_chance_are_sampled(by_chance):
    found = recommendation(KnownDynamics(HAZARD, edge=False), by_chance)
    assert found.termination == "sample"
    ends = found.reasons["ends"]
    assert min(ends["scores"], key=ends["scores"].get) == "sample"
    assert ends["steps_alive_in_dreams"] == pytest.approx(ends["steps_alive"], rel=0.25)


def test_a_sharp_end_that_leaks_is_thresholded(at_the_edge):
    found = recommendation(KnownDynamics(0.05, edge=True), at_the_edge)
    assert 0.1 <= found.termination <= 0.75
    scores = found.reasons["ends"]["scores"]
    assert scores[str(found.termination)] < 0.5 * scores["sample"]


class OverpredictsInDreams(KnownDynamics):
    """Right one step ahead; its probability of termination grows with open-loop steps."""

    def initial(self, batch_size):
        return {**super().initial(batch_size), "age": torch.zeros(batch_size)}

    def observe(self, state, action, observation, noise):
        return {**super().observe(state, action, observation, noise), "age": 0 * state["age"]}

    def step(self, state, action, noise, temperature=1.0):
        following, prediction = super().step(state, action, noise)
        chance = (prediction.termination * (1 + 9 * state["age"])).clamp(max=0.7)
        age = {"age": state["age"] + 1}
        return {**following, **age}, prediction._replace(termination=chance)


def test_dreams_that_end_too_soon_are_no_reason_for_dreams_that_never_end(by_chance):
    found = recommendation(OverpredictsInDreams(HAZARD, edge=False), by_chance, cap=8)
    scores = found.reasons["ends"]["scores"]
    assert scores["0.75"] < 0.8 * scores["sample"]
    assert found.termination == "sample"
    ends = found.reasons["ends"]
    assert ends["terminations"] > 0
    assert ends["predicted"]["0.75"] == 0


def test_a_tie_is_sampled(at_the_edge):
    found = recommendation(KnownDynamics(1e-6, edge=True), at_the_edge)
    assert found.termination == "sample"


def test_without_terminations_in_the_data_sampling_is_kept(by_chance, tmp_path):
    class Endless(Swing):
        def step(self, action):
            seen, reward, _, truncated, info = super().step(action)
            return seen, reward, False, truncated, info

    with Dataset(dataset_of(Endless(), tmp_path)) as dataset:
        found = recommendation(KnownDynamics(0.0, edge=False), dataset)
    assert found.termination == "sample"
    assert found.reasons["ends"] == {}


def test_a_good_model_keeps_the_cap_and_one_that_drifts_does_not(by_chance):
    assert recommendation(Known(), by_chance).horizon == CAP
    assert recommendation(Known(), by_chance, cap=200).horizon == 200  # no episode is so long
    drifting = recommendation(Drifting(), by_chance)
    assert drifting.horizon == 15
    assert "worse than repeating" in drifting.reasons["horizon"]
    assert recommendation(Drifting(), by_chance, cap=5).horizon == 5


def test_a_model_that_does_not_decode_keeps_the_cap(by_chance):
    assert recommendation(Known(decodes=False), by_chance).horizon == CAP


def test_episodes_too_short_to_dream_in_keep_the_cap_and_the_reason_says_so(tmp_path):
    with Dataset(dataset_of(TimeLimit(Swing(), 3), tmp_path)) as dataset:
        found = recommendation(Known(), dataset)
    assert found.horizon == CAP
    assert "too few distinct windows" in found.reasons["horizon"]
