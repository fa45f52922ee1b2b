"""What is exported, as modules of plain tensors with named inputs and outputs.

A graph is a pure function: the caller keeps the state, and draws the noise.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import gymnasium as gym
import torch
from torch import Tensor, nn

from dreamgym.models import Decodes, WorldModel
from dreamgym.models.base import State, select, zero_action
from dreamgym.models.observations import Observation, join_parts, observation_boxes, tensor_dtype
from dreamgym.transfer.export.guard import Guard

STATE, FOLLOWING = "state.", "next_state."
START, PREVIOUS, NOISE = "start", "previous_action", "noise"
ACTION, SURPRISE, DISAGREEMENT = "action", "surprise", "disagreement"
TEMPERATURE = "temperature"


class Graph(nn.Module, ABC):
    """A module whose inputs and outputs have names.

    Attributes:
        examples: an example of each input by name, in the order of `forward`'s arguments.
        outputs: names of what `forward` returns.
    """

    examples: dict[str, Tensor]
    outputs: list[str]

    @abstractmethod
    def run(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the outputs by name."""

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs for the inputs, in the order of their names."""
        outputs = self.run(dict(zip(self.examples, values, strict=True)))
        return tuple(outputs[name] for name in self.outputs)


class ReactiveGraph(Graph):
    """A policy of the observation view alone: observation to action.

    Args:
        actor: module from raw observations (B, ...) to raw actions (B, ...).
        spaces: observation space and action space.
    """

    def __init__(self, actor: nn.Module, spaces: tuple[gym.Space, gym.Space]) -> None:
        super().__init__()
        self.actor = actor
        self.keys = list(observation_boxes(spaces[0]))
        self.examples = observation_examples(spaces[0])
        self.dtype = tensor_dtype(spaces[1].dtype)
        self.outputs = [ACTION]

    def run(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """See `Graph.run`."""
        return {ACTION: self.actor(take_observation(inputs, self.keys)).to(self.dtype)}


class FilterGraph(Graph):
    """One cycle of a controller: filter an observation, act on the state, and judge.

    Args:
        model: the world model, on the CPU and in eval mode.
        actor: module from features or raw observations (B, ...) to raw actions; None for a filter
            without a policy.
        view: what the actor sees, "observation" or "latent".
        guard: judges each observation; None for no judgement.
    """

    def __init__(
        self, model: WorldModel, actor: nn.Module | None, view: str, guard: Guard | None
    ) -> None:
        super().__init__()
        self.model, self.actor, self.guard, self.view = model, actor, guard, view
        self.keys = list(observation_boxes(model.observation_space))
        self.dtype = tensor_dtype(model.action_space.dtype)
        state = model.initial(1)
        self.leaves = list(state)
        self.examples = {
            **observation_examples(model.observation_space),
            START: torch.ones(1, dtype=torch.bool),
            PREVIOUS: zero_action(model.action_space, 1, "cpu"),
            NOISE: torch.full((1, model.noise_dim), 0.5),
            **{STATE + name: leaf for name, leaf in state.items()},
        }
        self.outputs = [FOLLOWING + name for name in self.leaves]
        if actor is not None:
            self.outputs.insert(0, ACTION)
        if guard is not None:
            self.outputs.append(SURPRISE)
            self.outputs += [DISAGREEMENT] if model.has_uncertainty else []

    def run(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """See `Graph.run`."""
        model, start = self.model, inputs[START]
        observation = take_observation(inputs, self.keys)
        given = {name: inputs[STATE + name] for name in self.leaves}
        state = select(start, model.initial(len(start)), given)
        action = inputs[PREVIOUS]
        shaped = start.view(-1, *[1] * (action.ndim - 1))
        action = torch.where(shaped, torch.zeros_like(action), action)
        after = model.observe(state, action, observation, inputs[NOISE])
        outputs = {FOLLOWING + name: leaf for name, leaf in after.items()}
        if self.actor is not None:
            seen = model.features(after) if self.view == "latent" else observation
            outputs[ACTION] = self.actor(seen).to(self.dtype)
        if self.guard is not None:
            judged = self.guard(state, action, observation, after)
            # Nothing was expected of an episode's first observation.
            outputs[SURPRISE] = torch.where(start, 0.0, judged.surprise)
            outputs[DISAGREEMENT] = torch.where(start, 0.0, judged.disagreement)
        return outputs


class StepGraph(Graph):
    """The world's step: state, action and noise to the next state and what is predicted of it.

    Args:
        model: the world model, on the CPU and in eval mode.
        rows: number of rows of every call.
    """

    def __init__(self, model: WorldModel, rows: int) -> None:
        super().__init__()
        self.model = model
        self.keys = list(observation_boxes(model.observation_space))
        state = model.initial(rows)
        self.leaves = list(state)
        self.examples = {
            **{STATE + name: leaf for name, leaf in state.items()},
            ACTION: zero_action(model.action_space, rows, "cpu"),
            NOISE: torch.full((rows, model.noise_dim), 0.5),
            TEMPERATURE: torch.ones(()),
        }
        self.outputs = [FOLLOWING + name for name in self.leaves]
        self.outputs += ["reward", "termination", "uncertainty", "features"]
        if isinstance(model, Decodes):
            self.outputs += list(observation_examples(model.observation_space))

    def run(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """See `Graph.run`."""
        state: State = {name: inputs[STATE + name] for name in self.leaves}
        following, prediction = self.model.step(
            state, inputs[ACTION], inputs[NOISE], inputs[TEMPERATURE]
        )
        outputs = {FOLLOWING + name: leaf for name, leaf in following.items()}
        outputs |= prediction._asdict()
        outputs["features"] = self.model.features(following)
        if isinstance(self.model, Decodes):
            decoded = self.model.decode(following)
            parts = decoded if isinstance(decoded, dict) else {"": decoded}
            outputs |= {observation_name(key): part for key, part in parts.items()}
        return outputs


def observation_name(key: str) -> str:
    """Return the name of an input or output for a part of the observation."""
    return f"observation.{key}" if key else "observation"


def observation_examples(space: gym.Space) -> dict[str, Tensor]:
    """Return an observation of zeros by the names of its parts."""
    return {
        observation_name(key): torch.zeros((1, *box.shape), dtype=tensor_dtype(box.dtype))
        for key, box in observation_boxes(space).items()
    }


def take_observation(inputs: dict[str, Tensor], keys: Sequence[str]) -> Observation:
    """Return the observation among the inputs of a graph."""
    return join_parts({key: inputs[observation_name(key)] for key in keys})
