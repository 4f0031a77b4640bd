"""What is compared: attention layers with one interface, module(x, H, W), and shared weights.

Every layer's state_dict has the keys q, kv, proj and, where it reduces, sr and norm.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pvt_kernels import backends
from pvt_kernels.benchmarking.accuracy import attention_oracle
from pvt_kernels.benchmarking.shapes import STAGES, FeedForwardShape, LayerShape
from pvt_kernels.layers import SRAttention
from pvt_kernels.models.blocks import ConvMlp, Mlp
from pvt_kernels.ops.attention import attention

NAIVE, EAGER, SDPA, COMPILED, PACKAGE = "naive", "eager", "sdpa", "compiled", "package"

# q, k, v (B, heads, tokens, d) and the scale -> (B, heads, N, d)
Core = Callable[[Tensor, Tensor, Tensor, float], Tensor]
# q (B, N, heads, d), k, v (B, M, heads, d) -> (B, N, heads, d)
Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Contender:
    """A row of the comparison.

    Attributes:
        name: as printed.
        kind: NAIVE, EAGER, SDPA, COMPILED or PACKAGE.
        backend: of this package, for kind PACKAGE; None for its own choice.
        note: what else the reader should know.
    """

    name: str
    kind: str
    backend: str | None = None
    note: str | None = None

    def context(self) -> AbstractContextManager[None]:
        """What its calls run in."""
        return nullcontext() if self.backend is None else backends.use_backend(self.backend)


NAIVE_MHA = Contender("naive MHA", NAIVE)
EAGER_SRA = Contender("eager SRA", EAGER)
PEERS = (EAGER_SRA, Contender("SDPA SRA", SDPA), Contender("compiled SRA", COMPILED))
PEER_NAMES = tuple(peer.name for peer in PEERS)
# of a feed-forward network
FEED_FORWARD_PEERS = (Contender("eager", EAGER), Contender("compiled", COMPILED))
# of a live model of another library
UNPATCHED = (
    Contender("unpatched, eager", EAGER),
    Contender("unpatched, SDPA", SDPA),
    Contender("unpatched, compiled", COMPILED),
)
UNPATCHED_NAMES = tuple(peer.name for peer in UNPATCHED)
ALL_PEER_NAMES = (
    *PEER_NAMES,
    *(peer.name for peer in FEED_FORWARD_PEERS),
    *UNPATCHED_NAMES,
)


class PlainSRAttention(nn.Module):
    """The layer as PVT's authors published it, after equations 2 to 5 of the paper.

    Wang et al., "Pyramid Vision Transformer", ICCV 2021. `core` computes the attention of the
    projected queries, keys and values.
    """

    def __init__(self, dim: int, heads: int, sr_ratio: int, core: Core) -> None:
        super().__init__()
        self.heads, self.core = heads, core
        self.scale = (dim // heads) ** -0.5
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)
        self.sr_ratio = sr_ratio
        if sr_ratio > 1:
            self.sr = nn.Conv2d(dim, dim, kernel_size=sr_ratio, stride=sr_ratio)
            self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, H: int, W: int) -> Tensor:
        """(B, H*W, C) -> (B, H*W, C)."""
        B, N, C = x.shape
        q = self.q(x).reshape(B, N, self.heads, C // self.heads).transpose(1, 2)
        if self.sr_ratio > 1:
            reduced = self.sr(x.transpose(1, 2).reshape(B, C, H, W))
            x = self.norm(reduced.flatten(2).transpose(1, 2))
        heads = (2, self.heads, C // self.heads)
        k, v = self.kv(x).reshape(B, x.shape[1], *heads).permute(2, 0, 3, 1, 4)
        o = self.core(q, k, v, self.scale)
        return self.proj(o.transpose(1, 2).reshape(B, N, C))


def eager_core(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """softmax(q k^T * scale) v, with the matrix of all queries by all keys."""
    return ((q @ k.transpose(-2, -1)) * scale).softmax(dim=-1) @ v


def sdpa_core(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """PyTorch's fused attention."""
    return F.scaled_dot_product_attention(q, k, v, scale=scale)


