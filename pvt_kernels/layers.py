"""Spatial-reduction attention as a layer: the drop-in for the Attention of PVT and PVTv2."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pvt_kernels.backends import transforms
from pvt_kernels.ops import autocast, checks
from pvt_kernels.parts import LINEAR_TYPES, Parts, are_plain, drops_nothing, forward, is_plain

LINEAR_SRA_POOL_SIZE = 7


class SRAttention(nn.Module):
    """Multi-head attention whose keys and values come from a spatially reduced feature map.

        q = x Wq,  y = LayerNorm(Conv2d(x, kernel = stride = sr_ratio)),  k, v = split(y Wkv)
        out = concat_heads(softmax(q k^T * scale) v) Wo

    Wang et al., "Pyramid Vision Transformer", ICCV 2021, equations 2 to 5. With `linear`, the
    linear SRA of PVTv2 (Wang et al., 2022, section 3.1): y = GELU(LayerNorm(Conv1x1(pool7x7(x)))).
    Arguments, parameter names and results are those of the original code's Attention.

    Args:
        dim: channels C, a multiple of num_heads.
        num_heads: heads; head_dim = dim // num_heads.
        qkv_bias: whether the query, key and value projections have a bias.
        qk_scale: factor of the scores; head_dim ** -0.5 if None or 0, as in the original.
        attn_drop: probability of zeroing an attention weight in training, in [0, 1). Above 0,
            training runs on the backend "sdpa".
        proj_drop: probability of zeroing an output in training, in [0, 1].
        sr_ratio: R, by which height and width are reduced; 1 means no reduction.
        linear: PVTv2's linear SRA, whatever sr_ratio is.

    Raises:
        ValueError: for arguments out of range; the message says which.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        qkv_bias: bool = False,
        qk_scale: float | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        sr_ratio: int = 1,
        linear: bool = False,
    ) -> None:
        super().__init__()
        for name, size in (("dim", dim), ("num_heads", num_heads), ("sr_ratio", sr_ratio)):
            checks.check_size("SRAttention", name, size, least=1)
        if dim % num_heads != 0:
            raise ValueError(
                f"SRAttention: dim must be divisible by num_heads, got {dim} and {num_heads}"
            )
        if not 0.0 <= attn_drop < 1.0:
            raise ValueError(f"SRAttention: attn_drop must be in [0, 1), got {attn_drop}")

        self.dim = dim
        self.num_heads = num_heads
        self.scale = qk_scale or (dim // num_heads) ** -0.5
        self.sr_ratio = sr_ratio
        self.linear = linear

        self.q = nn.Linear(dim, dim, bias=qkv_bias)
        self.kv = nn.Linear(dim, dim * 2, bias=qkv_bias)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)
        if linear:
            self.pool = nn.AdaptiveAvgPool2d(LINEAR_SRA_POOL_SIZE)
            self.sr = nn.Conv2d(dim, dim, kernel_size=1)
            self.norm = nn.LayerNorm(dim)
            self.act = nn.GELU()
        elif sr_ratio > 1:
            self.sr = nn.Conv2d(dim, dim, kernel_size=sr_ratio, stride=sr_ratio)
            self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, H: int, W: int) -> Tensor:
        """Attention of every token to the reduced map.

        Args:
            x: tokens (B, N, C), N = H*W, row-major over (H, W); any strides. Where nothing is
                reduced (sr_ratio 1 and not linear) N may be anything, such as H*W + 1.
            H, W: height and width of the map in tokens, each at least sr_ratio.

        Returns:
            (B, N, C).

        Raises:
            ValueError: for shapes, devices or sizes that don't fit; the message says which.
            TypeError: for dtypes that don't fit.
            RuntimeError: if a forced backend can't run the call.
        """
        modules = self._modules
        # eager calls are checked by the ops, once for each form of them
        checked = self.linear or type(x) is not Tensor or torch.compiler.is_compiling()
        if checked and not transforms.is_symbol(x):
            with transforms.untraced():
                self._check(x, *transforms.integers(H, W))
        # by itself: Monte Carlo dropout trains this one alone
        training = modules["attn_drop"].training  # pyright: ignore[reportOptionalMemberAccess]
        try:
            result = forward(self._parts(), x, H, W, training)
        except Exception:
            # first what is wrong with x, in the layer's own words
            if not checked:
                with transforms.untraced():
                    self._check(x, *transforms.integers(H, W))
            raise
        dropout = modules["proj_drop"]
        return result if drops_nothing(dropout) else dropout(result)  # pyright: ignore[reportArgumentType, reportOptionalCall]

    def _check(self, x: Tensor, H: int, W: int) -> None:
        checks.check_rank("SRAttention", "x", x, "(B, N, C)")
        checks.check_shape("SRAttention", "x", x, "(B, N, C)", (*x.shape[:2], self.dim))
        checks.check_dtype("SRAttention", "x", x, checks.DTYPES)
        if (
            is_plain(self.q, LINEAR_TYPES)
            and are_plain((self.q.weight,))
            and not autocast.is_enabled(x)
        ):
            checks.check_like("SRAttention", "x", x, "the layer", self.q.weight)
        if self.linear or self.sr_ratio > 1:
            checks.check_map("SRAttention", x, H, W, least=1 if self.linear else self.sr_ratio)

    def _parts(self) -> Parts:
        # not by attributes, which take torch.nn.Module half a microsecond each, and which a part
        # that is missing is not
        modules = self._modules
        return Parts(
            query=modules["q"],  # pyright: ignore[reportArgumentType]
            keys_values=(modules["kv"],),  # pyright: ignore[reportArgumentType]
            out=modules["proj"],  # pyright: ignore[reportArgumentType]
            heads=self.num_heads,
            scale=self.scale,
            # an Identity has none
            dropout_p=getattr(modules["attn_drop"], "p", 0.0),
            conv=modules.get("sr"),
            norm=modules.get("norm"),
            pool=modules.get("pool"),
            activation=modules.get("act"),
        )
