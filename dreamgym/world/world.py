"""World: a fitted world model with everything needed to dream in it and to evaluate it."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
from safetensors.torch import save_file

from dreamgym._device import float32_by_default, resolve_device
from dreamgym._files import atomic_file, atomic_folder, local_path
from dreamgym._settings import nearest
from dreamgym.data.frame_skip import FrameSkip, SkipFrames, frame_skip_of
from dreamgym.data.images import image_layout
from dreamgym.data.spaces import space_to_json
from dreamgym.errors import DreamgymError, WorldError, file_errors
from dreamgym.models import ModelSpec, State, WorldModel
from dreamgym.models.base import zero_action
from dreamgym.models.observations import is_image, observation_boxes
from dreamgym.models.spec import check_is_model
from dreamgym.models.weights import in_todays_layout, not_finite, shape_mismatch
from dreamgym.world import serialization, zoo
from dreamgym.world.card import PICTURE_FILE, write_card
from dreamgym.world.hub import Pushed, download, is_hub_name, parse_name, push_folder, saved
from dreamgym.world.start_states import StartStates

_TRIED_STARTS = 16
"""Start states from which loading takes a step."""


@dataclass(kw_only=True)
class World:
    """The result of a fit: a folder on disk, and an environment when dreamt in.

    Attributes:
        model: world model in eval mode, its parameters frozen.
        starts: bank of states from which dreams begin.
        env_spec: Gymnasium spec of the real environment as JSON, or None if there is none.
        horizon: recommended number of steps after which a dream is truncated.
        termination: recommended rule for ending a dream: "sample" from the predicted probability,
            or the probability at and above which it ends.
        provenance: dataset and its checksum, versions, seed, settings and figures of the fit.
        quality: figures measured on held-out episodes.
        name: name of the world; the folder's name once it is saved.
        frame_skip: steps of the real environment in one step of a dream; the horizon and the
            actions are in the dream's steps.
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
        """Return one line, without weights and start states.

        The model is named by its class, because a user's own model has no family.
        """
        return (
            f"World({self.name!r}, model={type(self.model).__name__}, env_id={self.env_id!r}, "
            f"horizon={self.horizon}, starts={self.starts.size})"
        )

    @property
    def family(self) -> str:
        """Name of the model's family in the registry."""
        return ModelSpec.of(self.model).family

    @property
    def observation_space(self) -> gym.Space:
        """Observation space of one real environment."""
        return self.model.observation_space

    @property
    def action_space(self) -> gym.Space:
        """Action space of a dream: that of one real environment, with the world's frame skip.

        Or that of latent actions, where the model is played in them.
        """
        return self.model.action_space

    def check_takes_data_actions(self, error: type[DreamgymError] = WorldError) -> None:
        """Check that dreams take the actions of the data, which the real environment takes.

        Args:
            error: class of the exception that is raised if they take latent actions.
        """
        if not self.model.takes_data_actions:
            raise error(
                f"dreams of world {self.name!r} take latent actions ({self.action_space}), which "
                "neither a dataset nor a real environment has; pass the world with its real "
                "actions (world.with_model(world.model.in_real_actions()))"
            )

    @property
    def env_id(self) -> str | None:
        """Id of the real environment, or None."""
        return json.loads(self.env_spec)["id"] if self.env_spec else None

    @property
    def real_limit(self) -> int | None:
        """Steps of a dream after which the real environment would truncate it, or None.

        It is the spec's time limit, or the one that the data shows, if that is shorter.
        """
        spec = json.loads(self.env_spec)["max_episode_steps"] if self.env_spec else None
        limits = [each for each in (spec, self.provenance.get("dataset_time_limit")) if each]
        return self.frame_skip.count(min(limits)) if limits else None

    @property
    def default_view(self) -> str:
        """The view whose policies need no wrapper: "observation", or "latent" for images."""
        boxes = observation_boxes(self.observation_space).values()
        return "latent" if any(map(is_image, boxes)) else "observation"

    def real_env(self, **kwargs: Any) -> gym.Env:
        """Make the real environment that this world was fitted to, with the world's frame skip.

        Only the id and the JSON-plain arguments of the stored spec are used. The environment must
        already be registered: a class path from a file is never imported.

        Args:
            **kwargs: further arguments of `gym.make`, such as `render_mode`.

        Raises:
            WorldError: the data came from an environment that is not registered, or is wrapped.
        """
        if self.env_spec is None:
            raise WorldError(
                f"world {self.name!r} was fitted to data that names no environment; "
                "make the real environment yourself and pass it"
            )
        spec = json.loads(self.env_spec)
        if ":" in spec["id"]:
            raise WorldError(
                f"world {self.name!r} names the environment {spec['id']!r} with a module, and "
                "modules named in a file are not imported; import it yourself and pass the "
                "environment"
            )
        if spec.get("additional_wrappers"):
            raise WorldError(
                f"world {self.name!r} was fitted to {spec['id']!r} inside further wrappers, and "
                "wrappers named in a file are not imported; make the wrapped environment yourself "
                "and pass it"
            )
        arguments = {**spec["kwargs"], **kwargs}
        if spec["max_episode_steps"]:
            arguments.setdefault("max_episode_steps", spec["max_episode_steps"])
        try:
            return self.adapted(gym.make(spec["id"], **arguments))
        except gym.error.UnregisteredEnv as error:
            raise WorldError(
                f"world {self.name!r} was fitted to {spec['id']!r}, which is not registered in "
                "this process; import the module that registers it, or pass the environment: "
                f"env='MODULE:{spec['id']}' (--env MODULE:{spec['id']} on the command line) "
                f"imports MODULE for it (Gymnasium: {str(error).strip().rstrip('.')})"
            ) from None

    def adapted(self, env: gym.Env) -> gym.Env:
        """Wrap a real environment to have the world's observation keys and frame skip.

        Raises:
            WorldError: the environment already has another frame skip.
        """
        expected, actual = self.frame_skip, frame_skip_of(env)
        if actual == FrameSkip() != expected:
            env = SkipFrames(env, steps=expected.steps, actions=expected.actions)
        elif actual != expected:
            raise WorldError(
                f"the environment has {actual}, but world {self.name!r} was fitted with "
                f"{expected}; pass the environment without a frame skip"
            )
        ours, theirs = self.observation_space, env.observation_space
        if not isinstance(ours, gym.spaces.Dict) or not isinstance(theirs, gym.spaces.Dict):
            return env
        if not ours.spaces.keys() < theirs.spaces.keys():
            return env
        return gym.wrappers.FilterObservation(env, list(ours.spaces))

    def with_model(self, model: WorldModel) -> World:
        """Return this world with another model of the same states, such as a wrapper around it.

        `world.with_model(Pessimistic(world.model, weight=1.0))` dreams from the same start states.
        The figures in `quality` remain those of the fitted model.

        Args:
            model: model to use; it is put into eval mode and its parameters are frozen.

        Raises:
            TypeError: not a model.
            WorldError: the model's states do not match the start states, its spaces differ, or it
                assumes single steps of the environment and the world has a frame skip.
        """
        check_is_model(model)
        if self.frame_skip.steps > 1 and model.assumes_single_env_steps:
            raise WorldError(
                f"the model computes the reward of one real step, but a step of world "
                f"{self.name!r} is {self.frame_skip}; give KnownReward your own function for that"
            )
        theirs = model.observation_space, model.data_action_space
        ours = self.observation_space, self.model.data_action_space
        if theirs != ours:
            raise WorldError(
                f"the model has the spaces {theirs}, world {self.name!r} has {ours}; give a model "
                "of the same spaces"
            )
        mismatch = _state_mismatch(model, self.starts.states)
        if mismatch:
            raise WorldError(
                f"the start states of world {self.name!r} do not fit the model: {mismatch}; fit a "
                "world to this model, or make start states for it with "
                "dreamgym.world.start_states.burn_in"
            )
        return replace(self, model=model.eval().requires_grad_(False))

    def to(self, device: str | torch.device) -> World:
        """Return this world on a device: itself if it is there, else with copies of its tensors.

        Reports, planners, `transfer_policy`, `clone_policy` and the filter of real observations
        compute on the device of the world. Dreams and `train_policy` choose their own.

        Args:
            device: "auto", "cpu", "cuda", ...; "auto" is CUDA where available.

        Raises:
            ValueError: this machine or this torch has no such device.
        """
        found = resolve_device(device)
        tensors = *self.model.parameters(), *self.model.buffers(), *self.starts.states.values()
        if all(tensor.device == found for tensor in tensors):
            return self
        model = copy.deepcopy(self.model).to(found)
        return replace(self, model=model, starts=self.starts.to(found))

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write the world's folder atomically: to a temporary folder, which is then renamed.

        Args:
            path: folder to make.
            overwrite: overwrite whatever exists at `path`.

        Returns:
            `path`.

        Raises:
            FileExistsError: `path` exists and `overwrite` is false.
            DiskFullError: no space left; what was at `path` is unchanged.
            WorldError: the model holds a Python function or is of an unknown family, which a file
                cannot describe.
        """
        path = local_path(path, WorldError)
        try:
            spec = ModelSpec.of(self.model).to_json()
        except ValueError as error:
            raise WorldError(f"world {self.name!r} cannot be saved: {error}") from error
        weights = {key: value.contiguous() for key, value in self.model.state_dict().items()}
        with atomic_folder(path, replace=overwrite) as folder:
            save_file(weights, folder / serialization.MODEL_FILE)
            save_file(self.starts.states, folder / serialization.STARTS_FILE)
            description = {
                **spec,
                "observation_space": space_to_json(self.observation_space),
                "action_space": space_to_json(self.model.data_action_space),
                "env_spec": json.loads(self.env_spec) if self.env_spec else None,
                "horizon": self.horizon,
                "termination": self.termination,
                **({"frame_skip": self.frame_skip.to_json()} if self.frame_skip.steps > 1 else {}),
                serialization.NUM_EPISODE_STARTS: self.starts.num_episode_starts,
                "provenance": self.provenance,
                "quality": self.quality,
            }
            serialization.write_description(folder, description)
            write_card(folder, path.name, description)
        self.name = path.name
        return path


@float32_by_default()
def load(name_or_path: str | Path) -> World:
    """Load a world.

    Every file is checked against the checksums in world.json before it is used, and nothing in
    the files is executed.

    Args:
        name_or_path: a folder; the name or id of a world that ships with dreamgym; or
            `hf://owner/name@revision`, a world on the Hugging Face Hub, which is downloaded unless
            it is in the cache. Without a revision it is the cached one, or else the newest, and a
            warning says which.

    Raises:
        WorldError: there is no such world; a file is missing or changed; the family is unknown;
            the folder was written by a newer dreamgym; weights or starts do not fit the config; or
            the hub cannot be reached.
        ModuleNotFoundError: a world on the hub is named, and huggingface_hub is not installed.
    """
    if is_hub_name(name_or_path):
        name = parse_name(name_or_path).repo_id.partition("/")[2]
        return replace(_read_folder(download(name_or_path)), name=name)
    return _read_folder(_find_folder(name_or_path))


def push(
    world: World | str | Path, repo_id: str, *, private: bool = False, message: str | None = None
) -> Pushed:
    """Publish a world on the Hugging Face Hub: its files, and its card with the hub's metadata.

    Args:
        world: a world, or what `load` takes.
        repo_id: repository to publish it in, `owner/name`; it is made, or gets a further commit.
        private: whether a repository that is made is private.
        message: message of the commit.

    Returns:
        Its URL, and its name with the commit, `hf://owner/name@commit`, which `load` takes.

    Raises:
        WorldError: there is no such world, or the hub refuses or cannot be reached.
        ModuleNotFoundError: huggingface_hub is not installed.
    """
    if isinstance(world, World) or is_hub_name(world):
        with saved(as_world(world)) as folder:
            return push_folder(folder, repo_id, private=private, message=message)
    folder = _find_folder(world)
    load(folder)  # refuse what cannot be loaded before anything is published
    return push_folder(folder, repo_id, private=private, message=message)


def _read_folder(folder: Path) -> World:
    with file_errors(lambda text: WorldError(f"{folder}: {text}; restore it or fit it again")):
        return _read_world(folder)


def _read_world(folder: Path) -> World:
    description = serialization.read_description(folder)
    model = _load_model(folder, description)
    starts = _load_starts(folder, model, description[serialization.NUM_EPISODE_STARTS])
    if not model.foreign_step:
        _try_a_step(folder, model, starts)
    env_spec = description["env_spec"]
    return World(
        model=model,
        starts=starts,
        env_spec=json.dumps(env_spec) if env_spec else None,
        horizon=description["horizon"],
        termination=serialization.parse_termination(folder, description),
        provenance=description["provenance"],
        quality=description["quality"],
        name=folder.name,
        frame_skip=serialization.parse_frame_skip(folder, description),
    )


def as_world(world: World | str | Path) -> World:
    """Return a `World` unchanged, or load one; see `load`.

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
        f"expected a World, the folder of one, the name of one that ships or hf://owner/name, got "
        f"{type(given).__name__}"
    )