def oracle_core(q: Tensor, k: Tensor, v: Tensor, scale: float, rows: Tensor | None) -> Tensor:
    """The fp64 oracle; queries other than `rows` (all if None) get zero."""
    k, v = k.transpose(1, 2), v.transpose(1, 2)
    if rows is None:
        return attention_oracle(q.transpose(1, 2), k, v, scale).transpose(1, 2)
    chosen = attention_oracle(q[:, :, rows].transpose(1, 2), k, v, scale).transpose(1, 2)
    return torch.zeros_like(q, dtype=chosen.dtype).index_copy(2, rows, chosen)


def build_layer(
    contender: Contender, dim: int, heads: int, sr_ratio: int, state: dict[str, Tensor]
) -> nn.Module:
    """The contender's layer with the weights of `state`, in their dtype and on their device."""
    if contender.kind == NAIVE:
        sr_ratio = 1
        state = {k: v for k, v in state.items() if not k.startswith(("sr.", "norm."))}
    if contender.kind == PACKAGE:
        layer = SRAttention(dim, heads, qkv_bias=True, sr_ratio=sr_ratio)
    else:
        core = sdpa_core if contender.kind == SDPA else eager_core
        layer = PlainSRAttention(dim, heads, sr_ratio, core)
    layer = _with_state(layer, state)
    if contender.kind == COMPILED:
        # fullgraph: rather an error than a silent piece of eager execution
        return torch.compile(layer, dynamic=False, fullgraph=True)
    return layer


class CoreAttention(nn.Module):
    """The attention alone: of queries x to keys and values that are its parameters."""

    def __init__(self, attention: Attention, state: dict[str, Tensor]) -> None:
        super().__init__()
        self.attention = attention
        self.k, self.v = (nn.Parameter(state[name].clone()) for name in ("k", "v"))

    def forward(self, q: Tensor) -> Tensor:
        """(B, N, heads, d) -> (B, N, heads, d)."""
        return self.attention(q, self.k, self.v)


def build_core(contender: Contender, state: dict[str, Tensor]) -> nn.Module:
    """The contender's attention of any queries to the k and v (B, M, heads, d) of `state`."""
    if contender.kind == PACKAGE:
        return CoreAttention(attention, state)
    core = sdpa_core if contender.kind == SDPA else eager_core
    module = CoreAttention(partial(_heads_first, core), state)
    if contender.kind == COMPILED:
        return torch.compile(module, dynamic=False, fullgraph=True)
    return module


def build_oracle_core(state: dict[str, Tensor]) -> nn.Module:
    """The attention in fp64."""
    exact = {name: tensor.double() for name, tensor in state.items()}
    return CoreAttention(partial(_heads_first, partial(oracle_core, rows=None)), exact)


