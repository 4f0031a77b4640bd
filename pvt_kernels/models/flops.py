"""The cost of a forward pass, as papers report it."""

from itertools import chain

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pvt_kernels.backends import use_backend


def count_flops(model: nn.Module, size: tuple[int, int] = (224, 224)) -> int:
    """Count the multiply-accumulates of one forward pass over one image.

    Counts convolutions, linear layers and attention's two matrix products, each multiply-add
    once: what the PVT papers call FLOPs. Shapes alone are computed, so it takes no time and no
    memory at any size, and the model's device does not matter.

    Args:
        model: of images, whose channels its first convolution takes; it stays untouched.
        size: height and width of the image.

    Raises:
        ValueError: size is too small for the model.
    """
    weight = next(parameter for parameter in model.parameters() if parameter.ndim == 4)
    image = torch.empty(1, weight.shape[1], *size, dtype=weight.dtype, device="meta")
    shapes = {
        name: torch.empty_like(tensor, device="meta")
        for name, tensor in chain(model.named_parameters(), model.named_buffers())
    }
    counter = FlopCounterMode(display=False)
    training = [module for module in model.modules() if module.training]
    model.eval()  # the backend "reference" has no dropout
    try:
        with torch.no_grad(), use_backend("reference"), counter:
            torch.func.functional_call(model, shapes, (image,))
    finally:
        for module in training:
            module.training = True
    return counter.get_total_flops() // 2
