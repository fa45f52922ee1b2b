"""The contract on a window of tokens: a state with integer leaves, and a length for each row.

`test_mutations.py` breaks this model to prove that the contract suite notices.
"""

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
from dreamgym.models.statistics import Statistics
from tests.contract.test_models import (  # noqa: F401 - collected here, with the model below
    assert_a_step_predicts_what_the_loss_teaches,
    assert_compiles_to_one_graph,
    test_a_long_dream_depends_on_its_actions,
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
    test_rows_that_begin_at_different_times_do_not_mix,
    test_same_noise_same_result_and_other_noise_another,
    test_the_loss_is_finite_reaches_every_parameter_and_ignores_padding,
    test_the_loss_of_a_transition_does_not_depend_on_later_ones,
    test_what_is_older_is_forgotten_first_in_an_episode_longer_than_any_window,
)
from tests.small_worlds import STATISTICS, random_actions, world_of

TOKENS, WINDOW, WIDTH = 11, 3, 8


@dataclass(frozen=True, kw_only=True)
class TokensConfig:
    """Nothing to choose."""


class Tokens(WorldModel):
    """The first number of an observation as a token; a window of tokens and actions predicts.

    State: `tokens` (B, WINDOW) int64, the newest last; `actions` (B, WINDOW, A) float32, encoded,
    each the one after its token; `length` (B,) int64, how many tokens are set.
    """

    config_type = TokensConfig
    reward_mean: Tensor
    reward_std: Tensor
    worst_return: Tensor

    def __init__(self, observation_space: gym.Space, action_space: gym.Space) -> None:
        super().__init__(observation_space, action_space, TokensConfig())
        self.encode_action = ActionEncoder(action_space)
        self.feature_dim, self.noise_dim = (WIDTH + self.encode_action.dim) * WINDOW, 1
        self.embed = nn.Embedding(TOKENS, WIDTH)
        self.head = nn.Linear(self.feature_dim, TOKENS + 2)
        for name in ("reward_mean", "reward_std", "worst_return"):
            self.register_buffer(name, torch.zeros(()))

    def set_statistics(self, statistics: Statistics) -> None:
        for name in ("reward_mean", "reward_std", "worst_return"):
            getattr(self, name).copy_(getattr(statistics, name))

    def initial(self, batch_size: int) -> State:
        return {
            "tokens": torch.zeros(batch_size, WINDOW, dtype=torch.int64),
            "actions": torch.zeros(batch_size, WINDOW, self.encode_action.dim),
            "length": torch.zeros(batch_size, dtype=torch.int64),
        }

    def observe(self, state: State, action: Tensor, observation: Tensor, noise: Tensor) -> State:
        return self.push(self.acted(state, action), self.token(observation))

    def step(self, state, action, noise, temperature=1.0):
        state = self.acted(state, action)
        logits, reward, logit = self.outputs(state)
        token = categorical(logits / per_row(temperature, logits), noise[:, 0])
        reward = reward * self.reward_std + self.reward_mean
        prediction = Prediction(reward, logit.sigmoid(), torch.zeros_like(reward))
        outside = token == TOKENS - 1
        return self.push(state, token), end_outside_data(prediction, outside, self.worst_return)

    def features(self, state: State) -> Tensor:
        known = torch.arange(WINDOW, 0, -1) <= state["length"].unsqueeze(-1)
        entries = torch.cat([self.embed(state["tokens"]), state["actions"]], -1)
        return (entries * known.unsqueeze(-1)).flatten(1)

    def decode(self, state: State) -> Tensor:
        value = (state["tokens"][:, -1:].float() / (TOKENS - 1)) * 6 - 3
        return value.expand(-1, 4)

    def loss(self, segment: Segment, noise: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        tokens = self.token(segment.observation)
        state, losses = self.initial(len(tokens)), []
        for t in range(segment.action.shape[1]):
            state = self.acted(self.push(state, tokens[:, t]), segment.action[:, t])
            logits, reward, logit = self.outputs(state)
            target = (segment.reward[:, t] - self.reward_mean) / self.reward_std
            error = (reward - target).square()
            error = error + nn.functional.softplus(logit) - logit * segment.terminated[:, t]
            losses.append(
                error + nn.functional.cross_entropy(logits, tokens[:, t + 1], reduction="none")
            )
        total = masked_mean(torch.stack(losses, 1), segment.mask)
        return total, {"total": total.detach()}

    def outputs(self, state: State) -> tuple[Tensor, Tensor, Tensor]:
        """Return the logits of the next token, the standardised reward and the logit of the end."""
        outputs = self.head(self.features(state))
        return outputs[:, :TOKENS], outputs[:, TOKENS], outputs[:, TOKENS + 1]

    def token(self, observation: Tensor) -> Tensor:
        return ((observation[..., 0] + 3) / 6 * (TOKENS - 1)).round().long().clamp(0, TOKENS - 1)

    def acted(self, state: State, action: Tensor) -> State:
        """Enter an action beside the newest token; an empty window takes none."""
        empty = (state["length"] == 0).unsqueeze(-1)
        newest = torch.where(empty, 0.0, self.encode_action(action))
        return state | {"actions": torch.cat([state["actions"][:, :-1], newest[:, None]], 1)}

    def push(self, state: State, token: Tensor) -> State:
        tokens, actions = state["tokens"], state["actions"]
        return {
            "tokens": torch.cat([tokens[:, 1:], token[:, None]], 1),
            "actions": torch.cat([actions[:, 1:], torch.zeros_like(actions[:, :1])], 1),
            "length": (state["length"] + 1).clamp(max=WINDOW),
        }


def tokens_model(model_type: type[Tokens] = Tokens) -> Tokens:
    torch.manual_seed(0)
    space = gym.spaces.Box(-3.0, 3.0, (4,), np.float32)
    model = model_type(space, gym.spaces.Discrete(3))
    model.set_statistics(STATISTICS)
    return model.eval().requires_grad_(False)


@pytest.fixture
def model() -> WorldModel:
    return tokens_model()


def test_a_step_predicts_what_the_loss_teaches(model):
    assert_a_step_predicts_what_the_loss_teaches(model)


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
