"""L-BFGS: a quasi-Newton method for smooth functions that are evaluated on all data at once."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, ClassVar

import numpy as np

from .. import buffers, hyper, kernels
from ..commit import assign, commit, prepared
from ..kernels import rules
from ..parameter import Parameter
from . import arrays, hooks, members, spelling
from .gradients import Views, of_closure
from .line_search import Point, strong_wolfe
from .optimizer import Optimizer

Vector = np.ndarray
"""All parameters, or all gradients, one behind the other: float64 if one of them is, else float32."""


class LBFGS(Optimizer):
    r"""L-BFGS: Newton steps with an inverse Hessian estimated from the last gradients.

    With parameters :math:`\theta_k`, gradients :math:`g_k`, and pairs
    :math:`s_k = \theta_{k+1} - \theta_k`, :math:`y_k = g_{k+1} - g_k`, each iteration is

    .. math::
        d_k &= - H_k \, g_k, \qquad
        H_{k+1} = V_k^\top H_k V_k + \rho_k s_k s_k^\top, \quad
        V_k = I - \rho_k y_k s_k^\top, \quad \rho_k = \frac{1}{y_k^\top s_k} \\
        \theta_{k+1} &= \theta_k + t_k \, d_k

    where :math:`H_k` is never formed: the last `history_size` pairs give its product with
    :math:`g_k`, starting from :math:`\frac{y^\top s}{y^\top y} I`. The step length :math:`t_k` is `lr`,
    or found from there by a search for the strong Wolfe conditions. A pair with
    :math:`y^\top s \le 10^{-10}` is left out.

    One `step` does up to `max_iter` iterations and calls its closure each time anew, so a closure is
    required; it must compute the loss and set the gradients of all parameters, on the same data
    every time. A parameter without gradient counts as one with a gradient of zeros. There can be
    only one group. Vectors are kept on the host (parameters and gradients on a GPU are copied there
    and back at each evaluation) and worked on by BLAS and by fused kernels.

    Args:
        params: a tree of arrays, or an iterable of `Parameter`s, of `(name, Parameter)` pairs, or of
            one group dict.
        lr: step length, at least 0; with a line search the first one to be tried. The very first
            iteration uses `lr * min(1, 1 / sum(abs(gradient)))`. Default: 1.
        max_iter: iterations in one step, at least 1. Default: 20.
        max_eval: closure calls after which a step does no further iteration, at least 1.
            Default: None, `max_iter * 5 // 4`.
        tolerance_grad: a step ends when no element of the gradient is larger, at least 0.
            Default: 1e-7.
        tolerance_change: a step ends when neither the loss nor any element of a parameter changes
            by more, at least 0. Default: 1e-9.
        history_size: pairs that are kept, each of twice the parameters' size, at least 1.
            Default: 100.
        line_search_fn: None or "strong_wolfe". Default: None.

    Returns:
        `step(closure)` returns what the first call of the closure returned.

    Raises:
        TypeError: no closure, a closure that returns no number, a sparse gradient, or a
            hyper-parameter of a wrong type.
        ValueError: several groups, `max_norm`, an impossible hyper-parameter, or arrays that do not
            fit each other any more. Whatever ends a step before its time, an error in the closure or
            Ctrl-C at any moment, the parameters and the state are those from before the step.

    Attributes:
        stop_reason: the hyper-parameter that ended the last step, "tolerance_grad" (the gradient is
            0, as good as), "tolerance_change" (nothing changes any more), "max_iter" or "max_eval"
            (another step would go on); None before the first step.

    State, kept under the first parameter: "func_evals", "n_iter", and after the first iteration "d"
    (the direction), "t" (the step length), "old_dirs" (:math:`y`), "old_stps" (:math:`s`), "ro"
    (:math:`\rho`), "H_diag", "prev_flat_grad", "prev_loss", "al".

    Example:
        >>> import numpy as np, genesis
        >>> x = np.array([-1.5, 2.0])
        >>> p = genesis.Parameter(x)
        >>> opt = genesis.optim.LBFGS([p], line_search_fn="strong_wolfe")
        >>> def rosenbrock():
        ...     a, b = x
        ...     p.grad = np.array([2 * (a - 1) - 400 * a * (b - a * a), 200 * (b - a * a)])
        ...     return (1 - a) ** 2 + 100 * (b - a * a) ** 2
        >>> for _ in range(3):
        ...     _ = opt.step(rosenbrock)
        >>> x.round(5)
        array([1., 1.])

    References:
        Liu, Nocedal: On the limited memory BFGS method for large scale optimization. Mathematical
        Programming 45, 1989, https://doi.org/10.1007/BF01589116. Nocedal, Wright: Numerical
        optimization, 2006, algorithms 3.5 and 3.6 (line search), 7.4 and 7.5.
    """

    _hypers: ClassVar = {
        "lr": hyper.rate(scheduled=False),
        "max_iter": hyper.count(),
        "max_eval": hyper.count(),
        "tolerance_grad": hyper.non_negative(),
        "tolerance_change": hyper.non_negative(),
        "history_size": hyper.count(),
        "line_search_fn": hyper.word(("strong_wolfe",)),
    }
    stop_reason: str | None = None
    _numbers = ("func_evals", "n_iter")
    _sometimes = (
        "d", "t", "old_dirs", "old_stps", "ro", "H_diag", "prev_flat_grad", "prev_loss", "al",
    )  # fmt: skip

    @spelling.explained
    def __init__(
        self,
        params: Iterable,
        lr: float = 1,
        max_iter: int = 20,
        max_eval: int | None = None,
        tolerance_grad: float = 1e-7,
        tolerance_change: float = 1e-9,
        history_size: int = 100,
        line_search_fn: str | None = None,
    ):
        if max_eval is None and isinstance(max_iter, (int, np.integer)):
            max_eval = max(1, max_iter * 5 // 4)
        defaults = {
            "lr": lr,
            "max_iter": max_iter,
            "max_eval": max_eval,
            "tolerance_grad": tolerance_grad,
            "tolerance_change": tolerance_change,
            "history_size": history_size,
            "line_search_fn": line_search_fn,
        }
        super().__init__(params, defaults)

    def _new_group(self, param_group: Any, others: list[dict[str, Any]]) -> dict[str, Any]:
        if others:
            raise ValueError("LBFGS doesn't support per-parameter options (parameter groups)")
        return super()._new_group(param_group, others)

    def _usual(self, name: str, default: Any) -> Any:
        if name != "max_eval":
            return default
        return max(1, self.param_groups[0]["max_iter"] * 5 // 4)

    # ---- the step ----

    @hooks.around
    def step(
        self,
        closure: Callable[[], Any] | None = None,
        *,
        grads: None = None,
        max_norm: None = None,
        clip_value: None = None,
    ) -> Any:
        """Do up to `max_iter` iterations. `stop_reason` then says what ended them.

        Args:
            closure: a function that computes the gradients anew, and returns the loss, if it has
                assigned them, or `(loss, grads)` with a tree like the parameters; required.
            grads: must be None, since gradients are asked for several times.
            max_norm, clip_value: must be None, since the search for a step relies on the loss's own
                gradients.

        Returns:
            The loss of the first call of the closure.

        Raises:
            TypeError, ValueError: see `LBFGS`. The parameters and the state are those from before.
        """
        return self._step(closure, grads=grads, max_norm=max_norm, clip_value=clip_value)

    def _step(
        self,
        closure: Any = None,
        *,
        grads: Any = None,
        max_norm: Any = None,
        clip_value: Any = None,
    ) -> Any:
        if closure is None or not callable(closure) or grads is not None:
            raise TypeError(
                "LBFGS evaluates the loss several times in a step, so it needs a function that "
                f"does, step(closure), which may return (loss, grads); but got {closure!r}"
                + ("" if grads is None else " and grads")
            )
        if max_norm is not None or clip_value is not None:
            raise ValueError(
                f"LBFGS does not take {'clip_value' if max_norm is None else 'max_norm'}: a clipped "
                "gradient is not that of the loss, which the search for a step relies on"
            )
        (group,) = self.param_groups
        self._check_group(group, 0)
        parameters = group["params"]
        problem = _Problem(parameters, closure, self._check_gradient, self._given, group)
        history = _History.of(self.state.get(parameters[0]) or {}, problem)
        outcome = problem.restoring()
        finish = prepared(outcome)
        try:
            first_loss, reason = _iterate(problem, problem.point(), history, group)
            history.func_evals += problem.calls
            entries = history.entries(group["history_size"])
            outcome[:] = [
                self.state.updating({parameters[0]: entries}),
                partial(setattr, self, "_step_count", self._step_count + 1),
                partial(setattr, self, "stop_reason", reason),
            ]
        finally:
            try:  # see `prepared`
                finish()
            finally:
                pass
        return first_loss

    # ---- state ----

    def _state_on(self, device_for: Callable[[Parameter], str]) -> dict[Parameter, dict]:
        return {parameter: dict(entries) for parameter, entries in self.state.items()}

    def _as_saved(self, i: int, group: dict[str, Any], saved: Any) -> list[Parameter]:
        parameters = super()._as_saved(i, group, saved)
        if parameters is not group["params"]:
            raise ValueError(
                "the state of LBFGS holds all parameters one behind the other, but they were saved in "
                f"the order {list(saved)}: give them to the constructor in that order"
            )
        return parameters

    def _loaded_state(
        self, what: str, parameter: Parameter, entries: dict, block: buffers.Block | None = None
    ) -> dict[str, Any]:
        entries = {name: value for name, value in entries.items() if value is not None}
        if not entries:
            return {}
        missing = {*self._numbers} - entries.keys()
        unknown = entries.keys() - {*self._numbers, *self._sometimes}
        if missing or unknown:
            wrong = f"no {sorted(missing)}" if missing else f"{sorted(unknown)}"
            raise ValueError(
                f"loaded state of {what} has {wrong}: was it saved by another optimizer than LBFGS?"
            )
        loaded: dict[str, Any] = {name: int(entries[name]) for name in self._numbers}
        if loaded["n_iter"] == 0:
            return loaded
        missing = {*self._sometimes} - {"al"} - entries.keys()
        if missing:
            raise ValueError(f"loaded state of {what} has no {sorted(missing)}")
        parameters = self._parameters()
        dtype = _arithmetic(parameters)
        size = sum(p.size for p in parameters)

        def vector(value: Any, name: str) -> Vector:
            title = f"loaded state {name!r} of {what}"
            array = buffers.as_host(value, title)
            if array.shape != (size,):
                raise ValueError(f"{title} has shape {array.shape}, but all parameters have {size}")
            return np.array(array, dtype)

        for name in ("d", "prev_flat_grad"):
            loaded[name] = vector(entries[name], name)
        for name in ("t", "H_diag", "prev_loss"):
            loaded[name] = float(entries[name])
        for name in ("old_dirs", "old_stps"):
            loaded[name] = [vector(value, name) for value in entries[name]]
        loaded["ro"] = [float(value) for value in entries["ro"]]
        if not len(loaded["ro"]) == len(loaded["old_dirs"]) == len(loaded["old_stps"]):
            raise ValueError(
                f"loaded state of {what} has 'old_dirs', 'old_stps' and 'ro' of different lengths"
            )
        loaded["al"] = [0.0 if a is None else float(a) for a in entries.get("al", ())]
        return loaded


class _History:
    """What is known from earlier iterations: the state, as Python objects."""

    func_evals = 0
    n_iter = 0
    direction: Vector | None = None
    length = 0.0
    gradient: Vector | None = None
    loss = 0.0
    scale = 1.0

    def __init__(self) -> None:
        self.gradient_changes: list[Vector] = []
        self.moves: list[Vector] = []
        self.curvatures: list[float] = []

    @classmethod
    def of(cls, entries: dict[str, Any], problem: _Problem) -> _History:
        """The history that state holds, in lists of its own, for a problem that it suits."""
        history = cls()
        history.func_evals = entries.get("func_evals", 0)
        history.n_iter = entries.get("n_iter", 0)
        if history.n_iter:
            problem.check_state(entries)
            history.direction = entries["d"]
            history.length = entries["t"]
            history.gradient_changes = list(entries["old_dirs"])
            history.moves = list(entries["old_stps"])
            history.curvatures = list(entries["ro"])
            history.scale = entries["H_diag"]
            history.gradient = entries["prev_flat_grad"]
            history.loss = entries["prev_loss"]
        return history

    def entries(self, history_size: int) -> dict[str, Any]:
        """The state under torch's names."""
        counts = {"func_evals": self.func_evals, "n_iter": self.n_iter}
        if not self.n_iter:
            return counts
        return {
            **counts,
            "d": self.direction,
            "t": self.length,
            "old_dirs": self.gradient_changes,
            "old_stps": self.moves,
            "ro": self.curvatures,
            "H_diag": self.scale,
            "prev_flat_grad": self.gradient,
            "prev_loss": self.loss,
            "al": [0.0] * history_size,  # torch's working space: it wants one place a pair
        }

    def take(self, gradient: Vector, history_size: int) -> None:
        """Learn from the gradient where the last move has led."""
        assert self.direction is not None
        assert self.gradient is not None
        change = gradient - self.gradient
        move = self.direction * change.dtype.type(self.length)
        curvature = float(np.dot(change, move))
        if curvature > 1e-10:
            while len(self.moves) >= history_size:
                del self.gradient_changes[0], self.moves[0], self.curvatures[0]
            self.gradient_changes.append(change)
            self.moves.append(move)
            self.curvatures.append(1.0 / curvature)
            self.scale = curvature / float(np.dot(change, change))

    def newton_direction(self, gradient: Vector) -> Vector:
        """Minus the estimated inverse Hessian times the gradient, by the two-loop recursion."""
        direction = -gradient
        vector = kernels.working(direction)
        count = len(self.moves)
        # Each pass adds what is known and multiplies by the vector from which the next factor follows.
        weights = [0.0] * count
        product = vector.times(self.moves[-1]) if count else 0.0
        for i in reversed(range(count)):
            weights[i] = product * self.curvatures[i]
            if i:
                change, before = self.gradient_changes[i], self.moves[i - 1]
                product = vector.add_and_multiply(-weights[i], change, before)
            else:
                vector.add(-weights[i], self.gradient_changes[i])
        direction *= direction.dtype.type(self.scale)
        product = vector.times(self.gradient_changes[0]) if count else 0.0
        for i in range(count):
            weight = weights[i] - product * self.curvatures[i]
            if i + 1 < count:
                product = vector.add_and_multiply(
                    weight, self.moves[i], self.gradient_changes[i + 1]
                )
            else:
                vector.add(weight, self.moves[i])
        return direction


