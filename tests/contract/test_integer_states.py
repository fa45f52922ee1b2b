"""The contract on a model whose state has integer leaves: tokens, and a length for each row."""

from __future__ import annotations

from dataclasses import dataclass

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dreamgym.dream.vector_env import DreamVectorEnv
from dreamgym.models import Prediction, Segment, State, WorldModel
from dreamgym.models.base import end_outside_data
from dreamgym.models.nn.actions import ActionEncoder
from dreamgym.models.nn.distributions import categorical, per_row
from dreamgym.models.reduction import masked_mean
from tests.contract.test_models import (  # noqa: F401 - collected here, with the model below
    assert_compiles_to_one_graph,
    test_a_row_does_not_depend_on_its_neighbours,
    test_a_step_draws_nothing_from_the_global_generator,
    test_a_step_leaves_its_arguments_as_they_were,
    test_a_temperature_for_each_row_is_that_number_in_its_row,
    test_decoded_observations_are_in_the_space,
    test_every_leaf_is_batch_first_and_keeps_its_shape,
    test_imagine_is_repeated_steps,
    test_observe_and_step_give_features_of_the_promised_width,
    test_predictions_have_one_number_a_row_in_their_ranges,
    test_prepare_is_the_same_function,
    test_same_noise_same_result_and_other_noise_another,
    test_the_loss_is_finite_reaches_every_parameter_and_ignores_padding,
)
from tests.small_worlds import random_actions, world_of

TOKENS, WINDOW, WIDTH = 11, 3, 8


@dataclass(frozen=True, kw_only=True)
class TokensConfig:
    """Nothing to choose."""


class Tokens(WorldModel):
    """The first number of an observation as a token; a window of tokens predicts the next.

    State: `tokens` (B, WINDOW) int64 and `length` (B,) int64, how many of them are set.
    """

    config_type = TokensConfig

    def __init__(self, observation_space: gym.Space, action_space: gym.Space) -> None:
        super().__init__(observation_space, action_space, TokensConfig())
        self.feature_dim, self.noise_dim = WIDTH * WINDOW, 1
        self.embed = nn.Embedding(TOKENS, WIDTH)
        self.encode_action = ActionEncoder(action_space)
        self.head = nn.Linear(WIDTH * WINDOW + self.encode_action.dim, TOKENS + 2)
        self.register_buffer("worst_return", torch.zeros(()))

    def initial(self, batch_size: int) -> State:
        zeros = torch.zeros(batch_size, WINDOW + 1, dtype=torch.int64)
        return {"tokens": zeros[:, 1:], "length": zeros[:, 0]}

    def observe(self, state: State, action: Tensor, observation: Tensor, noise: Tensor) -> State:
        return self._push(state, self._token(observation))

    def step(self, state, action, noise, temperature=1.0):
        logits, reward, termination = self._outputs(self.features(state), action)
        token = categorical(logits / per_row(temperature, logits), noise[:, 0])
        prediction = Prediction(reward, termination.sigmoid(), torch.zeros_like(reward))
        outside = token == TOKENS - 1
        return self._push(state, token), end_outside_data(prediction, outside, self.worst_return)

    def features(self, state: State) -> Tensor:
        place = torch.arange(WINDOW, 0, -1)
        known = place <= state["length"].unsqueeze(-1)
        return (self.embed(state["tokens"]) * known.unsqueeze(-1)).flatten(1)

    def decode(self, state: State) -> Tensor:
        value = (state["tokens"][:, -1:].float() / (TOKENS - 1)) * 6 - 3
        return value.expand(-1, 4)

    def loss(self, segment: Segment, noise: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        tokens = self._token(segment.observation)
        state, losses = self.initial(len(tokens)), []
        for t in range(segment.action.shape[1]):
            state = self._push(state, tokens[:, t])
            logits, reward, ends = self._outputs(self.features(state), segment.action[:, t])
            error = (reward - segment.reward[:, t]).square()
            error = error + nn.functional.softplus(ends) - ends * segment.terminated[:, t]
            losses.append(
                error + nn.functional.cross_entropy(logits, tokens[:, t + 1], reduction="none")
            )
        total = masked_mean(torch.stack(losses, 1), segment.mask)
        return total, {"total": total.detach()}

    def _outputs(self, features: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        outputs = self.head(torch.cat([features, self.encode_action(action)], -1))
        return outputs[:, :TOKENS], outputs[:, TOKENS], outputs[:, TOKENS + 1]

    def _token(self, observation: Tensor) -> Tensor:
        return ((observation[..., 0] + 3) / 6 * (TOKENS - 1)).round().long().clamp(0, TOKENS - 1)

    def _push(self, state: State, token: Tensor) -> State:
        tokens = torch.cat([state["tokens"][:, 1:], token.unsqueeze(-1)], -1)
        return {"tokens": tokens, "length": (state["length"] + 1).clamp(max=WINDOW)}


@pytest.fixture
def model() -> WorldModel:
    torch.manual_seed(0)
    space = gym.spaces.Box(-3.0, 3.0, (4,), np.float32)
    return Tokens(space, gym.spaces.Discrete(3)).eval().requires_grad_(False)


def test_the_step_compiles_to_one_graph(model):
    assert_compiles_to_one_graph(model)


def test_the_engine_resets_integer_leaves_row_by_row(model):
    env = DreamVectorEnv(
        world_of(model, horizon=3),
        8,
        view="latent",
        device="cpu",
        output="torch",
        autoreset_mode="SameStep",
    )
    env.reset(seed=0)
    for step in range(7):
        env.step(random_actions(env.single_action_space, 8, step))
    state = env.dreams.model
    assert state["tokens"].dtype == state["length"].dtype == torch.int64
    assert ((state["tokens"] >= 0) & (state["tokens"] < TOKENS)).all()
    assert (state["length"] <= WINDOW).all()
