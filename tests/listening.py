"""Who may hear of a call: the hooks of a module, and a mode that counts PyTorch's functions."""

from torch.overrides import TorchFunctionMode

HOOKS = (
    "register_forward_hook",
    "register_forward_pre_hook",
    "register_full_backward_hook",
    "register_full_backward_pre_hook",
)


class ListeningMode(TorchFunctionMode):
    heard = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.heard += 1
        return function(*args, **(kwargs or {}))