class _Adder:
    """Adds multiples of other vectors to one vector, in one pass over memory each."""

    def __init__(self, vector: Vector):
        self._vector = vector
        self._launch: kernels.Launch | None = None

    def __call__(self, factor: float, other: Vector) -> None:
        if self._launch is None:
            self._launch = kernels.prepare(rules.accumulate, [[other], [self._vector]], 0)
        else:
            self._launch.refresh_gradients([other])
        with np.errstate(over="ignore"):
            self._launch.set_scalars(self._vector.dtype.type(factor), ())
        self._launch.run()


class _Problem:
    """The function to be minimized: parameters as one vector, and its value and gradient there."""

    def __init__(
        self,
        parameters: list[Parameter],
        closure: Callable[[], Any],
        check_gradient: Callable[[dict[str, Any], np.ndarray], None],
        given: Callable[[Any], list[Views]],
        group: dict[str, Any],
    ):
        self._parameters = parameters
        self._closure = closure
        self._check_gradient = check_gradient
        self._given = given
        self._group = group
        self._dtype = _arithmetic(parameters)
        ends = itertools.accumulate(p.size for p in parameters)
        self._parts = [slice(end - p.size, end) for end, p in zip(ends, parameters)]
        self._views = [p._view for p in parameters]
        self._written = [
            arrays.Used(members.label(i, name), p._view, p.shape, p.device)
            for i, (p, name) in enumerate(zip(parameters, members.names(group, parameters)))
        ]
        self.calls = 0
        self.loss: Any = None
        self._check(self._assigned())

    def _assigned(self) -> Views:
        """The gradients that parameters hold."""
        return [parameter._grad_view for parameter in self._parameters]

    def _check(self, views: Views) -> None:
        """Raise TypeError or ValueError unless a step can use arrays and these gradients as they are."""
        gradients: list[arrays.Used] = []
        for view, used in zip(views, self._written):
            if view is not None:
                self._check_gradient(self._group, view)
                gradients.append(
                    arrays.Used(f"the gradient of {used.what}", view, used.shape, used.device)
                )
        arrays.usable(self._written, gradients)

    def check_state(self, entries: dict[str, Any]) -> None:
        """Raise ValueError or TypeError unless the vectors in this state fit the parameters."""
        shape = (self._parts[-1].stop,)
        title = self._written[0].what
        missing = {*LBFGS._sometimes} - {"al"} - entries.keys()
        if missing:
            raise ValueError(
                f"the state of {title} has no {sorted(missing)}: clear it with optimizer.state.clear()"
            )
        vectors = {f"state {name!r} of {title}": entries[name] for name in ("d", "prev_flat_grad")}
        for name in ("old_dirs", "old_stps"):
            if len(entries[name]) != len(entries["ro"]):
                raise ValueError(
                    f"state {name!r} of {title} has {len(entries[name])} vectors for "
                    f"{len(entries['ro'])} numbers in 'ro': clear it with optimizer.state.clear()"
                )
            for i, vector in enumerate(entries[name]):
                vectors[f"vector {i} in state {name!r} of {title}"] = vector
        arrays.usable(
            self._written, [arrays.Used(what, vector, shape) for what, vector in vectors.items()]
        )
        for what, vector in vectors.items():
            if vector.dtype != self._dtype:
                raise TypeError(
                    f"{what} has dtype {vector.dtype}, but must have {self._dtype}: convert it with "
                    f"array.astype(numpy.{self._dtype})"
                )

    def point(self) -> Vector:
        """The parameters' values."""
        return self._gathered(self._views)

    def move_to(self, point: Vector) -> None:
        """Set the parameters' values."""
        with np.errstate(over="ignore"):
            moves = [
                _setting(view, point[part].reshape(view.shape))
                for view, part in zip(self._views, self._parts)
            ]
        for parameter in self._parameters:
            parameter.changed()
        commit(moves)

    def restoring(self) -> list[partial]:
        """The calls that put back the parameters' values as they are now."""
        return [
            *(_setting(view, buffers.host_copy(buffers.given(view))) for view in self._views),
            # These run Python code, so they come after all the others.
            *(partial(parameter.changed) for parameter in self._parameters),
        ]

    def evaluate(self) -> tuple[float, Vector]:
        """The loss and its gradient where the parameters are."""
        self.loss, grads = of_closure(self._closure())
        self.calls += 1
        try:
            loss = float(self.loss)
        except (TypeError, ValueError):
            raise TypeError(
                f"the closure must return the loss, a number, but returned {self.loss!r}"
            ) from None
        for parameter, view, used in zip(self._parameters, self._views, self._written):
            if parameter._view is not view:
                raise ValueError(
                    f"{used.what} was given another array by the closure: a step moves the array that "
                    "it began with, so assign data between steps"
                )
        (views,) = [self._assigned()] if grads is None else self._given(grads)
        self._check(views)
        return loss, self._gathered(views)

    def _gathered(self, views: Sequence[np.ndarray | None]) -> Vector:
        vector = np.empty(self._parts[-1].stop, self._dtype)
        with np.errstate(over="ignore"):
            for view, part in zip(views, self._parts):
                if view is None:
                    vector[part] = 0
                    continue
                if isinstance(view, buffers.DeviceView):
                    view = buffers.host_copy(buffers.given(view))
                vector[part].reshape(view.shape)[...] = view
        return vector


