"""The inputs and the work of a case: one layer on its true input, or a whole backbone."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import cycle

import torch
from torch import Tensor, nn

from pvt_kernels import models
from pvt_kernels.backends import use_backend
from pvt_kernels.benchmarking.accuracy import OUTPUT, PARAMETERS
from pvt_kernels.benchmarking.cases import BACKBONE, CORE, FEED_FORWARD, PATCHED, Case
from pvt_kernels.benchmarking.contenders import (
    COMPILED,
    FEED_FORWARD_PEERS,
    NAIVE,
    PACKAGE,
    PEERS,
    SDPA,
    UNPATCHED,
    Contender,
    build_core,
    build_feed_forward,
    build_layer,
    build_oracle_core,
    build_oracle_layer,
    layer_by_layer,
    runs_feed_forward,
    seeded_feed_forward_state,
    seeded_state,
)
from pvt_kernels.benchmarking.live_models import (
    LIVE_MODELS,
    Output,
    contender_model,
    smooth_activations,
)
from pvt_kernels.benchmarking.needs import (
    BlockShape,
    backbone_growth,
    feed_forward_growth,
    layer_growth,
)
from pvt_kernels.benchmarking.photo import photo_batch
from pvt_kernels.benchmarking.shapes import (
    LayerShape,
    Size,
    feed_forward_shape,
    format_size,
    stage_shape,
)
from pvt_kernels.models.blocks import ConvMlp, Mlp

SEED = 0
# Naive attention's matrix has up to 3.7e9 entries: a layer is checked on this many queries,
# and a backbone on small images.
SAMPLED_QUERIES = 256
SMALL_SIZE: Size = (224, 224)
# small inputs don't fill a cache whatever their number
MOST_COPIES = 64


@dataclass(frozen=True)
class Inputs:
    """What a module is called with.

    Attributes:
        x: a leaf that requires a gradient.
        arguments: what the module takes beside x.
        gradients: of the outputs; empty for a forward alone.
        rows: the queries whose outputs are compared, None for all. Only they have a gradient.
    """

    x: Tensor
    arguments: tuple[int, ...]
    gradients: list[Tensor]
    rows: Tensor | None = None

    def at_rows(self, rows: Tensor) -> Inputs:
        """The same, compared at some queries alone."""
        masked = [torch.zeros_like(g).index_copy(1, rows, g[:, rows]) for g in self.gradients]
        return Inputs(self.x, self.arguments, masked, rows)

    @property
    def bytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in (self.x, *self.gradients))

    def copy(self) -> Inputs:
        """The same numbers in other memory."""
        gradients = [gradient.clone() for gradient in self.gradients]
        return Inputs(_leaf(self.x, self.x.dtype), self.arguments, gradients, self.rows)

    def write(self, other: Inputs) -> None:
        """Write the numbers of another into this one's memory, and forget the gradient."""
        self.x.grad = None
        with torch.no_grad():
            self.x.copy_(other.x)
        for mine, others in zip(self.gradients, other.gradients, strict=True):
            mine.copy_(others)

    def exact(self, change: Callable[[Tensor], Tensor] = lambda tensor: tensor) -> Inputs:
        """The same numbers in fp64, or these as `change` returns them."""
        gradients = [change(gradient.double()) for gradient in self.gradients]
        x = _leaf(change(self.x.detach().double()), torch.float64)
        return Inputs(x, self.arguments, gradients, self.rows)


def step(module: nn.Module, inputs: Inputs) -> list[Tensor]:
    """One forward, and the backward if there is one: what is timed."""
    if not inputs.gradients:
        with torch.no_grad():
            return _as_list(module(inputs.x, *inputs.arguments))
    outputs = _as_list(module(inputs.x, *inputs.arguments))
    torch.autograd.backward(outputs, inputs.gradients)
    return outputs


