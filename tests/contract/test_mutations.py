"""Broken models: the contract suite notices each fault."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from dreamgym.models import MDNRNN, PETS, WorldModel
from dreamgym.models.pets import model as pets_model
from tests.contract import test_models as contract
from tests.contract.test_integer_states import Tokens, tokens_model
from tests.small_worlds import small_model


class LooksAhead(Tokens):
    """A transformer without a causal mask: every prediction sees the last token."""

    def loss(self, segment, noise):
        last = self.embed(self.token(segment.observation)[:, -1]).mean(-1)
        outputs = Tokens.outputs

        def peeking(state):
            logits, reward, logit = outputs(self, state)
            return logits + last.unsqueeze(-1), reward + last, logit + last

        self.outputs = peeking
        try:
            return super().loss(segment, noise)
        finally:
            del self.outputs


class CountsPadding(Tokens):
    def loss(self, segment, noise):
        return super().loss(segment._replace(mask=torch.ones_like(segment.mask)), noise)


class OneActionLate(Tokens):
    """The loss pairs an action with the outcome of the one before."""

    def loss(self, segment, noise):
        return super().loss(segment._replace(action=segment.action.roll(1, 1)), noise)


class OtherUnits(Tokens):
    """The step returns standardised rewards."""

    def step(self, state, action, noise, temperature=1.0):
        following, prediction = super().step(state, action, noise, temperature)
        reward = (prediction.reward - self.reward_mean) / self.reward_std
        return following, prediction._replace(reward=reward)


class Survives(Tokens):
    """The step returns the probability that the episode goes on."""

    def step(self, state, action, noise, temperature=1.0):
        following, prediction = super().step(state, action, noise, temperature)
        return following, prediction._replace(termination=1 - prediction.termination)


class NeverSlides(Tokens):
    """A full window takes in nothing more."""

    def observe(self, state, action, observation, noise):
        return {
            key: torch.where(
                (state["length"] == 3).view(-1, *[1] * (leaf.ndim - 1)), state[key], leaf
            )
            for key, leaf in super().observe(state, action, observation, noise).items()
        }


class OverwritesTheNewest(Tokens):
    """A full window replaces its newest token."""

    def push(self, state, token):
        full = (state["length"] == 3).unsqueeze(-1)
        pushed = super().push(state, token)
        old = torch.cat([state["tokens"][:, :-1], token[:, None]], 1)
        return pushed | {"tokens": torch.where(full, old, pushed["tokens"])}


class DreamsDoNotSlide(Tokens):
    """A dream's tokens do not enter a full window."""

    def step(self, state, action, noise, temperature=1.0):
        following, prediction = super().step(state, action, noise, temperature)
        full = state["length"] == 3
        return contract.select(full, state, following), prediction


class ForgetsActions(Tokens):
    """Past actions are zero; only the one of the current step counts."""

    def push(self, state, token):
        pushed = super().push(state, token)
        return pushed | {"actions": torch.zeros_like(pushed["actions"])}


class OneLength(Tokens):
    """Every row is taken to be as long as the first."""

    def push(self, state, token):
        return super().push(state | {"length": state["length"][:1].expand(len(token))}, token)


class Heats(Tokens):
    """The temperature is ignored."""

    def step(self, state, action, noise, temperature=1.0):
        return super().step(state, action, noise, 1.0)


class KeepsACache(Tokens):
    """The last observed context is kept on the model instead of in the state."""

    cache: torch.Tensor | None = None

    def observe(self, state, action, observation, noise):
        state = super().observe(state, action, observation, noise)
        self.cache = state["tokens"].float().mean()
        return state

    def step(self, state, action, noise, temperature=1.0):
        following, prediction = super().step(state, action, noise, temperature)
        return following, prediction._replace(reward=prediction.reward + self.cache)


class Counts(Tokens):
    """A step counts itself in a buffer."""

    def __init__(self, *spaces):
        super().__init__(*spaces)
        self.register_buffer("count", torch.zeros(()))

    def step(self, state, action, noise, temperature=1.0):
        self.count += 1
        return super().step(state, action, noise, temperature)


def forgetful_mdn_rnn() -> WorldModel:
    """Return an LSTM that filters without actions."""
    model = small_model("mdn-rnn")
    model.observe = lambda state, action, observation, noise: MDNRNN.observe(
        model, state, torch.zeros_like(action), observation, noise
    )
    return model


def endless_pets() -> WorldModel:
    """Return PETS whose dreams go on outside the data."""
    model = small_model("pets")

    def step(*args):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pets_model, "end_outside_data", lambda prediction, *_: prediction)
            return PETS.step(model, *args)

    model.step = step
    return model


def deaf_pets() -> WorldModel:
    """Return PETS whose dreams ignore their actions."""
    model = small_model("pets")
    model.step = lambda state, action, *rest: PETS.step(model, state, 0 * action, *rest)
    return model


def causal_reward(model: WorldModel) -> None:
    contract.test_the_loss_of_a_transition_does_not_depend_on_later_ones(model, "reward")


MEMORY = contract.test_what_is_older_is_forgotten_first_in_an_episode_longer_than_any_window
PADDING = contract.test_the_loss_is_finite_reaches_every_parameter_and_ignores_padding
LESSON = contract.assert_a_step_predicts_what_the_loss_teaches
DREAM = contract.test_a_long_dream_depends_on_its_actions
ROWS = contract.test_rows_that_begin_at_different_times_do_not_mix

MUTATIONS: list[tuple[type[Tokens] | Callable[[], WorldModel], Callable[[WorldModel], None]]] = [
    (LooksAhead, causal_reward),
    (LooksAhead, PADDING),
    (CountsPadding, PADDING),
    (OneActionLate, LESSON),
    (OtherUnits, LESSON),
    (Survives, LESSON),
    (NeverSlides, MEMORY),
    (OverwritesTheNewest, MEMORY),
    (ForgetsActions, MEMORY),
    (forgetful_mdn_rnn, MEMORY),
    (DreamsDoNotSlide, DREAM),
    (deaf_pets, DREAM),
    (OneLength, ROWS),
    (Heats, contract.test_a_temperature_for_each_row_is_that_number_in_its_row),
    (KeepsACache, contract.test_same_noise_same_result_and_other_noise_another),
    (Counts, contract.test_a_step_leaves_its_arguments_as_they_were),
    (endless_pets, contract.test_a_dream_that_leaves_the_data_ends),
]
"""A broken model, and the test that notices."""


@pytest.mark.parametrize(
    ("broken", "test"), MUTATIONS, ids=[f"{b.__name__}-{t.__name__}" for b, t in MUTATIONS]
)
def test_the_suite_notices(broken, test):
    model = tokens_model(broken) if isinstance(broken, type) else broken()
    with pytest.raises(AssertionError):
        test(model)