def _setting(view: np.ndarray, values: np.ndarray) -> partial:
    """The call that writes host values into the array that a view shows."""
    if not isinstance(view, buffers.DeviceView):
        return assign(view, values)
    copy = buffers.copy_beside(values, view)
    launch = kernels.prepare(rules.copy, [[buffers.view(copy)], [view]], 0)
    launch.set_scalars(1.0, ())
    return partial(_run, launch, copy)


def _run(launch: kernels.Launch, held: Any) -> None:
    """Run a launch; the arrays that it works on live as long as this call is prepared."""
    launch.run()


def _arithmetic(parameters: list[Parameter]) -> np.dtype:
    return np.dtype(
        np.float64 if any(p._view.dtype == np.float64 for p in parameters) else np.float32
    )


def _largest(vector: Vector) -> float:
    """The largest magnitude in a vector."""
    return max(float(vector.max()), -float(vector.min())) if vector.size else 0.0


class _Line:
    """The points that are reached from one point in one direction."""

    def __init__(self, problem: _Problem, start: Vector, direction: Vector):
        self._problem = problem
        self._start = start
        self.direction = direction
        self.size = _largest(direction)

    def at(self, length: float) -> Point:
        """Move the parameters there and evaluate."""
        point = self._start.copy()
        _Adder(point)(length, self.direction)
        self._problem.move_to(point)
        loss, gradient = self._problem.evaluate()
        return Point(length, loss, gradient, float(np.dot(gradient, self.direction)))


