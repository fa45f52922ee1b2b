"""Any order of steps, jumps, branches and edits leaves the dream and reality where they belong."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import dreamgym
from dreamgym.play import PlaySession
from tests.play.conftest import CARTPOLE

pytest.importorskip("pygame", reason="CartPole's own renderer needs pygame")


WORLD = dreamgym.load(CARTPOLE)


class Histories(RuleBasedStateMachine):
    """A session beside a list of the actions that led to each of its moments."""

    session: PlaySession
    real = gym.make("CartPole-v1")

    @initialize(seed=st.integers(0, 3))
    def start(self, seed):
        self.session = PlaySession(WORLD, device="cpu")
        # Drawing is not what is tested, and takes most of the time.
        self.session.renderer.draw = lambda observation: np.zeros((1, 1, 3), np.uint8)
        self.session.reset(seed=seed)
        self.seed, self.actions, self.branches = seed, [], []

    def is_going_on(self):
        return not self.session.now.done

    @precondition(is_going_on)
    @rule(action=st.integers(0, 1))
    def step(self, action):
        now = self.session.now
        before = {name: leaf.clone() for name, leaf in now.dreams.model.items()}
        moment = self.session.step(np.int64(action))
        self.actions = [*self.actions[: moment.step - 1], action]
        assert all(torch.equal(now.dreams.model[name], before[name]) for name in before)

    @rule(share=st.floats(0, 1))
    def go(self, share):
        last = self.session.moments[-1].step
        assert self.session.go_to(round(share * last)).step == round(share * last)

    @precondition(lambda self: len(self.branches) < 3)
    @rule()
    def branch(self):
        assert self.session.branch() == len(self.branches)
        self.branches.append(self.actions[: self.session.now.step])

    @precondition(lambda self: self.branches)
    @rule(data=st.data(), same_noise=st.booleans())
    def return_to(self, data, same_noise):
        number = data.draw(st.integers(0, len(self.branches) - 1))
        self.session.return_to(number, same_noise=same_noise)
        self.actions = list(self.branches[number])

    @rule(value=st.floats(-2, 2))
    def edit(self, value):
        moment = self.session.edit_latent("z", 0, value)
        assert moment.dreams.model["z"][0, 0] == np.float32(value)
        assert self.session.moments[-1] is moment
        self.actions = self.actions[: moment.step]

    @invariant()
    def reality_has_taken_the_actions(self):
        moment = self.session.now
        observation, _ = self.real.reset(seed=self.seed)
        for action in self.actions[: moment.step]:
            observation, _, terminated, _, _ = self.real.step(action)
            if terminated:
                break
        assert np.array_equal(moment.real.observation, observation)

    @invariant()
    def steps_are_counted(self):
        moments = self.session.moments
        assert [each.step for each in moments] == list(range(len(moments)))
        assert [int(each.dreams.age) for each in moments] == list(range(len(moments)))
        assert len(moments) - 1 == len(self.actions)
        assert all(not each.done for each in moments[:-1])

    def teardown(self):
        if hasattr(self, "session"):
            self.session.close()


Histories.TestCase.settings = settings(max_examples=8, stateful_step_count=15)
TestHistories = Histories.TestCase
