"""SAM and ASAM."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np

from .. import buffers, checks, hyper, kernels
from ..commit import prepared
from ..kernels import rules
from ..nn.utils.clip_grad import norm_and_finite
from ..parameter import Parameter
from ..sparse import RowsView
from . import arrays, gradients, members
from .gradient_optimizer import Ending, GradientOptimizer
from .wrapper import Wrapper

RHO = hyper.non_negative(0.05, "how far parameters are moved")
ADAPTIVE = hyper.flag(False, "move each element in proportion to its own size")
LEAST = 1e-12
"""What is added to the norm, as by the authors, so that no gradient at all moves nothing."""


class SAM(Wrapper):
    r"""SAM: steps by the gradient at the worst place nearby, for minima that are flat.

    A step evaluates the loss twice. With parameters :math:`\theta` of all groups and the gradient
    :math:`g` at :math:`\theta`:

    .. math::
        \hat\theta = \theta + \rho \, \frac{g}{\lVert g \rVert}
        \qquad \text{or if adaptive} \qquad
        \hat\theta = \theta + \rho \, \frac{\theta^2 g}{\lVert \theta g \rVert}

    elementwise but for the norms. The closure is called at :math:`\hat\theta`, parameters are put back
    to the last bit, and the inner optimizer makes its step with the gradient that was found there.
    Whatever ends the second evaluation, an error or Ctrl-C, parameters are as they were.

    All else is the inner optimizer's: groups, state, schedules, `max_norm` and `clip_value`, which
    count for the second gradient; `skip_nonfinite` looks at both. A group that maximizes moves the
    other way. The norm waits for a GPU. A step needs memory for one copy of all parameters, two if
    adaptive. Layers that keep statistics, such as batch normalization, should take them from the first
    of the two evaluations only.

    Args:
        optimizer: the optimizer that makes the steps, `genesis.optim.SGD(...)` for example; not `LBFGS`.
        rho: how far parameters are moved, a finite number of at least 0. Default: 0.05; if adaptive, ten
            times as much or more is usual.
        adaptive: move each element in proportion to its own size: ASAM. Default: False.

    Attributes:
        optimizer: as given.
        rho, adaptive: as given; may be changed between steps.

    Raises:
        TypeError, ValueError: arguments that are not as above.

    Example:
        >>> import numpy as np, genesis
        >>> x = np.array([3.0, -4.0])
        >>> opt = genesis.optim.SAM(genesis.optim.SGD({"x": x}, lr=0.25), rho=0.5)
        >>> def closure():
        ...     return x @ x, {"x": 2 * x}
        >>> float(opt.step(closure))
        25.0
        >>> x  # from half a unit further out
        array([ 1.35, -1.8 ])

    References:
        Foret, Kleiner, Mobahi, Neyshabur: Sharpness-aware minimization for efficiently improving
        generalization. ICLR 2021, https://arxiv.org/abs/2010.01412. Kwon, Kim, Park, Choi: ASAM:
        adaptive sharpness-aware minimization. ICML 2021, https://arxiv.org/abs/2102.11600 (adaptive)
    """

    _key = "sam"

    def __init__(self, optimizer: GradientOptimizer, rho: float = 0.05, adaptive: bool = False):
        super().__init__(optimizer)
        RHO.check("rho", rho)
        ADAPTIVE.check("adaptive", adaptive)
        self.rho, self.adaptive = float(rho), bool(adaptive)

    def _settings(self) -> Iterable[tuple[str, Any]]:
        return ("rho", self.rho), ("adaptive", self.adaptive)

    def _step(
        self,
        closure: Callable[[], Any] | None = None,
        *,
        grads: Any = None,
        _ending: Ending | None = None,
        **given: Any,
    ) -> Any:
        self.step_skipped = False
        if closure is None:
            raise RuntimeError(
                "SAM evaluates the loss twice a step, so that its step needs a closure: "
                "step(closure), where closure() computes loss and gradients of the parameters as they "
                "are, assigns these to parameter.grad or returns (loss, grads), and returns the loss"
            )
        if not callable(closure):
            raise TypeError(
                "the closure of step must be a function that computes the gradients, but got "
                f"{type(closure).__name__}"
            )
        if grads is not None:
            raise ValueError(
                "give grads= or a closure, but not both: a closure may return (loss, grads)"
            )
        RHO.check("rho", self.rho)
        ADAPTIVE.check("adaptive", self.adaptive)
        loss, tree = gradients.of_closure(closure())
        views = self._per_group(tree)
        if self._skips(given.get("skip_nonfinite")):
            found = [view for each in views for view in each if view is not None]
            if not norm_and_finite(found, 1.0)[1]:
                self.leave_out(given.get("zero_grad", False))
                return loss
        move, back, parameters = self._ways(views)
        # Whatever ends the second evaluation: the way back is ready before the first step away.
        outcome = prepared(back)
        try:
            prepared(move)()
            _, tree = gradients.of_closure(closure())
        finally:
            try:  # see `prepared`
                outcome()
            finally:
                pass
            for parameter in parameters:
                parameter.changed()
        self._inner_step(None, _ending, grads=tree, **given)
        return loss

    def _per_group(self, tree: Any) -> list[gradients.Views]:
        """For each group the views of its gradients."""
        if tree is not None:
            return self._given(tree)
        return [[p._grad_view for p in group["params"]] for group in self.param_groups]

    def _ways(
        self, views: list[gradients.Views]
    ) -> tuple[list[partial], list[partial], list[Parameter]]:
        """The calls that move parameters, those that put them back, and which these are.

        Raises:
            TypeError, ValueError: a parameter cannot be written, or a gradient does not fit it.
        """
        moved: list[Parameter] = []
        written: list[arrays.Used] = []
        read: list[arrays.Used] = []
        found: list[tuple[float, Any, Any]] = []
        number = 0
        for group, each in zip(self.param_groups, views):
            called = members.names(group, group["params"])
            for parameter, view, name in zip(group["params"], each, called):
                what = members.label(number, name)
                number += 1
                if isinstance(view, RowsView):
                    raise TypeError(
                        f"SAM does not support sparse gradients, but that of {what} is one: give the "
                        "dense gradient, grad.to_dense(len(parameter))"
                    )
                written.append(
                    arrays.Used(what, parameter._view, parameter.shape, parameter.device)
                )
                if view is not None:
                    arrays.gradient(view, parameter._view, what)
                    title = f"the gradient of {what}"
                    read.append(arrays.Used(title, view, parameter.shape, parameter.device))
                    moved.append(parameter)
                    found.append((-1.0 if group.get("maximize") else 1.0, view, parameter._view))
        arrays.usable(written, read)
        if not found:
            self._say_no_gradients()
        scale = self.rho / (self._norm(found) + LEAST)
        ascend = rules.accumulate_in_proportion if self.adaptive else rules.accumulate
        keep: list[partial] = []
        move: list[partial] = []
        back: list[partial] = []
        for (sign, _), rows in _by_kind(found).items():
            views_, params = zip(*rows)
            kept = [buffers.view(buffers.full(0.0, param, None)) for param in params]
            keep += self._launched(rules.copy, [params, kept], 1.0)
            move += self._launched(ascend, [views_, params], sign * scale)
            back += self._launched(rules.copy, [kept, params], 1.0)
        prepared(keep)()
        for parameter in moved:
            parameter.changed()
        return move, back, moved

    def _norm(self, found: list[tuple[float, Any, Any]]) -> float:
        """The norm of all gradients, if adaptive each multiplied by its parameter."""
        if not self.adaptive:
            return norm_and_finite([view for _, view, _ in found], 1.0)[0]
        products: list[Any] = []
        actions: list[partial] = []
        for rows in _by_kind(found).values():
            made = []
            for _, param in rows:
                wide = np.dtype(np.float32) if param.itemsize == 2 else None
                made.append(buffers.view(buffers.full(0.0, param, wide)))
            actions += self._launched(rules.product, [*zip(*rows), made], 1.0)
            products += made
        prepared(actions)()
        return norm_and_finite(products, 1.0)[0]

    def _launched(self, rule: Callable, columns: list[Any], scale: float) -> list[partial]:
        launch = kernels.prepare(rule, columns, 0, getattr(self.optimizer, "stream", None))
        launch.set_scalars(scale, ())
        return launch.once(columns)

    # ---- snapshots ----

    def _own_snapshot(self, number: dict[Parameter, int]) -> dict[str, Any]:
        return {"rho": self.rho, "adaptive": self.adaptive}

    def _taking_over_own(self, own: dict[str, Any], owner: dict[Any, Parameter]) -> list[partial]:
        missing = {"rho", "adaptive"} - own.keys()
        if missing:
            raise ValueError(f"'sam' of the loaded state dict has no {sorted(missing)}")
        RHO.check("rho", own["rho"])
        ADAPTIVE.check("adaptive", own["adaptive"])
        loaded = {"rho": checks.plain(own["rho"]), "adaptive": bool(own["adaptive"])}
        return [partial(setattr, self, name, value) for name, value in loaded.items()]


def _by_kind(found: list[tuple[float, Any, Any]]) -> dict[tuple, list[tuple[Any, Any]]]:
    """Gradients and parameters by sign and data types, of which a launch takes one each."""
    rows: dict[tuple, list[tuple[Any, Any]]] = {}
    for sign, view, param in found:
        kinds = tuple(buffers.layout(each)[:2] for each in (view, param))
        rows.setdefault((sign, kinds), []).append((view, param))
    return rows