class Ring:
    """Copies of inputs that take turns, so that a GPU's caches are as they are in use.

    The copies fill the L2 cache twice over, so that none of a call's tokens are there from the call
    before; and the next one is written just before its call, as the layer before would have written
    it. A CPU's calls all get the inputs themselves.
    """

    def __init__(self, inputs: Inputs, cache: int) -> None:
        copies = math.ceil(2 * cache / inputs.bytes) if inputs.bytes else 0
        self._inputs = inputs
        self._copies = cycle([inputs.copy() for _ in range(min(copies, MOST_COPIES))] or [inputs])

    def next(self) -> Inputs:
        """Written, and without a gradient."""
        copy = next(self._copies)
        if copy is not self._inputs:
            copy.write(self._inputs)
        else:
            copy.x.grad = None
        return copy


class Workload(ABC):
    """What one call of a contender does, and what it must give."""

    inputs: Inputs

    @abstractmethod
    def build(self, contender: Contender) -> nn.Module:
        """The contender's module."""

    @abstractmethod
    def build_oracle(self, contender: Contender, rows: Tensor | None) -> nn.Module:
        """What it should compute, in fp64; for the queries `rows` alone if given."""

    @abstractmethod
    def needed_bytes(self, contender: Contender) -> int:
        """Memory beyond weights and input, by the formula."""

    @abstractmethod
    def check_inputs(self, contender: Contender) -> tuple[Inputs, str | None]:
        """What the contender is checked on, and a note if that is not the whole input."""

    def flops(self, contender: Contender) -> int | None:
        """By the formula; None where no count is kept."""
        return None

    def clear(self, module: nn.Module) -> None:
        """Forget the last call's gradients."""
        self.inputs.x.grad = None
        module.zero_grad(set_to_none=True)

    def results(self, module: nn.Module, inputs: Inputs) -> dict[str, Tensor]:
        """Outputs and gradients of one call, by name."""
        outputs = [output.detach() for output in step(module, inputs)]
        if inputs.rows is not None:
            outputs = [output[:, inputs.rows] for output in outputs]
        if len(outputs) == 1:
            results = {OUTPUT: outputs[0]}
        else:
            results = {f"{OUTPUT} {i}": output for i, output in enumerate(outputs, start=1)}
        if inputs.gradients:
            results["x"] = inputs.x.grad
            results |= self.parameter_gradients(module)
        inputs.x.grad = None
        module.zero_grad(set_to_none=True)
        return results

    def parameter_gradients(self, module: nn.Module) -> dict[str, Tensor]:
        """By the parameter's name, the same for every contender."""
        return {
            # torch.compile puts its own name in between
            name.replace("_orig_mod.", ""): parameter.grad
            for name, parameter in module.named_parameters()
            if parameter.grad is not None
        }


class CoreWorkload(Workload):
    """The attention of a stage's layers alone, on random queries, keys and values."""

    def __init__(self, case: Case, real_input: bool) -> None:
        self.case = case
        self.shape = stage_shape(case.stage, case.size, case.batch)
        heads, d = self.shape.heads, self.shape.dim // self.shape.heads
        generator = torch.Generator().manual_seed(SEED)
        q, k, v = (
            torch.randn(case.batch, tokens, heads, d, generator=generator)
            for tokens in (self.shape.queries, self.shape.keys, self.shape.keys)
        )
        self.state = {n: t.to(case.device, case.torch_dtype) for n, t in (("k", k), ("v", v))}
        gradients = [_noise(tuple(q.shape), case)] if case.backward else []
        self.inputs = Inputs(_leaf(q.to(case.device), case.torch_dtype), (), gradients)

    def build(self, contender: Contender) -> nn.Module:
        return build_core(contender, self.state)

    def build_oracle(self, contender: Contender, rows: Tensor | None) -> nn.Module:
        return build_oracle_core(self.state)

    def needed_bytes(self, contender: Contender) -> int:
        return layer_growth(contender.kind, self.shape, self.case.torch_dtype, self.case.backward)

    def check_inputs(self, contender: Contender) -> tuple[Inputs, str | None]:
        return self.inputs, None

    def flops(self, contender: Contender) -> int:
        return self.shape.core_flops(self.case.backward)


