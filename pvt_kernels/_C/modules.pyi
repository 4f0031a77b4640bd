"""What is asked in every call of a layer, of its modules and of the process."""

from collections.abc import Callable, Mapping

from torch import Tensor, nn

def tensors_of(
    x: Tensor,
    modules: tuple[nn.Module | tuple | None, ...],
    forwards: Mapping[type[nn.Module], Callable],
) -> tuple[tuple[Tensor | None, ...], list[Tensor], int] | None:
    """The weight and the bias of each module in turn, if they are all that there is to it.

    Returns:
        The weights and biases, None of a module that is None; x and those that are there; a bit
        for each that is not, from the first on. None where a module is of no type in `forwards`,
        its type's forward is no longer that one, it has another, or hooks, or no such parameters.
    """

def are_listened_to(modules: tuple[nn.Module | None, ...]) -> bool:
    """Whether leaving out a call of one of them would be noticed: hooks, or another forward."""

def environment(variables: tuple[str, ...]) -> tuple[bytes | None, ...]:
    """The values of the process's environment variables, in a fraction of os.environ's time."""
