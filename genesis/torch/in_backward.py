"""Updates in the middle of the backward pass: each parameter as soon as its gradient is complete."""

from __future__ import annotations

from typing import Any

import torch

from ..optim import options
from .stepping import FusedStep, Paths


class InBackward:
    """What updates the parameters of an optimizer while gradients are being computed.

    Args:
        optimizer: the optimizer.
    """

    def __init__(self, optimizer: FusedStep):
        self._optimizer = optimizer
        self._parts: dict[int, _Part] = {}
        self._handles: list[Any] = []
        self.attach()

    def attach(self) -> None:
        """Wait for the gradients of all parameters of the optimizer."""
        for group in self._optimizer.param_groups:
            for param in group["params"]:
                if id(param) in self._parts:
                    continue
                part = self._parts[id(param)] = _Part(self._optimizer, param)
                asks = param.requires_grad
                # Torch takes a hook for nothing else; of one that is frozen now, it is called later.
                param.requires_grad_(True)
                self._handles.append(param.register_post_accumulate_grad_hook(part.update))
                param.requires_grad_(asks)

    def remove(self) -> None:
        """Update nothing in the backward pass any more: from now on it is `step()` that does."""
        for handle in self._handles:
            handle.remove()
        self._optimizer._in_backward = None

    @property
    def paths(self) -> Paths:
        """How many parameters their last update took which way."""
        found = [part.paths for part in self._parts.values()]
        reasons: dict[str, int] = {}
        for reason, count in (pair for paths in found for pair in paths.reasons.items()):
            reasons[reason] = reasons.get(reason, 0) + count
        by_genesis = sum(paths.genesis for paths in found)
        by_torch = sum(paths.torch for paths in found)
        return Paths(by_genesis, by_torch, len(found) - by_genesis - by_torch, reasons)


class _Part:
    """One parameter of an optimizer, updated by itself.

    Args:
        optimizer: the optimizer.
        param: the parameter.
    """

    def __init__(self, optimizer: FusedStep, param: torch.Tensor):
        self._optimizer, self._params = optimizer, [param]
        self._place = 0, 0
        # An optimizer of one parameter. State and settings are the other's, whenever it is used.
        self._own = object.__new__(type(optimizer))
        self._own.__dict__.update(optimizer.__dict__)
        self._own._begin(optimizer.strict)
        self._own._in_backward = None
        self._own._told = optimizer._told

    @property
    def paths(self) -> Paths:
        return self._own.fast

    def update(self, param: torch.Tensor) -> None:
        """Update the parameter by its gradient, which is complete, and forget that."""
        optimizer, own = self._optimizer, self._own
        place = self._found()
        if place is None:  # taken out of the optimizer
            return
        group, row = place
        groups = optimizer.param_groups
        if options.skips(groups):
            raise RuntimeError(
                "step_in_backward updates each parameter before the gradients of others are known, so "
                "that skip_nonfinite cannot leave out a whole step: set it to False in every group"
            )
        if any(each.get("measure_updates") for each in groups):
            raise RuntimeError(
                "step_in_backward makes no step whose updates measure_updates could measure together: "
                "set it to False in every group"
            )
        own.state, own.strict = optimizer.state, optimizer.strict
        own.param_groups = [{**groups[group], "params": self._params}]
        own._first = sum(len(groups[i]["params"]) for i in range(group)) + row
        with torch.no_grad():
            own._update(1.0, None)
        param.grad = None
        optimizer._opt_called = True  # type: ignore[attr-defined]  # what schedulers ask for

    def _found(self) -> tuple[int, int] | None:
        """The group and the row where the parameter is now."""
        groups, (group, row) = self._optimizer.param_groups, self._place
        (param,) = self._params
        if group < len(groups):
            params = groups[group]["params"]
            if row < len(params) and params[row] is param:
                return self._place
        for group, settings in enumerate(groups):
            for row, other in enumerate(settings["params"]):
                if other is param:
                    self._place = group, row
                    return self._place
        return None


def step_in_backward(model: Any, optimizer: Any, *args: Any, **given: Any) -> Any:
    """Update each parameter in the backward pass, as soon as its gradient is complete, and free that.

    One gradient is alive at a time, in place of all of them: the memory of a whole model's gradients is
    saved. The training loop has neither `step()` nor `zero_grad()`; `loss.backward()` does it all.

    What needs all gradients at once cannot be combined with it: clipping by their common norm,
    accumulation over several batches (each `backward()` updates), a `GradScaler`, closures, hooks
    around the step, and wrappers that reduce gradients after they are complete, as
    DistributedDataParallel does. Checkpointing has to be the non-reentrant one
    (`torch.utils.checkpoint.checkpoint(..., use_reentrant=False)`), since the other completes
    gradients piece by piece. If `backward()` raises halfway, the parameters that it had reached are
    updated, the others not.

    Args:
        model: a module, or what an optimizer takes: parameters, pairs of names and parameters, groups.
        optimizer: the class: of `genesis.torch`, or made by `genesis.torch.of`.
        args, given: what it takes besides parameters.

    Returns:
        An optimizer of that class, for schedulers, `state_dict()` and `load_state_dict()`; its groups
        may be edited as ever. Its `step()` raises. `optimizer.in_backward.remove()` ends it all.

    Raises:
        TypeError: `optimizer` is no such class.

    Example:
        >>> import torch, genesis.torch
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> _ = torch.nn.init.ones_(model.weight)
        >>> optimizer = genesis.torch.step_in_backward(model, genesis.torch.SGD, lr=0.5)
        >>> model(torch.tensor([1.0, -1.0])).sum().backward()
        >>> model.weight.data, model.weight.grad
        (tensor([[0.5000, 1.5000]]), None)
    """
    if not (isinstance(optimizer, type) and issubclass(optimizer, FusedStep)):
        name = getattr(optimizer, "__name__", repr(optimizer))
        raise TypeError(
            "step_in_backward takes an optimizer class of genesis.torch, or one that "
            f"genesis.torch.of has made, but got {name}"
        )
    params = model.parameters() if isinstance(model, torch.nn.Module) else model
    found: Any = optimizer(params, *args, **given)
    found._in_backward = InBackward(found)
    return found