class LayerWorkload(Workload):
    """The first attention layer of a stage, on what it receives when a model sees the photo."""

    def __init__(self, case: Case, real_input: bool) -> None:
        self.case = case
        self.shape = stage_shape(case.stage, case.size, case.batch)
        dims = (case.batch, self.shape.queries, self.shape.dim)
        x = stage_inputs(case.size, case.batch)[case.stage] if real_input else torch.randn(dims)
        self.state = {
            name: tensor.to(case.device, case.torch_dtype)
            for name, tensor in seeded_state(self.shape, SEED).items()
        }
        self.inputs = Inputs(
            _leaf(x.to(case.device), case.torch_dtype),
            (self.shape.height, self.shape.width),
            [_noise(dims, case)] if case.backward else [],
        )

    def build(self, contender: Contender) -> nn.Module:
        shape = self.shape
        return build_layer(contender, shape.dim, shape.heads, shape.sr_ratio, self.state)

    def build_oracle(self, contender: Contender, rows: Tensor | None) -> nn.Module:
        shape = self._shape_of(contender)
        return build_oracle_layer(shape.dim, shape.heads, shape.sr_ratio, self.state, rows)

    def needed_bytes(self, contender: Contender) -> int:
        return layer_growth(contender.kind, self.shape, self.case.torch_dtype, self.case.backward)

    def check_inputs(self, contender: Contender) -> tuple[Inputs, str | None]:
        queries = self.shape.queries
        if contender.kind != NAIVE or queries <= SAMPLED_QUERIES:
            return self.inputs, None
        generator = torch.Generator().manual_seed(SEED)
        rows = torch.randperm(queries, generator=generator)[:SAMPLED_QUERIES].sort().values
        note = f"checked on {SAMPLED_QUERIES} of {queries} queries"
        return self.inputs.at_rows(rows.to(self.case.device)), note

    def flops(self, contender: Contender) -> int:
        return self._shape_of(contender).flops(self.case.backward)

    def _shape_of(self, contender: Contender) -> LayerShape:
        return self.shape.unreduced if contender.kind == NAIVE else self.shape


class FeedForwardWorkload(Workload):
    """The feed-forward network of a stage's blocks alone, on random tokens.

    Of unit variance, as the norm before it leaves them.
    """

    def __init__(self, case: Case, real_input: bool) -> None:
        self.case = case
        self.shape = feed_forward_shape(case.stage, case.convolved, case.size, case.batch)
        generator = torch.Generator().manual_seed(SEED)
        dims = (case.batch, self.shape.tokens, self.shape.dim)
        x = torch.randn(dims, generator=generator)
        self.state = {
            name: tensor.to(case.device, case.torch_dtype)
            for name, tensor in seeded_feed_forward_state(self.shape, SEED).items()
        }
        self.inputs = Inputs(
            _leaf(x.to(case.device), case.torch_dtype),
            (self.shape.height, self.shape.width),
            [_noise(dims, case)] if case.backward else [],
        )

    def build(self, contender: Contender) -> nn.Module:
        return build_feed_forward(contender, self.shape, self.state)

    def build_oracle(self, contender: Contender, rows: Tensor | None) -> nn.Module:
        eager = FEED_FORWARD_PEERS[0]
        return build_feed_forward(eager, self.shape, self.state).double()

    def needed_bytes(self, contender: Contender) -> int:
        facts = self.shape.dim, self.shape.hidden, self.shape.convolved
        hidden = not runs_feed_forward(contender, self.inputs.x, *facts, self.case.backward)
        return feed_forward_growth(hidden, self.shape, self.case.torch_dtype, self.case.backward)

    def check_inputs(self, contender: Contender) -> tuple[Inputs, str | None]:
        return self.inputs, None

    def flops(self, contender: Contender) -> int:
        return self.shape.flops(self.case.backward)


