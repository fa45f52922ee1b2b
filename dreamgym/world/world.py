"""World: a fitted world model with all that is needed to dream in it, and to judge it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
from safetensors.torch import save_file

from dreamgym._files import atomic_folder, nearest
from dreamgym.data.frame_skip import FrameSkip, SkipFrames, frame_skip_of
from dreamgym.data.spaces import space_to_json
from dreamgym.errors import WorldError
from dreamgym.models import ModelSpec, State, WorldModel
from dreamgym.models.observations import is_image, observation_boxes
from dreamgym.world import serialization, zoo
from dreamgym.world.card import write_card
from dreamgym.world.start_states import StartStates


@dataclass(kw_only=True)
class World:
    """What is saved of a fit: a folder on disk, an environment when dreamt in.

    Attributes:
        model: the world model, in eval mode, its parameters frozen.
        starts: the bank of states from which dreams begin.
        env_spec: the real environment's Gymnasium spec as JSON, or None where there was none.
        horizon: the recommended number of steps after which a dream is truncated.
        termination: what is recommended to end a dream: "sample" the predicted probability, or the
            probability from which on it ends.
        provenance: dataset and its checksum, versions, seed, the fit's settings and figures.
        quality: figures measured on held-out episodes.
        name: what the world is called; the folder's name once it is saved.
        frame_skip: how many steps of the real environment one step of a dream spans; the horizon
            and the actions are in the dream's steps.
    """

    model: WorldModel
    starts: StartStates
    env_spec: str | None
    horizon: int
    termination: str | float = "sample"
    provenance: dict[str, Any] = field(default_factory=dict)
    quality: dict[str, Any] = field(default_factory=dict)
    name: str = "unnamed"
    frame_skip: FrameSkip = field(default_factory=FrameSkip)

    def __repr__(self) -> str:
        """One line: weights and starts are not for reading. A model of one's own has no family."""
        said = f"model={type(self.model).__name__}, env_id={self.env_id!r}, horizon={self.horizon}"
        return f"World({self.name!r}, {said}, starts={self.starts.size})"

    @property
    def family(self) -> str:
        """The name that the table of families has for the model."""
        return ModelSpec.of(self.model).family

    @property
    def observation_space(self) -> gym.Space:
        """Of one real environment."""
        return self.model.observation_space

    @property
    def action_space(self) -> gym.Space:
        """Of one real environment, with the world's frame skip."""
        return self.model.action_space

    @property
    def env_id(self) -> str | None:
        """Id of the real environment, or None."""
        return json.loads(self.env_spec)["id"] if self.env_spec else None

    @property
    def real_limit(self) -> int | None:
        """Steps of a dream after which the real environment would truncate it, or None."""
        limit = json.loads(self.env_spec)["max_episode_steps"] if self.env_spec else None
        return self.frame_skip.count(limit) if limit else None

    @property
    def default_view(self) -> str:
        """What transfers with no wrapper: "observation" for vectors, "latent" for pixels."""
        boxes = observation_boxes(self.observation_space).values()
        return "latent" if any(map(is_image, boxes)) else "observation"

    def real_env(self, **kwargs: Any) -> gym.Env:
        """Make the real environment that this world was fitted to, with the world's frame skip.

        Only the id and the JSON-plain arguments of the stored spec are used: it must be registered
        here, for a class path out of a file is never imported.

        Args:
            **kwargs: further arguments of `gym.make`, such as `render_mode`.

        Raises:
            WorldError: the data came from no registered environment, or from a wrapped one.
        """
        if self.env_spec is None:
            raise WorldError(
                f"world {self.name!r} was fitted to data that names no environment; "
                "make the real environment yourself and pass it"
            )
        spec = json.loads(self.env_spec)
        if ":" in spec["id"]:
            raise WorldError(
                f"world {self.name!r} names the environment {spec['id']!r} with a module, which "
                "is not imported for a file; import it yourself and pass the environment"
            )
        if spec.get("additional_wrappers"):
            raise WorldError(
                f"world {self.name!r} was fitted to {spec['id']!r} inside further wrappers, which "
                "are not imported from a file; make the wrapped environment yourself and pass it"
            )
        arguments = {**spec["kwargs"], **kwargs}
        if spec["max_episode_steps"]:
            arguments.setdefault("max_episode_steps", spec["max_episode_steps"])
        return self.adapted(gym.make(spec["id"], **arguments))

    def adapted(self, env: gym.Env) -> gym.Env:
        """The real environment as the world was fitted to it: its observation keys, its frame skip.

        Raises:
            WorldError: it has another frame skip already.
        """
        skip, given = self.frame_skip, frame_skip_of(env)
        if given == FrameSkip() != skip:
            env = SkipFrames(env, steps=skip.steps, actions=skip.actions)
        elif given != skip:
            raise WorldError(
                f"the environment has {given}, world {self.name!r} was fitted with {skip}; give "
                "the environment without a frame skip"
            )
        mine, its = self.observation_space, env.observation_space
        if not isinstance(mine, gym.spaces.Dict) or not isinstance(its, gym.spaces.Dict):
            return env
        if mine.spaces.keys() >= its.spaces.keys() or not mine.spaces.keys() <= its.spaces.keys():
            return env
        return gym.wrappers.FilterObservation(env, list(mine.spaces))

    def with_model(self, model: WorldModel) -> World:
        """The same world with another model of the same states, such as a composition around it.

        `world.with_model(Pessimistic(world.model, weight=1.0))` dreams from the same starts. The
        figures of `quality` stay those of the model that was fitted.

        Args:
            model: put into eval mode, its parameters frozen.

        Raises:
            TypeError: no model.
            WorldError: its states are not those of the starts, its spaces are others, or it knows
                the reward of single steps, and the world has a frame skip.
        """
        given: Any = model
        if not isinstance(given, WorldModel):
            raise TypeError(f"a {type(given).__name__} is no model; of a world give its `.model`")
        if self.frame_skip.steps > 1 and model.assumes_single_env_steps:
            raise WorldError(
                f"the model knows the reward of one real step, and a step of world {self.name!r} "
                f"is {self.frame_skip}; give KnownReward a function of its own for that"
            )
        spaces = (model.observation_space, model.action_space)
        if spaces != (self.observation_space, self.action_space):
            raise WorldError(
                f"the model is of {spaces}, world {self.name!r} of "
                f"{(self.observation_space, self.action_space)}; give a model of the same spaces"
            )
        misfit = _misfit(model, self.starts.states)
        if misfit:
            raise WorldError(
                f"the starts of world {self.name!r} do not fit the model: {misfit}; fit a world to "
                "this model, or make starts for it with dreamgym.starts.burn_in"
            )
        return replace(self, model=model.eval().requires_grad_(False))

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write the world's folder: aside first, then renamed.

        Args:
            path: the folder to make.
            overwrite: let what stands at `path` give way.

        Raises:
            FileExistsError: `path` exists and `overwrite` is false.
            DiskFullError: no room; what stood at `path` is as it was.
            WorldError: the model holds a Python function, or is of no family: no file can say it.
        """
        path = Path(path)
        try:
            spec = ModelSpec.of(self.model).to_json()
        except ValueError as error:
            raise WorldError(f"world {self.name!r} cannot be saved: {error}") from error
        weights = {key: value.contiguous() for key, value in self.model.state_dict().items()}
        starts = {key: value.contiguous() for key, value in self.starts.states.items()}
        with atomic_folder(path, replace=overwrite) as folder:
            save_file(weights, folder / serialization.MODEL_FILE)
            save_file(starts, folder / serialization.STARTS_FILE)
            description = {
                **spec,
                "observation_space": space_to_json(self.observation_space),
                "action_space": space_to_json(self.action_space),
                "env_spec": json.loads(self.env_spec) if self.env_spec else None,
                "horizon": self.horizon,
                "termination": self.termination,
                **({"frame_skip": self.frame_skip.to_json()} if self.frame_skip.steps > 1 else {}),
                "beginnings": self.starts.beginnings,
                "provenance": self.provenance,
                "quality": self.quality,
            }
            serialization.write_description(folder, description)
            write_card(folder, path.name, description)
        self.name = path.name
        return path


def load(name_or_path: str | Path) -> World:
    """Load a world: a folder, or the name or id of one that ships with dreamgym.

    Every file is checked against the checksums in world.json before it is used, and nothing in
    any of them is executed.

    Raises:
        WorldError: there is no such world; a file is missing or changed; the family is unknown;
            the folder was written by a newer dreamgym; weights or starts do not fit the config.
    """
    folder = _find(name_or_path)
    description = serialization.read_description(folder)
    model = _build(folder, description)
    env_spec = description["env_spec"]
    return World(
        model=model,
        starts=_starts(folder, model, description["beginnings"]),
        env_spec=json.dumps(env_spec) if env_spec else None,
        horizon=description["horizon"],
        termination=serialization.termination(folder, description),
        provenance=description["provenance"],
        quality=description["quality"],
        name=folder.name,
        frame_skip=serialization.frame_skip(folder, description),
    )


def as_world(world: World | str | Path) -> World:
    """Return a world as it is, or load the one of that folder, name or id.

    Raises:
        TypeError: it is something else.
        WorldError: it cannot be loaded; see `load`.
    """
    given: Any = world
    if isinstance(given, World):
        return given
    if isinstance(given, str | Path):
        return load(given)
    raise TypeError(
        f"expected a World, the folder of one or the name of one that ships, got "
        f"{type(given).__name__}"
    )


def _find(name_or_path: str | Path) -> Path:
    folder = Path(name_or_path)
    if folder.is_dir():
        return folder
    shipped = zoo.path(str(name_or_path))
    if shipped.parent == zoo.folder() and shipped.name in zoo.names():
        return shipped
    if folder.exists():
        raise WorldError(f"{folder} is a file; a world is a folder with {zoo.WORLD_FILE} in it")
    raise WorldError(
        f"no world {str(name_or_path)!r}: there is no such folder, and of the worlds that ship, "
        f"{nearest(str(name_or_path), zoo.names())}"
    )


def _build(folder: Path, description: dict[str, Any]) -> WorldModel:
    """The model with its weights; the global generator is left as it was."""
    observation_space, action_space, spec = serialization.parse(folder, description)
    with torch.random.fork_rng(devices=[]):
        try:
            model = spec.build(observation_space, action_space)
        except (TypeError, ValueError, RuntimeError, MemoryError) as error:
            raise WorldError(f"{folder / zoo.WORLD_FILE} cannot be understood: {error}") from error
    weights = serialization.read_tensors(folder, serialization.MODEL_FILE)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        path = folder / serialization.MODEL_FILE
        said = f"{path} does not fit the config in {zoo.WORLD_FILE}; fit the world again: {error}"
        raise WorldError(said) from error
    return model.eval().requires_grad_(False)


def _starts(folder: Path, model: WorldModel, beginnings: int) -> StartStates:
    states = serialization.read_tensors(folder, serialization.STARTS_FILE)
    path = folder / serialization.STARTS_FILE
    misfit = _misfit(model, states)
    if misfit:
        raise WorldError(f"{path} does not fit the model: {misfit}; fit the world again")
    try:
        return StartStates(states=states, beginnings=beginnings)
    except ValueError as error:
        raise WorldError(f"{path} cannot be used: {error}; fit the world again") from error


def _misfit(model: WorldModel, states: State) -> str:
    """How states differ from the model's, in words; empty where they do not."""
    wanted = {key: tuple(leaf.shape[1:]) for key, leaf in model.initial(1).items()}
    given = {key: tuple(leaf.shape[1:]) for key, leaf in states.items()}
    if wanted == given:
        return ""
    return f"its states have leaves of shapes {given}, the model's are {wanted}"