def annotate(
    name_or_path: str | Path,
    *,
    quality: dict[str, Any] | None = None,
    card: dict[str, Any] | None = None,
    picture: bytes | None = None,
) -> Path:
    """Write further figures into the description of a saved world, and write its card again.

    The weights and the start states are not touched.

    Args:
        name_or_path: folder of the world, or the name of one that ships.
        quality: JSON-plain figures to add, which replace those of the same name: "report"
            (`Report.summary()`), "limits" (`Limits.to_json()`), and "transfer", the real returns of
            policies that were trained in the world: `how` they were, `episodes` of each, `policies`
            and `baselines` (lists of `name`, `real`, `interval` and perhaps `dream`), `mean` and
            `interval` over all episodes of all policies, and a `bar`, or None.
        card: what else the card says: `notes` on known failures, `commands` that make the world
            again, and its `licence`; None keeps what is there.
        picture: a PNG for the top of the card; None keeps what is there.

    Returns:
        The world's folder.

    Raises:
        WorldError: there is no such world, or it cannot be read.
    """
    if is_hub_name(name_or_path):
        raise WorldError(
            f"{name_or_path} is on the hub; load it, save it to a folder, and give that"
        )
    folder = _find_folder(name_or_path)
    description = serialization.read_description(folder)
    description["quality"] |= quality or {}
    if card is not None:
        description["provenance"]["card"] = card
    with atomic_file(folder / zoo.WORLD_FILE) as temporary:
        temporary.write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    if picture is not None:
        with atomic_file(folder / PICTURE_FILE) as temporary:
            temporary.write_bytes(picture)
    write_card(folder, folder.name, description)
    return folder


