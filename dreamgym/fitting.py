"""Fit a world model to logged data: the one training loop, for every family."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dreamgym import checkpoint
from dreamgym.checkpoint import Progress
from dreamgym.data import AnyDataset, Dataset, opened
from dreamgym.data.signals import uninterrupted
from dreamgym.device import resolve_device, seeded, threads
from dreamgym.files import nearest
from dreamgym.fit_batches import HELD_OUT, TRAINING, Batches, Drawn
from dreamgym.fit_config import FitConfig, FitError, recommended
from dreamgym.fit_log import Log, logger
from dreamgym.fitted_world import Fitted, world_of
from dreamgym.models import FAMILIES, ModelSpec, WorldModel, measure, plain
from dreamgym.quality import as_segment
from dreamgym.schedule import learning_rate
from dreamgym.world import World

DatasetLike = str | Path | AnyDataset | Sequence[tuple[str | Path | Dataset, float]]
ProgressCallback = Callable[[int, int, dict[str, float]], None]
REPORT_EVERY = 25
EVALUATION_BATCHES = 8
Look = Callable[[WorldModel], dict[str, float]]
"""Looks at a model in eval mode, without gradients; its figures go into the log and the history."""


def fit(
    dataset: DatasetLike,
    out: str | Path | None = None,
    *,
    family: str = "mdn-rnn",
    seed: int = 0,
    config: FitConfig | None = None,
    progress: ProgressCallback | None = None,
) -> World:
    """Fit a world to a dataset.

    The episodes are split, normalisers are fitted on the training ones, and the weights with the
    lowest loss on the held-out ones are kept. With `out`, a checkpoint lies beside it while the
    fit runs: a fit that was killed goes on from there when it is called again the same way.

    Args:
        dataset: a dataset, or the path of one; or several with weights, `[(path, 3.0), ...]`, from
            which segments are then drawn by weight. How it is read (memory, observation keys, the
            user's word on a foreign format) is said by opening it: `fit(Dataset(path, ...))`.
        out: folder of the world to make; None keeps it in memory, without checkpoints.
        family: a name of the table of families.
        seed: of the split, the weights, the batches and the noise.
        config: settings; None for those of the family's authors (`dreamgym.recommended`).
        progress: called with updates done, updates in all, and the losses.

    Returns:
        The world, saved at `out` if that is given.

    Raises:
        ValueError: an unknown family or device.
        FileExistsError: `out` exists and may not be overwritten.
        DatasetError: the data cannot be used (too few episodes, not a number, ...).
        CheckpointError: beside `out` lies the checkpoint of another fit.
        FitError: a loss is not finite.
        DiskFullError: no room for a checkpoint or the world.
    """
    config = config or recommended(family)
    if family not in FAMILIES:
        raise ValueError(f"unknown family {family!r}: {nearest(family, FAMILIES)}")
    target = Path(out) if out is not None else None
    if target is not None and target.exists() and not config.overwrite:
        raise FileExistsError(f"{target} exists already; give another path or allow overwriting it")
    began = time.perf_counter()
    with threads(config.threads), opened(dataset) as data:
        job = _Fit(data, family, seed, config, target)
        job.run(progress or (lambda done, total, figures: None))
        world = job.world(time.perf_counter() - began)
    if target is not None:
        world.save(target, overwrite=config.overwrite)
        checkpoint.path_for(target).unlink(missing_ok=True)
    return world


class _Fit:
    """One fit: model, optimiser and data, and how far it has come."""

    def __init__(
        self, data: AnyDataset, family: str, seed: int, config: FitConfig, target: Path | None
    ) -> None:
        self.data, self.family, self.seed, self.config = data, family, seed, config
        self.checkpoint = checkpoint.path_for(target) if target is not None else None
        self.device = resolve_device(config.device)
        self.training, self.held_out = data.split(config.held_out, seed)
        self.model = self._new_model().to(self.device)
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            parameters, lr=config.learning_rate, weight_decay=config.weight_decay
        )
        self.parameters = parameters
        self.batches = self._batches(self.training, TRAINING)
        self.held_out_batches = self._batches(self.held_out, HELD_OUT)
        self.looks: list[Look] = []
        self.progress = Progress()

    def run(self, report: ProgressCallback) -> None:
        """Update until done, from the last checkpoint on; leave the best weights in the model."""
        if self.checkpoint is not None and self.checkpoint.exists():
            self.progress = checkpoint.restore(
                self.checkpoint, self.fingerprint(), self.model, self.optimizer
            )
        self.data.verify()  # what is held in memory was, and most of the rest
        batches = self.batches.following(self.progress.update)
        with logger(self.config.tensorboard) as log, closing(batches) as drawn:
            try:
                while self.progress.update < self.config.updates:
                    with uninterrupted():  # an update is done, or not begun
                        figures = self._update(next(drawn), log)
                    if figures:
                        report(self.progress.update, self.config.updates, figures)
            except KeyboardInterrupt:
                if all(bool(p.isfinite().all()) for p in self.parameters):
                    self._save()
                raise
        self.model.load_state_dict(self.progress.best)
        self.model.eval().requires_grad_(False)

    def _batches(self, episodes: NDArray, stream: int) -> Batches:
        return Batches(
            self.data,
            episodes,
            length=self.config.segment_length,
            batch_size=self.config.batch_size,
            noise_dim=self.model.noise_dim,
            seed=(self.seed, stream),
        )

    def _update(self, drawn: Drawn, log: Log) -> dict[str, float]:
        """One update, and a look at the held-out episodes where one is due; figures to show."""
        config, progress = self.config, self.progress
        self.model.train()
        loss, terms = self._loss(drawn)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(config.learning_rate, progress.update, config.updates)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, config.gradient_clip)
        due = progress.update % REPORT_EVERY == 0
        figures = self._finite({"loss": loss, **terms}) if due else {}
        self.optimizer.step()
        self.model.after_update()
        progress.update += 1
        for name, value in figures.items():
            log(f"fit/{name}", value, progress.update)
        if progress.update % config.evaluate_every == 0 or progress.update == config.updates:
            figures = self._finite({"loss": loss, **terms})
            figures |= self._evaluate(log)
            progress.history.append({"update": progress.update, **figures})
            self._save()
        return figures

    def _loss(self, drawn: Drawn) -> tuple[Tensor, dict[str, Tensor]]:
        segment = as_segment(drawn.batch, self.device)
        noise = torch.from_numpy(drawn.noise).to(self.device)
        with seeded(drawn.seed, self.device):  # dropout, where there is any
            return self.model.loss(segment, noise)

    def _finite(self, terms: dict[str, Tensor]) -> dict[str, float]:
        """The losses as numbers.

        Raises:
            FitError: one of them is not finite.
        """
        figures = {name: float(term.detach()) for name, term in terms.items()}
        for name, value in figures.items():
            if not np.isfinite(value):
                there = self.checkpoint is not None and self.checkpoint.exists()
                kept = f"; the last good checkpoint is {self.checkpoint}" if there else ""
                raise FitError(
                    f"{name} is {value} at update {self.progress.update}{kept}. "
                    "Lower the learning rate or look at the data with `dreamgym check`"
                )
        return figures

    @torch.no_grad()
    def _evaluate(self, log: Log) -> dict[str, float]:
        """Figures of held-out episodes: the loss, and what the looks find.

        The best weights so far are kept.
        """
        self.model.eval()
        looks = [self._loss(self.held_out_batches.draw(k)) for k in range(EVALUATION_BATCHES)]
        losses = torch.stack([loss for loss, _ in looks])
        figures = self._finite({"held_out": losses.mean()})
        self.model.after_evaluation(
            {name: torch.stack([terms[name] for _, terms in looks]).mean() for name in looks[0][1]}
        )
        log("held_out/loss", figures["held_out"], self.progress.update)
        for look in self.looks:
            found = look(self.model)
            figures |= found
            for name, value in found.items():
                log(f"held_out/{name}", value, self.progress.update)
        if figures["held_out"] < self.progress.best_loss:
            self.progress.best_loss = figures["held_out"]
            self.progress.best = {k: v.clone() for k, v in self.model.state_dict().items()}
        return figures

    def _save(self) -> None:
        if self.checkpoint is not None and self.progress.update:
            checkpoint.save(
                self.checkpoint, self.fingerprint(), self.model, self.optimizer, self.progress
            )

    def _new_model(self) -> WorldModel:
        """A model with fresh weights of this seed; the global generator is left as it was."""
        spec = ModelSpec(family=self.family, config=self.config.model)
        with seeded(self.seed, torch.device("cpu")):
            model = spec.build(self.data.observation_space, self.data.action_space)
        episodes = (self.data.episode(int(index)) for index in self.training)
        model.set_statistics(measure((e.observations, e.rewards) for e in episodes))
        return model

    def fingerprint(self) -> dict[str, Any]:
        """What must be the same for a checkpoint to be of this fit."""
        elsewhere = ("device", "threads", "overwrite", "tensorboard", "model")
        settings = {k: v for k, v in asdict(self.config).items() if k not in elsewhere}
        return {
            "dataset": self.data.checksum,
            "family": self.family,
            "seed": self.seed,
            **self.data.selection,
            **settings,
            "model": plain(self.model.config),
        }

    def world(self, seconds: float) -> World:
        """The fitted world."""
        said = {
            "fit": self.fingerprint(),
            "history": self.progress.history,
            "best_held_out_loss": self.progress.best_loss,
            "seconds": round(seconds, 1),
            "device": str(self.device),
        }
        fitted = Fitted(
            model=self.model.cpu(),
            data=self.data,
            training=self.training,
            held_out=self.held_out,
            config=self.config,
            seed=self.seed,
            said=said,
        )
        return world_of(fitted)