class BackboneWorkload(Workload):
    """A model as a feature pyramid, on the photo."""

    def __init__(self, case: Case, real_input: bool) -> None:
        self.case = case
        torch.manual_seed(SEED)
        model = models.create(case.subject, features_only=True).eval()
        self.model = model.to(case.device, case.torch_dtype)
        self.inputs = self._inputs(case.size, real_input)

    def build(self, contender: Contender) -> nn.Module:
        # the compiler gets the whole model with PyTorch's fused attention
        layers = PEERS[1] if contender.kind == COMPILED else contender
        model = self._with_attention(self.model, lambda *layer: build_layer(layers, *layer))
        if contender.kind == PACKAGE:
            return model
        model = layer_by_layer(model)
        return torch.compile(model, dynamic=False) if contender.kind == COMPILED else model

    def build_oracle(self, contender: Contender, rows: Tensor | None) -> nn.Module:
        def layer(dim: int, heads: int, sr_ratio: int, state: dict[str, Tensor]) -> nn.Module:
            return build_oracle_layer(
                dim, heads, 1 if contender.kind == NAIVE else sr_ratio, state, rows
            )

        return layer_by_layer(self._with_attention(self.model, layer)).double()

    def needed_bytes(self, contender: Contender) -> int:
        return self.growth(contender, self.case.size)

    def growth(self, contender: Contender, size: Size) -> int:
        """Bytes beyond weights and images that a call on images of a size needs, by the formula."""

        def hidden(mlp: Mlp) -> int:
            facts = mlp.fc1.in_features, mlp.fc1.out_features, isinstance(mlp, ConvMlp)
            fused = runs_feed_forward(contender, self.inputs.x, *facts, self.case.backward)
            return 0 if fused else facts[1]

        blocks = [
            BlockShape(
                LayerShape(
                    block.attn.dim,
                    block.attn.num_heads,
                    block.attn.sr_ratio,
                    size[0] // stride,
                    size[1] // stride,
                    self.case.batch,
                ),
                hidden(block.mlp),
                isinstance(block.mlp, ConvMlp),
            )
            for stage, stride in enumerate(self.model.strides, start=1)
            for block in getattr(self.model, f"block{stage}")
        ]
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        kind = SDPA if contender.kind == COMPILED else contender.kind
        return backbone_growth(kind, blocks, parameters, self.case.torch_dtype, self.case.backward)

    def check_inputs(self, contender: Contender) -> tuple[Inputs, str | None]:
        # of several large images the fp64 oracle would not fit
        whole = contender.kind != NAIVE and self.case.batch == 1
        if whole or self.case.size == SMALL_SIZE:
            return self.inputs, None
        return self._inputs(SMALL_SIZE, True), f"checked at {format_size(SMALL_SIZE)}"

    def parameter_gradients(self, module: nn.Module) -> dict[str, Tensor]:
        # a backbone has hundreds of parameters: their gradients are compared as one vector
        gradients = sorted(super().parameter_gradients(module).items())
        return {PARAMETERS: torch.cat([gradient.flatten() for _, gradient in gradients])}

    def _inputs(self, size: Size, real_input: bool) -> Inputs:
        case, batch = self.case, self.case.batch
        x = photo_batch(size, batch) if real_input else torch.randn(batch, 3, *size)
        shapes = [
            (batch, dim, size[0] // stride, size[1] // stride)
            for dim, stride in zip(self.model.embed_dims, self.model.strides, strict=True)
        ]
        gradients = [_noise(shape, case) for shape in shapes] if case.backward else []
        return Inputs(_leaf(x.to(case.device), case.torch_dtype), (), gradients)

    def _with_attention(
        self,
        model: nn.Module,
        layer: Callable[[int, int, int, dict[str, Tensor]], nn.Module],
    ) -> nn.Module:
        """A copy of the model with every attention layer replaced."""
        model = copy.deepcopy(model)
        for stage in (1, 2, 3, 4):
            for block in getattr(model, f"block{stage}"):
                old = block.attn
                block.attn = layer(old.dim, old.num_heads, old.sr_ratio, old.state_dict())
        return model


class PatchedWorkload(BackboneWorkload):
    """Another library's model on the photo, as it is or patched."""

    def __init__(self, case: Case, real_input: bool) -> None:
        self.case, self.live = case, LIVE_MODELS[case.subject]
        torch.manual_seed(SEED)
        model = Output(self.live.build(case.size), self.live.output)
        self.model = model.to(case.device, case.torch_dtype).train(case.backward)
        self.inputs = self._inputs(case.size, real_input)

    def build(self, contender: Contender) -> nn.Module:
        model = copy.deepcopy(self.model)
        model.model = contender_model(model.model, contender)
        return model

    def results(self, module: nn.Module, inputs: Inputs) -> dict[str, Tensor]:
        # ReLU's gradient jumps: of two roundings of one value it may be 0 and 1
        with smooth_activations(module):
            return super().results(module, inputs)

    def build_oracle(self, contender: Contender, rows: Tensor | None) -> nn.Module:
        # PyTorch's fused attention has fp64; the eager one would need twice eager's memory
        return self.build(UNPATCHED[SDPA in self.live.cores]).double()

    def growth(self, contender: Contender, size: Size) -> int:
        case, parameters = self.case, sum(p.numel() for p in self.model.parameters())
        # of the first stage, beside whose hidden layers the others' are small
        width = self.live.widths[0]
        facts = width, width * self.live.mlp_ratios[0], self.live.convolved
        hidden = not runs_feed_forward(contender, self.inputs.x, *facts, self.case.backward)
        sizes = (size, case.batch, case.torch_dtype, parameters, case.backward)
        fused = contender.kind == COMPILED and SDPA in self.live.cores
        return self.live.growth(SDPA if fused else contender.kind, hidden, *sizes)

    def check_inputs(self, contender: Contender) -> tuple[Inputs, str | None]:
        size = self.live.training_check_size
        if not self.case.backward or size is None or size >= self.case.size:
            return self.inputs, None
        return self._inputs(size, True), f"checked at {format_size(size)}"

    def _inputs(self, size: Size, real_input: bool) -> Inputs:
        case = self.case
        x = photo_batch(size, case.batch) if real_input else torch.randn(case.batch, 3, *size)
        x = _leaf(x.to(case.device), case.torch_dtype)
        gradients = []
        if case.backward:
            with torch.no_grad():
                gradients = [_noise(tuple(self.model(x).shape), case)]
        return Inputs(x, (), gradients)


def workload(case: Case, real_input: bool = True) -> Workload:
    """The work of a case; on random numbers where only its memory matters."""
    kinds = {
        BACKBONE: BackboneWorkload,
        CORE: CoreWorkload,
        FEED_FORWARD: FeedForwardWorkload,
        PATCHED: PatchedWorkload,
    }
    return kinds.get(case.kind, LayerWorkload)(case, real_input)


@lru_cache(maxsize=4)
def stage_inputs(size: Size, batch: int) -> dict[int, Tensor]:
    """What each stage's first attention receives in a seeded PVT-Small shown the photo, fp32."""
    torch.manual_seed(SEED)
    model = models.create("pvt_small", features_only=True).eval()
    inputs: dict[int, Tensor] = {}

    def keep(stage: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            inputs[stage] = arguments[0].detach().clone()

        return hook

    for stage in (1, 2, 3, 4):
        getattr(model, f"block{stage}")[0].attn.register_forward_pre_hook(keep(stage))
    with torch.no_grad(), use_backend("sdpa"):
        model(photo_batch(size, batch))
    return inputs


def _as_list(outputs: Tensor | list[Tensor]) -> list[Tensor]:
    return [outputs] if isinstance(outputs, Tensor) else list(outputs)


def _leaf(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.detach().to(dtype).clone().requires_grad_()


def _noise(shape: tuple[int, ...], case: Case) -> Tensor:
    generator = torch.Generator().manual_seed(SEED)
    return torch.randn(shape, generator=generator).to(case.device, case.torch_dtype)