def _find_folder(name_or_path: str | Path) -> Path:
    folder = local_path(name_or_path, WorldError)
    if folder.is_dir():
        return folder
    shipped = zoo.path(str(name_or_path))
    if shipped.parent == zoo.folder() and shipped.name in zoo.names():
        return shipped
    if folder.exists():
        raise WorldError(
            f"{folder} is a file; expected a world, which is a folder with {zoo.WORLD_FILE} in it"
        )
    raise WorldError(
        f"no world {str(name_or_path)!r}: there is no such folder, and among the worlds that ship "
        f"with dreamgym, {nearest(str(name_or_path), zoo.names())}"
    )


def _load_model(folder: Path, description: dict[str, Any]) -> WorldModel:
    """Return the model with its weights, without touching torch's global generator."""
    observation_space, action_space, spec = serialization.parse_spec(folder, description)
    path = folder / serialization.MODEL_FILE
    stored = serialization.read_shapes(folder, serialization.MODEL_FILE)
    empty = {name: torch.empty(shape, device="meta") for name, shape in stored.items()}
    shapes = {name: tuple(leaf.shape) for name, leaf in in_todays_layout(empty).items()}
    try:
        mismatch = shape_mismatch(lambda: spec.build(observation_space, action_space), shapes)
        if mismatch:
            raise WorldError(
                f"{path} does not fit the config in {zoo.WORLD_FILE}; "
                f"{_reading_of_images(observation_space)}fit the world again: {mismatch}"
            )
        with torch.random.fork_rng(devices=[]):
            model = spec.build(observation_space, action_space)
    except WorldError:
        raise
    except (TypeError, ValueError, RuntimeError, MemoryError) as error:
        raise WorldError(f"{folder / zoo.WORLD_FILE} cannot be understood: {error}") from error
    weights = in_todays_layout(serialization.read_tensors(folder, serialization.MODEL_FILE))
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise WorldError(
            f"{path} does not fit the config in {zoo.WORLD_FILE}; "
            f"{_reading_of_images(observation_space)}fit the world again: {error}"
        ) from error
    name = not_finite(model)
    if name is not None:
        raise WorldError(
            f"{path}: {name} holds NaN or an infinity, so its dreams would too; fit the world again"
        )
    return model.eval().requires_grad_(False)


