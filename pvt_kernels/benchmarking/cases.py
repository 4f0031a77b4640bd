"""What is measured: the cases of the quick and of the full benchmark."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pvt_kernels.benchmarking.shapes import (
    STAGES,
    Size,
    feed_forward_shape,
    format_size,
    stage_shape,
)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
FORWARD, TRAINING = "forward", "forward + backward"
CORE, LAYER, BACKBONE, MEMORY, PATCHED = "core", "layer", "backbone", "memory", "patched"
SCALE, FEED_FORWARD = "scale", "feed-forward"
BENCH_KINDS = (CORE, LAYER, FEED_FORWARD, BACKBONE, MEMORY)
# of the subject of a FEED_FORWARD case, behind its stage: PVTv2's
CONVOLVED = " + conv"

COCO_SIZES: tuple[Size, ...] = ((800, 1088), (800, 1216), (800, 1344))
MEMORY_SIZES: tuple[Size, ...] = ((224, 224), (448, 448), (640, 640), *COCO_SIZES)
CLASSIFICATION_SIZE: Size = (224, 224)
QUICK_SIZE: Size = (800, 1216)
QUICK_MEMORY_SIZES: tuple[Size, ...] = ((224, 224), (448, 448), QUICK_SIZE)
# other libraries' models, before and after patch(), by their names in live_models.py
SMALL_SUBJECTS = (
    "segformer_b0",
    "segformer_b2",
    "timm_pvt_v2_b0",
    "timm_pvt_v2_b2",
    "timm_twins_svt_small",
    "transformers_pvt",
)
PATCHED_SUBJECTS: tuple[tuple[str, Size], ...] = (
    ("segformer_b0", (512, 512)),
    ("segformer_b0", (1024, 1024)),
    ("segformer_b2", (512, 512)),
    ("segformer_b2", (1024, 1024)),
    ("timm_pvt_v2_b2", (800, 1216)),
    ("transformers_pvt", (800, 1216)),
    *((model, (224, 224)) for model in SMALL_SUBJECTS),
    *((model, (384, 384)) for model in SMALL_SUBJECTS),
    *((model, (512, 512)) for model in SMALL_SUBJECTS if not model.startswith("segformer")),
)
# this package's own, with every layer the contender's
OWN_SUBJECTS: tuple[tuple[str, Size], ...] = (
    ("pvt_small", QUICK_SIZE),
    ("pvt_v2_b2", QUICK_SIZE),
)
# of backbones, about as PVT-Small's
FLOPS_PER_PIXEL = 2e5
# the others take a minute each
QUICK_PATCHED_SUBJECTS = PATCHED_SUBJECTS[:1]


@dataclass(frozen=True)
class Case:
    """One comparison of all contenders.

    Attributes:
        kind: CORE (softmax attention alone), LAYER, FEED_FORWARD, BACKBONE, MEMORY (the layer's
            peak memory alone, untimed), PATCHED (another library's model), or SCALE (different
            backbones, see study.py).
        subject: "stage 1" to "stage 4", of a feed-forward network with a convolution followed by
            CONVOLVED; or a model's name, or "backbones".
        size: of the image.
        mode: FORWARD (without autograd) or TRAINING.
        dtype: key of DTYPES.
        batch: images.
        device: "cpu" or "cuda".
    """

    kind: str
    subject: str
    size: Size
    mode: str
    dtype: str
    batch: int
    device: str

    @property
    def backward(self) -> bool:
        return self.mode == TRAINING

    @property
    def torch_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype]

    @property
    def stage(self) -> int:
        """Of a core, a layer or a feed-forward network."""
        return int(self.subject.removeprefix("stage ").removesuffix(CONVOLVED))

    @property
    def convolved(self) -> bool:
        """Whether a feed-forward network has PVTv2's convolution."""
        return self.subject.endswith(CONVOLVED)

    def __str__(self) -> str:
        kinds = {CORE: "core of ", MEMORY: "memory of ", FEED_FORWARD: "feed-forward of "}
        kind = kinds.get(self.kind, "")
        return f"{kind}{self.subject}, {format_size(self.size)}, {self.mode}, {self.dtype}"


