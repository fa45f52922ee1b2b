"""A whole step as one graph that a device records once and replays.

On a GPU the step of a small model is a hundred kernels, and launching them one by one takes ten
times as long as running them. So the whole step (noise, model, termination, horizon, start states,
statistics) is captured once, on static memory, and replayed with one launch. What callers get is a
copy, which no later step overwrites.

`GRAPHS` lists the kinds of device that have graphs; the rest of this file is independent of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from dreamgym.dream.state import Dreams, Outcome
from dreamgym.models.observations import Observation, map_observation

Step = Callable[[Dreams, Tensor], tuple[Dreams, Outcome]]
"""The signature of `Engine.step`: a pure function of tensors."""

WARM_UPS = 3
"""Runs before a capture, in which libraries allocate workspaces and compilers compile."""


class Graph(Protocol):
    """Work that a device can repeat on the same memory."""

    def record(self, work: Callable[[], None]) -> None:
        """Record the kernels that `work` launches; `work` may be called several times first."""

    def replay(self) -> None:
        """Launch the recorded kernels."""


class CudaGraph:
    """A CUDA graph.

    Args:
        device: GPU of the graph.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.graph = torch.cuda.CUDAGraph()

    def record(self, work: Callable[[], None]) -> None:
        """See `Graph.record`. Warm-ups run on a side stream, as CUDA graphs require."""
        with torch.cuda.device(self.device):
            current, side = torch.cuda.current_stream(), torch.cuda.Stream()
            side.wait_stream(current)
            with torch.cuda.stream(side):
                for _ in range(WARM_UPS):
                    work()
            current.wait_stream(side)
            # Other threads may use the device during the capture; only errors of this one count.
            with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
                work()

    def replay(self) -> None:
        """See `Graph.replay`."""
        self.graph.replay()


GRAPHS: dict[str, Callable[[torch.device], Graph]] = {"cuda": CudaGraph}
"""Graph types by the kind of device that has them."""


class CapturedStep:
    """A step that is replayed as one graph.

    The dreams that it returns are the graph's static memory: the next call overwrites them, and
    reads them from there without a copy. `owned` returns dreams that can be kept.

    Args:
        step: step to capture; it must not sync with the host.
        graph: empty graph of the device that the dreams are on.
        dreams: dreams like those of every later call; copied.
        action: (N, ...) actions like those of every later call; copied.

    Raises:
        RuntimeError: the device cannot capture this step.
    """

    def __init__(self, step: Step, graph: Graph, dreams: Dreams, action: Tensor) -> None:
        self._graph = graph
        self._dreams, self._action = dreams.detach().clone(), action.detach().clone()
        self._leaves = self._dreams.tensors()
        self._step = step
        self._observations: tuple[Observation, Observation]
        self._numbers, self._flags, self._length = (torch.empty(0),) * 3
        graph.record(self._work)

    def __call__(self, dreams: Dreams, action: Tensor) -> tuple[Dreams, Outcome]:
        """Take a step; see `Engine.step`. No gradients are recorded.

        Raises:
            ValueError: the actions have another shape than those of the capture.
        """
        if action.shape != self._action.shape:
            raise ValueError(
                f"actions have shape {tuple(action.shape)}; this step was captured for "
                f"{tuple(self._action.shape)}"
            )
        if dreams is not self._dreams:
            new = dreams.tensors()
            for name, static in self._leaves.items():
                static.copy_(new[name])
        self._action.copy_(action)
        self._graph.replay()
        return self._dreams, self._read_outcome()

    def owned(self, dreams: Dreams) -> Dreams:
        """Return the same dreams in memory that no later step overwrites."""
        return dreams.clone() if dreams is self._dreams else dreams

    def _work(self) -> None:
        """Take a step, gather its outcome, and write the new dreams over the old ones."""
        dreams, outcome = self._step(self._dreams, self._action)
        self._observations = (outcome.observation, outcome.final_observation)
        # Stacked, so that a replay is followed by one copy for each dtype, not one for each leaf.
        self._numbers = torch.stack([outcome.reward, outcome.episode_return, outcome.uncertainty])
        self._flags = torch.stack([outcome.terminated, outcome.truncated, outcome.done])
        self._length = outcome.episode_length
        # By name: a file may hold the leaves of a state in another order than the model gives.
        new = self._without_aliases(dreams)
        for name, static in self._leaves.items():
            static.copy_(new[name])

    def _without_aliases(self, dreams: Dreams) -> dict[str, Tensor]:
        """Return the new leaves; those that share memory with another old leaf are copied."""
        addresses = {leaf.untyped_storage().data_ptr() for leaf in self._leaves.values()}
        return {
            name: new.clone()
            if new is not self._leaves[name] and new.untyped_storage().data_ptr() in addresses
            else new
            for name, new in dreams.tensors().items()
        }

    def _read_outcome(self) -> Outcome:
        """Copy the outcome of the last replay out of the static memory."""
        observation, final = self._observations
        copied = map_observation(torch.clone, observation)
        reward, episode_return, uncertainty = _copied_rows(self._numbers)
        terminated, truncated, done = _copied_rows(self._flags)
        return Outcome(
            observation=copied,
            reward=reward,
            terminated=terminated,
            truncated=truncated,
            done=done,
            final_observation=copied
            if final is observation
            else map_observation(torch.clone, final),
            episode_return=episode_return,
            episode_length=self._length.clone(),
            uncertainty=uncertainty,
        )


def _copied_rows(stacked: Tensor) -> list[Tensor]:
    """Return the rows of a copy.

    Through `data`, since autograd refuses in-place writes into the views that `unbind` returns.
    """
    return [row.data for row in stacked.clone().unbind()]