def _reading_of_images(space: gym.Space) -> str:
    """Return how images are read that version 0.1.0 took for other images, or for a vector."""
    layouts = [image_layout(box) for box in observation_boxes(space).values()]
    others = [f"{each.shape} as {each}" for each in layouts if each and each.axes != "HWC"]
    if not others:
        return ""
    return (
        f"it has images of shape {', '.join(others)}, which dreamgym 0.1.0 read as (height, width, "
        "channels) or as a vector, so a world of that version cannot be used; "
    )


def _load_starts(folder: Path, model: WorldModel, num_episode_starts: int) -> StartStates:
    states = serialization.read_tensors(folder, serialization.STARTS_FILE)
    path = folder / serialization.STARTS_FILE
    mismatch = _state_mismatch(model, states)
    if mismatch:
        raise WorldError(f"{path} does not fit the model: {mismatch}; fit the world again")
    try:
        starts = StartStates(states=states, num_episode_starts=num_episode_starts)
    except ValueError as error:
        raise WorldError(f"{path} cannot be used: {error}; fit the world again") from error
    for key, leaf in states.items():
        if not torch.isfinite(leaf).all():
            raise WorldError(
                f"{path}: {key} holds NaN or an infinity, so dreams would begin there; fit the "
                "world again"
            )
    return starts


