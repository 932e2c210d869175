"""Compile ahead, so that the first step of a run waits for nothing."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from typing import Any

from . import buffers, optim
from .kernels import waiting
from .progress import Progress

Make = str | Callable[..., Any]


def warmup(
    optimizers: Sequence[Make] | Make | None = None,
    dtypes: Sequence[str] | str = ("float32",),
    *,
    device: str = "cpu",
    progress: bool = True,
) -> None:
    """Compile what steps need, and keep it on disk, so that later runs find it there.

    Makes a few steps of each optimizer with arrays of its own, with its default settings or those given,
    without clipping and with `max_norm`. Variants that other settings choose (momentum, `amsgrad`,
    masters) are other machine code, compiled where they are given or at their first step. With
    `GENESIS_CACHE=0`, and where no lasting folder can be written, which a warning says, all this is for
    this process alone.

    Args:
        optimizers: names of optimizers of `genesis.optim`, classes, which `genesis.rule` may have made,
            or `functools.partial` of a class with hyper-parameters; one or several. Default: None, all
            of `genesis.optim`, which takes about half a second each.
        dtypes: types of parameters, "float64", "float32", "float16" or "bfloat16", one or several;
            "bfloat16:float32" is a parameter of bfloat16 with gradients of float32. Default: float32.
        device: "cpu", "cuda" (the first GPU) or "cuda:N". Optimizers that work on the CPU only are
            left out elsewhere, unless they are given. Default: "cpu".
        progress: show on standard error how far it has come. Default: True.

    Raises:
        TypeError: an optimizer is neither a name nor can be called.
        ValueError: there is no such optimizer, type or device, or it does not work there.
        RuntimeError: CUDA cannot be used here; the message says what is missing.

    Example:
        >>> import functools, genesis
        >>> with_momentum = functools.partial(genesis.optim.SGD, momentum=0.9)
        >>> genesis.warmup(["AdamW", with_momentum], "float64", progress=False)
    """
    from . import trials  # this asks for all of `genesis.optim`

    device = buffers.parse_device(device)
    makes = [(_title(make), _made(make)) for make in _several(optimizers, trials.names())]
    pairs = [_types(each, trials.DTYPES) for each in _several(dtypes, [])]
    jobs = [(title, make, pair) for title, make in makes for pair in pairs]
    with waiting.expected():
        for title, make, (dtype, gradient) in (
            bar := Progress(jobs, title="compiling", unit="optimizers", shown=progress)
        ):
            bar.note = f"{title} for {dtype}" + (f" and {gradient}" if gradient else "")
            try:
                _steps(trials.Trial(make, dtype, gradient, device))
            except (TypeError, ValueError) as error:
                if optimizers is not None or device == "cpu" or not only_on_the_cpu(error):
                    raise


def _steps(trial: Any) -> None:
    trial.step()
    trial.step()
    if isinstance(trial.optimizer, optim.LBFGS):  # it clips nothing
        return
    trial.step(max_norm=1.0)


def only_on_the_cpu(error: Exception) -> bool:
    """Whether an optimizer has refused a parameter for not being on the CPU."""
    return " on the CPU" in str(error)


def _several(given: Any, otherwise: list[str]) -> list[Any]:
    if given is None:
        return list(otherwise)
    return [given] if isinstance(given, str) or callable(given) else list(given)


def _title(make: Any) -> str:
    kind = make.func if isinstance(make, functools.partial) else make
    return kind if isinstance(kind, str) else getattr(kind, "__name__", repr(kind))


def _made(make: Any) -> Callable:
    from . import trials

    if callable(make):
        return make
    if not isinstance(make, str):
        raise TypeError(
            f"an optimizer to compile is a name, a class or a functools.partial of one, but got "
            f"{type(make).__name__}"
        )
    known = trials.names()
    if make not in known:
        raise ValueError(f"there is no optimizer {make!r}{_meant(make, known)}")
    return getattr(optim, make)


def _types(given: Any, known: dict[str, Any]) -> tuple[str, str | None]:
    dtype, _, gradient = str(given).partition(":")
    for each in (dtype, *([gradient] if gradient else [])):
        if each not in known:
            raise ValueError(
                f"parameters and gradients are of type {', '.join(known)}, or two of them as "
                f"bfloat16:float32, but got {given!r}{_meant(each, known)}"
            )
    return dtype, gradient or None


def _meant(name: str, known: Iterable[str]) -> str:
    """What to add to a message about a name that nobody knows."""
    folded = {each.lower(): each for each in known}
    found = get_close_matches(name.lower(), folded, 1)
    return f": did you mean {folded[found[0]]!r}?" if found else ""
