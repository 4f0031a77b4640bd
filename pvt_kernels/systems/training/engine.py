"""The loop: trains a system by its recipe."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pvt_kernels.models.checkpoint import Loaded
from pvt_kernels.systems.training import checkpoint, precision, seeding
from pvt_kernels.systems.training.distributed import Processes, mean_of_processes
from pvt_kernels.systems.training.errors import naming
from pvt_kernels.systems.training.evaluation import Inference, evaluate
from pvt_kernels.systems.training.interruption import interruption
from pvt_kernels.systems.training.loading import batches, to_device
from pvt_kernels.systems.training.optimizer import make_optimizer, set_rate
from pvt_kernels.systems.training.order import Seeded, train_order
from pvt_kernels.systems.training.progress import Reporter, peak_bytes
from pvt_kernels.systems.training.recipe import Recipe, override
from pvt_kernels.systems.training.system import System, backbone_of

LAST = "last.pt"


@dataclass(frozen=True, kw_only=True)
class Run:
    """What is trained, on what, and how.

    Attributes:
        recipe: as declared, without `settings`.
        settings: fields of it that are replaced, as `recipe.override` takes them.
        backbone: a name of pvt_kernels.models; the recipe's where None.
        data: the folder that the system's dataset takes.
        output: the folder of checkpoints and logs.
        weights: a classifier's checkpoint for the backbone, to start from.
        resume: whether to go on from the checkpoint in `output`, if there is one.
        precision: one of precision.PRECISIONS.
        recompute: keep only the blocks' inputs for backward, and compute the rest again.
        seed: of everything random.
        workers: processes that read data, for each process of the run.
        save_every: steps between checkpoints; each evaluation is preceded by one too.
        log_every: steps between points of the log.
    """

    system: System
    recipe: Recipe
    settings: Mapping[str, str] = field(default_factory=dict)
    backbone: str | None = None
    data: Path
    output: Path
    weights: Path | None = None
    resume: bool = False
    precision: str = "fp32"
    recompute: bool = False
    seed: int = 0
    workers: int = 0
    save_every: int = 1000
    log_every: int = 10


@dataclass(frozen=True)
class Outcome:
    """How a run ended: with its evaluation, or at a checkpoint after a signal."""

    metrics: dict[str, float]
    signal: int | None = None


class Training:
    """A run in one of its processes: opened here, resumed where asked to, and run by `run`.

    Raises:
        ValueError: options, data or checkpoints don't fit, or run.output has a checkpoint and
            run.resume is not set.
        FileNotFoundError: data or a checkpoint are missing.
    """

    def __init__(self, run: Run, own: Processes) -> None:
        self.options = run
        self.own = own
        self.system = run.system
        self.recipe = override(run.recipe, run.settings)
        self.path = run.output / LAST
        precision.check_precision(run.precision, own.device)
        if self.path.exists() and not run.resume:
            raise ValueError(f"output: {run.output} holds a run: resume it, or give another folder")
        self.dataset = self.system.dataset(run.data, self.recipe, True)
        self.tests = self.system.dataset(run.data, self.recipe, False)
        classes = list(self.dataset.classes)
        if list(self.tests.classes) != classes:
            raise ValueError(f"{run.data}: the data to test has other classes than that to train")
        self.identity = {
            "system": self.system.name,
            "recipe": self.recipe.name,
            "settings": dict(run.settings),
            "backbone": run.backbone or self.recipe.model,
            "classes": classes,
            "seed": run.seed,
        }
        saved = checkpoint.load(self.path) if self.path.exists() else None
        if saved:
            checkpoint.check_same_run(saved, self.identity, self.path)
        self.start: int = saved["step"] if saved else 0
        self.order = train_order(
            self.recipe, len(self.dataset), own.rank, own.world, self.start, run.seed
        )
        self.steps_per_epoch = len(self.dataset) // self.recipe.batch_size
        self.total = self.recipe.total_steps(self.steps_per_epoch)
        self._build(saved)

    def _build(self, saved: Mapping[str, Any] | None) -> None:
        run, device = self.options, self.own.device
        seeding.seed_all(run.seed)
        self.model = self.system.build(
            self.identity["backbone"], self.identity["classes"], self.recipe
        )
        self.loaded = Loaded()
        if saved:
            self.model.load_state_dict(saved["model"])
        elif run.weights:
            with naming("weights"):
                self.loaded = checkpoint.load_backbone(
                    self.model, self.identity["backbone"], run.weights
                )
        self.model.to(device)
        if run.recompute:
            backbone_of(self.model).set_grad_checkpointing()
        self.wrapped = self.model
        if self.own.world > 1:
            if device.type == "cuda":
                self.model = nn.SyncBatchNorm.convert_sync_batchnorm(self.model)
            self.wrapped = DistributedDataParallel(self.model, gradient_as_bucket_view=True)
        self.optimizer = make_optimizer(self.model, self.recipe)
        self.scaler = precision.loss_scaler(run.precision, device)
        if saved:
            self.optimizer.load_state_dict(saved["optimizer"])
            if saved["scaler"] and self.scaler.is_enabled():
                self.scaler.load_state_dict(saved["scaler"])

    def run(self, console: Console) -> Outcome:
        """Train to the end and evaluate, or to a signal; both leave a checkpoint.

        Raises:
            FloatingPointError: the loss is not finite; the last checkpoint stays as it is.
        """
        options, recipe = self.options, self.recipe
        every = recipe.evaluation_steps(self.steps_per_epoch)
        inference = Inference(self.system, recipe, options.precision, options.workers)
        data = batches(
            Seeded(self.dataset),
            self.system.collate,
            options.workers,
            self.own.device,
            batch_sampler=self.order,
        )
        with interruption() as asked, self._reporter(console) as reporter:
            sums: dict[str, Tensor] = {}
            summed = 0
            for step in range(self.start, self.total):
                for name, value in self._step(step, data).items():
                    sums[name] = sums.get(name, 0) + value
                done, summed = step + 1, summed + 1
                evaluates = done % every == 0 or done == self.total
                stopped = asked.agreed()
                saves = evaluates or stopped is not None or done % options.save_every == 0
                if saves or done % options.log_every == 0:
                    self._log(done, sums, summed, reporter)
                    sums, summed = {}, 0
                if saves and self.own.main:
                    checkpoint.save(self._state(done), self.path)
                if reporter:
                    reporter.step(done, flush=saves)
                if stopped is not None:
                    return Outcome({}, stopped)
                if evaluates and done < self.total:
                    metrics = evaluate(inference, self.model, self.tests, self.own, asked)
                    if metrics is None:
                        return Outcome({}, asked.agreed())
                    if reporter:
                        reporter.evaluated(done, metrics)
            metrics = evaluate(inference, self.model, self.tests, self.own, asked)
            if metrics is None:
                return Outcome({}, asked.agreed())
            if reporter:
                reporter.evaluated(self.total, metrics)
        return Outcome(metrics)

    def _step(self, step: int, data: Iterator[Any]) -> dict[str, Tensor]:
        """One optimizer step; returns this process's mean losses, on the device."""
        run, own, scaler = self.options, self.own, self.scaler
        factor = self.recipe.schedule.factor(step, self.total, self.steps_per_epoch)
        set_rate(self.optimizer, factor)
        self.model.train()
        self.optimizer.zero_grad()
        means: dict[str, Tensor] = {}
        pieces = self.order.own
        for piece in pieces:
            batch = to_device(next(data), own.device)
            seeding.seed_all(seeding.derive(run.seed, seeding.STEP, step, piece))
            synchronised = own.world == 1 or piece == pieces[-1]
            with contextlib.nullcontext() if synchronised else self.wrapped.no_sync():
                with precision.autocast(run.precision, own.device):
                    losses = self.system.loss(self.wrapped, batch, self.recipe)
                scaler.scale(sum(losses.values()) / len(pieces)).backward()
            for name, value in losses.items():
                means[name] = means.get(name, 0) + value.detach() / len(pieces)
        if self.recipe.clip_norm is not None:
            scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip_norm)
        scaler.step(self.optimizer)
        scaler.update()
        return means

    def _log(
        self, done: int, sums: Mapping[str, Tensor], steps: int, reporter: Reporter | None
    ) -> None:
        means = mean_of_processes(torch.stack(list(sums.values())).float() / steps).tolist()
        losses = dict(zip(sums, means, strict=True))
        if not math.isfinite(sum(means)):
            raise FloatingPointError(
                f"the loss is not finite in the {steps} steps before step {done}: {losses}"
            )
        if reporter:
            rates = [group["lr"] for group in self.optimizer.param_groups]
            reporter.log(done, losses, max(rates), peak_bytes(self.own.device))

    def _state(self, done: int) -> dict[str, Any]:
        return {
            **self.identity,
            "step": done,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def _reporter(self, console: Console) -> contextlib.AbstractContextManager[Reporter | None]:
        if not self.own.main:
            return contextlib.nullcontext()
        self.options.output.mkdir(parents=True, exist_ok=True)
        reporter = Reporter(console, self.options.output, self.start, self.total)
        identity, pieces = self.identity, self.order.pieces
        reporter.say(
            f"{identity['system']} on {identity['backbone']}, recipe {identity['recipe']}: "
            f"{len(self.dataset)} images, {self.total} steps of {self.recipe.batch_size} images "
            f"({pieces} x {self.recipe.batch_size // pieces}, {self.own.world} processes)"
        )
        if self.start:
            reporter.say(f"resumed at step {self.start}")
        if self.loaded:
            reporter.say(f"{self.options.weights}: {self.loaded}")
        return reporter