@torch.no_grad()
def _try_a_step(folder: Path, model: WorldModel, starts: StartStates) -> None:
    """Take one step from a few start states: integers in the files may be no valid indices.

    Raises:
        WorldError: it fails, or predicts what is not a number.
    """
    state = {key: leaf[:_TRIED_STARTS] for key, leaf in starts.states.items()}
    count = min(starts.size, _TRIED_STARTS)
    noise = torch.full((count, model.noise_dim), 0.5)
    try:
        action = zero_action(model.action_space, count, "cpu")
        _, prediction = model.step(state, action, noise)
    except Exception as error:
        raise WorldError(
            f"{folder}: a step from its start states fails ({type(error).__name__}: "
            f"{str(error)[:200]}); its weights or start states are damaged: fit the world again"
        ) from error
    if not all(leaf.isfinite().all() for leaf in prediction):
        raise WorldError(
            f"{folder}: a step from its start states predicts NaN or an infinity; its weights or "
            "start states are damaged: fit the world again"
        )


def _state_mismatch(model: WorldModel, states: State) -> str:
    """Describe how states differ from the model's in shape and dtype; empty if they do not."""
    expected = {key: (tuple(leaf.shape[1:]), leaf.dtype) for key, leaf in model.initial(1).items()}
    actual = {key: (tuple(leaf.shape[1:]), leaf.dtype) for key, leaf in states.items()}
    if expected == actual:
        return ""
    return f"it has leaves of shapes and dtypes {actual}, expected {expected}"
