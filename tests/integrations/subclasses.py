"""A tensor that computes in its own way, as those of quantisation libraries do."""

import torch
from torch import Tensor
from torch.utils._pytree import tree_map


class Int8Tensor(Tensor):
    """Whole numbers of 8 bits and a scale for each row; it looks like the tensor it was made of.

    It knows linear layers and convolutions, and what a module does with its parameters; all else
    raises NotImplementedError.
    """

    @staticmethod
    def __new__(cls, values, scale):
        return Tensor._make_wrapper_subclass(cls, values.shape, dtype=scale.dtype)

    def __init__(self, values, scale):
        self.values, self.scale = values, scale

    @classmethod
    def quantised(cls, tensor):
        scale = tensor.flatten(1).abs().amax(1) if tensor.dim() > 1 else tensor.abs().amax()
        scale = (scale / 127).reshape(-1, *(1,) * (tensor.dim() - 1))
        return cls((tensor / scale).round().to(torch.int8), scale)

    def plain(self):
        return self.values * self.scale

    def __repr__(self):
        return f"Int8Tensor({tuple(self.shape)})"

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        layers = (torch.nn.functional.linear, torch.conv2d, torch.nn.functional.layer_norm)
        if func in layers:
            args, kwargs = tree_map(
                lambda t: t.plain() if isinstance(t, Int8Tensor) else t, (args, kwargs or {})
            )
            return func(*args, **kwargs)
        return super().__torch_function__(func, types, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.detach.default:
            return cls(args[0].values, args[0].scale)
        raise NotImplementedError(f"Int8Tensor has no {func}")