def rough_flops(case: Case) -> float:
    """A call's operations, of a layer by its formula and of a model by its image."""
    if case.kind in (CORE, LAYER, MEMORY):
        return stage_shape(case.stage, case.size, case.batch).flops(case.backward)
    if case.kind == FEED_FORWARD:
        shape = feed_forward_shape(case.stage, case.convolved, case.size, case.batch)
        return shape.flops(case.backward)
    return FLOPS_PER_PIXEL * case.batch * case.size[0] * case.size[1] * (1 + 2 * case.backward)


@dataclass(frozen=True)
class Suite:
    """Cases, and how long to spend on each.

    Attributes:
        seconds: of timed rounds for each case.
        rounds: of a layer that run however long they take.
        backbone_rounds: the same of a backbone.
        quick: whether what would take minutes (see runner.left_out) is left out, and said to be.
    """

    cases: tuple[Case, ...]
    seconds: float
    rounds: int
    backbone_rounds: int
    quick: bool


def suite(
    quick: bool,
    device: str,
    *,
    dtypes: tuple[str, ...] | None = None,
    sizes: tuple[Size, ...] | None = None,
    stages: tuple[int, ...] | None = None,
    models: tuple[str, ...] | None = None,
    kinds: Sequence[str] | None = None,
    batch: int = 1,
) -> Suite:
    """The quick or the full benchmark; None stands for its own choice.

    `sizes` are those of the layers, and of the memory sweep if given; backbones run at 800x1216 if
    it is among them, else at the first, and so do the attention alone and the feed-forward, which
    the quick benchmark leaves out, and at 224x224 too.
    """
    if dtypes is None:
        lowp = ("bf16", "fp16") if device == "cuda" else ("bf16",)
        dtypes = ("fp32",) if quick else ("fp32", *lowp)
    stages = tuple(STAGES) if stages is None else stages
    models = ("pvt_tiny",) if models is None else models
    memory_sizes = sizes or (QUICK_MEMORY_SIZES if quick else MEMORY_SIZES)
    sizes = sizes or ((QUICK_SIZE,) if quick else (QUICK_SIZE, CLASSIFICATION_SIZE))
    backbone_size = QUICK_SIZE if QUICK_SIZE in sizes else sizes[0]
    core_sizes = [s for s in sizes if s in (backbone_size, CLASSIFICATION_SIZE) and not quick]
    backbone_modes = (FORWARD,) if quick else (FORWARD, TRAINING)

    parts = [
        (CORE, core_sizes, ("",)),
        (LAYER, sizes, ("",)),
        (FEED_FORWARD, core_sizes, ("", CONVOLVED)),
    ]
    cases = [
        Case(kind, f"stage {stage}{form}", size, mode, dtype, batch, device)
        for kind, kind_sizes, forms in parts
        for dtype in dtypes
        for size in kind_sizes
        for mode in (FORWARD, TRAINING)
        for form in forms
        for stage in stages
    ]
    cases += [
        Case(BACKBONE, model, backbone_size, mode, dtype, batch, device)
        for dtype in dtypes
        for mode in backbone_modes
        for model in models
    ]
    cases += [
        Case(MEMORY, "stage 1", size, TRAINING, dtype, batch, device)
        for dtype in dtypes
        for size in memory_sizes
        if 1 in stages
    ]
    cases = [case for case in cases if kinds is None or case.kind in kinds]
    seconds, rounds, backbone_rounds = (1.0, 4, 3) if quick else (2.0, 7, 7)
    return Suite(tuple(cases), seconds, rounds, backbone_rounds, quick)


def patched_suite(
    quick: bool,
    device: str,
    *,
    dtypes: tuple[str, ...] = ("fp32",),
    sizes: tuple[Size, ...] | None = None,
    models: tuple[str, ...] | None = None,
    batch: int = 1,
) -> Suite:
    """Other libraries' models before and after patch(), and this package's, each at its sizes.

    Of these, `sizes` and `models` choose; None stands for all.
    """
    subjects = [(PATCHED, *s) for s in (QUICK_PATCHED_SUBJECTS if quick else PATCHED_SUBJECTS)]
    subjects += [(BACKBONE, *subject) for subject in OWN_SUBJECTS if not quick]
    cases = tuple(
        Case(kind, model, size, mode, dtype, batch, device)
        for dtype in dtypes
        for kind, model, size in subjects
        if (models is None or model in models) and (sizes is None or size in sizes)
        for mode in (FORWARD, TRAINING)
    )
    rounds = 3 if quick else 7
    return Suite(cases, seconds=0.0, rounds=rounds, backbone_rounds=rounds, quick=quick)