def _iterate(
    problem: _Problem, point: Vector, history: _History, group: dict[str, Any]
) -> tuple[Any, str]:
    """One step from `point`, where the parameters are; moves them and completes the history.

    Returns the first loss, and the hyper-parameter that ended the step.
    """
    lr, tolerance_change = float(group["lr"]), group["tolerance_change"]
    loss, gradient = problem.evaluate()
    first_loss = problem.loss
    if _largest(gradient) <= group["tolerance_grad"]:
        return first_loss, "tolerance_grad"
    for iteration in range(1, group["max_iter"] + 1):
        history.n_iter += 1
        if history.n_iter == 1:
            direction = -gradient
            length = min(1.0, 1.0 / float(np.abs(gradient).sum())) * lr
        else:
            history.take(gradient, group["history_size"])
            with np.errstate(over="ignore"):
                direction = history.newton_direction(gradient)
            length = lr
        history.direction, history.length = direction, length
        history.gradient, history.loss = gradient, loss
        slope = float(np.dot(gradient, direction))
        if slope > -tolerance_change:
            return first_loss, "tolerance_change"

        add = _Adder(point)
        if group["line_search_fn"] is not None:
            here = Point(0.0, loss, gradient, slope)
            calls_left = group["max_eval"] - problem.calls
            line = _Line(problem, point, direction)
            found = strong_wolfe(line, here, length, tolerance_change, calls_left)
            history.length = length = found.length
            loss, gradient = found.loss, found.gradient
            add(length, direction)
            problem.move_to(point)
        else:
            add(length, direction)
            problem.move_to(point)
            if iteration == group["max_iter"]:
                break
            loss, gradient = problem.evaluate()

        if _largest(gradient) <= group["tolerance_grad"]:
            return first_loss, "tolerance_grad"
        if (
            _largest(direction) * abs(length) <= tolerance_change
            or abs(loss - history.loss) < tolerance_change
        ):
            return first_loss, "tolerance_change"
        if problem.calls >= group["max_eval"]:
            return first_loss, "max_eval"
    return first_loss, "max_iter"