def _heads_first(core: Core, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    return core(q, k, v, q.shape[-1] ** -0.5).transpose(1, 2)


def build_oracle_layer(
    dim: int, heads: int, sr_ratio: int, state: dict[str, Tensor], rows: Tensor | None = None
) -> nn.Module:
    """The layer in fp64, exact for the queries `rows` (all if None)."""
    layer = PlainSRAttention(dim, heads, sr_ratio, partial(oracle_core, rows=rows))
    kept = layer.state_dict().keys()
    return _with_state(layer, {key: state[key].double() for key in kept})


def build_feed_forward(
    contender: Contender, shape: FeedForwardShape, state: dict[str, Tensor]
) -> nn.Module:
    """The contender's feed-forward network, module(x, H, W), with the weights of `state`."""
    network = _with_state(_feed_forward(shape), state)
    if contender.kind == PACKAGE:
        return network
    network = layer_by_layer(network)
    if contender.kind == COMPILED:
        return torch.compile(network, dynamic=False, fullgraph=True)
    return network


def runs_feed_forward(
    contender: Contender, x: Tensor, dim: int, hidden: int, convolved: bool, backward: bool
) -> bool:
    """Whether such a network of a contender is this package's kernels, for tokens like x."""
    if contender.kind != PACKAGE:
        return False
    facts = (dim, hidden, convolved, False, backward)
    call = backends.FeedForwardInputs(x.device, x.dtype, *facts)
    with contender.context():
        return backends.decide(call).backend not in ("sdpa", "reference")


def layer_by_layer(model: nn.Module) -> nn.Module:
    """The model, its feed-forward networks by PyTorch's layers: this package's op is no peer's."""
    for module in model.modules():
        if isinstance(module, Mlp):
            module.forward = module.layer_by_layer
    return model


def _feed_forward(shape: FeedForwardShape) -> Mlp:
    sizes = (shape.dim, shape.hidden)
    return ConvMlp(*sizes, drop=0.0, relu=False) if shape.convolved else Mlp(*sizes, drop=0.0)


def seeded_feed_forward_state(shape: FeedForwardShape, seed: int = 0) -> dict[str, Tensor]:
    """As `seeded_state`, for a feed-forward network."""
    return _seeded(_feed_forward(shape), seed)


def _with_state(layer: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    weight = next(iter(state.values()))
    layer = layer.to(device=weight.device, dtype=weight.dtype)
    layer.load_state_dict(state)
    return layer.eval()


def seeded_state(shape: LayerShape, seed: int = 0) -> dict[str, Tensor]:
    """Weights for a layer, fp32, the same on every run.

    Of unit gain, so that logits differ by about one: with a fresh model's small weights every
    softmax would be nearly uniform, and errors in it nearly invisible.
    """
    return _seeded(PlainSRAttention(shape.dim, shape.heads, shape.sr_ratio, eager_core), seed)


def _seeded(layer: nn.Module, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, tensor in layer.state_dict().items():
        noise = torch.randn(tensor.shape, generator=generator)
        if name == "norm.weight":
            state[name] = 1 + 0.1 * noise
        elif tensor.dim() == 1:
            state[name] = 0.1 * noise
        else:
            state[name] = noise * tensor[0].numel() ** -0.5
    return state


def contenders(device: torch.device, dtype: torch.dtype) -> list[Contender]:
    """Naive attention, the peers, and this package: as it chooses, and on its other backends.

    The backend "reference" is there for tests and takes no part, and "sdpa" computes what the peer
    of that name does.
    """
    return [NAIVE_MHA, *PEERS, *_package(_layer_calls(device, dtype))]


def feed_forward_contenders(
    shape: FeedForwardShape, device: torch.device, dtype: torch.dtype, backward: bool
) -> list[Contender]:
    """The peers, and this package in the same way."""
    facts = shape.dim, shape.hidden, shape.convolved, False, backward
    call = backends.FeedForwardInputs(device, dtype, *facts)
    return [*FEED_FORWARD_PEERS, *_package([call])]


def _package(calls: list[backends.Inputs]) -> list[Contender]:
    """As it chooses for these calls, and on each other backend that can run them all."""
    chosen = sorted({str(backends.decide(inputs).backend) for inputs in calls})
    package = [Contender("pvt_kernels", PACKAGE, note=f"backend {', '.join(chosen)}")]
    for name in backends.BACKEND_NAMES:
        if name in ("reference", "sdpa") or chosen == [name]:
            continue
        with backends.use_backend(name):
            able = all(backends.decide(inputs).backend == name for inputs in calls)
        if able:
            package.append(Contender(f"pvt_kernels[{name}]", PACKAGE, name))
    return package


def backend_reasons(name: str, device: torch.device, dtype: torch.dtype) -> list[str]:
    """Why a backend can't run PVT's four stages on a device; empty if it can."""
    decisions = [backends.decide(inputs) for inputs in _layer_calls(device, dtype)]
    return list(dict.fromkeys(reason for d in decisions for reason in d.reasons[name]))


def _layer_calls(device: torch.device, dtype: torch.dtype) -> list[backends.Inputs]:
    """What the attention layers of PVT's four stages call."""
    calls: list[backends.Inputs] = []
    for dim, heads, sr_ratio, _ in STAGES.values():
        calls.append(backends.AttentionInputs(device, dtype, dim // heads, dropout=False))
        if sr_ratio > 1:
            calls.append(backends.SpatialReductionInputs(device, dtype, dim, sr_ratio))
    return calls
