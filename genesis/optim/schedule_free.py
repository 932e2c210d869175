"""Schedule-Free optimizers: gradients where an average and the newest iterate are mixed."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

from .. import buffers, hyper, kernels
from ..commit import commit
from ..hyper import Hyper
from ..kernels import rules
from ..parameter import Parameter
from . import arrays, group, members
from .pieces import average, average_of_squares
from .rule import rule
from .rule_optimizer import RuleOptimizer


class ScheduleFree(RuleOptimizer):
    """Base of Schedule-Free optimizers: parameters at which gradients are taken, or their average.

    Training takes gradients at y, which parameters hold in train mode, as they do from the start. What
    training is for is the average x: `eval()` lets parameters show it, and `train()` puts back y to the
    last bit, so that a run that evaluates is the run that does not. Either is one pass over memory, for
    all parameters or for none.

    The mode is in the groups as "train_mode", and so in every state dict; loading one into an optimizer
    makes its mode that of the dict. In eval mode y is in the state, one more buffer. So save parameters
    and optimizer at the same moment, in whichever mode, and load both:

    - in eval mode the parameters are x, what a program without this optimizer is to be given; training
      goes on with `train()`;
    - in train mode they are y, which is good for nothing but to go on. `eval()` makes x of them.
    """

    _hypers: ClassVar[dict[str, Hyper]] = {
        "train_mode": hyper.flag(
            True, "whether parameters hold y and not x; `train`, `eval` set it"
        )
    }
    _sometimes = ("y",)

    def _bound(self, args: tuple, given: dict[str, Any]) -> dict[str, Any]:
        return {**super()._bound(args, given), "train_mode": True}

    def _new_group(self, param_group: Any, others: list[dict[str, Any]]) -> dict[str, Any]:
        made = super()._new_group(param_group, others)
        # Parameters that have had no step are x and y at once: they join in whichever mode it is.
        group.put(made, "train_mode", all(other["train_mode"] for other in others))
        return made

    @classmethod
    def _check_setting(cls, name: Any, value: Any) -> None:
        if name == "train_mode":
            raise ValueError(
                f"a group's train_mode cannot be set to {value!r} by itself, since parameters change "
                "with it: call optimizer.train() or optimizer.eval()"
            )
        if name == "ema_decay" and value is not None:
            raise TypeError(
                f"{cls.__name__} does not support ema_decay, since it keeps an average of its own: "
                "optimizer.eval() lets parameters show it"
            )
        super()._check_setting(name, value)

    def _step(self, closure: Callable[[], Any] | None = None, **given: Any) -> Any:
        if not all(each.get("train_mode", True) for each in self.param_groups):
            raise RuntimeError(
                f"{type(self).__name__}.step: the optimizer is in eval mode, in which parameters show "
                "their average, so that gradients of them say nothing: call optimizer.train() before "
                "gradients are computed"
            )
        return super()._step(closure, **given)

    def swap_ema(self) -> None:
        """Not here: `eval` shows the average that this optimizer keeps, and `train` ends that."""
        raise RuntimeError(
            f"{type(self).__name__} has no swap_ema(): call eval(), which lets parameters show their "
            "average, and train() to go on"
        )

    def eval(self) -> None:
        """Let parameters show the average x, for an evaluation or to be saved. Twice is as once.

        What they were is kept, exactly, in the state under "y", until `train`. Meanwhile a step is
        refused. Parameters that have had no step stay as they are.

        Raises:
            TypeError, ValueError: an array does not fit its place or cannot be written. Nothing has
                been written.

        Example:
            >>> import numpy as np, genesis
            >>> x = np.array([1.0])
            >>> opt = genesis.optim.ScheduleFreeSGD([genesis.Parameter(x)], lr=0.5)
            >>> for _ in range(2):
            ...     _ = opt.step(grads=[np.array([1.0])])
            >>> opt.eval()
            >>> x  # the average of z, which was 0.5 and then 0
            array([0.25])
            >>> opt.train()
            >>> x.round(3)
            array([0.225])
        """
        self._switch(False)

    def train(self) -> None:
        """Let parameters be again what they were before `eval`, to go on training. Twice is as once.

        Raises:
            TypeError, ValueError: an array does not fit its place or cannot be written, or the state
                does not have what parameters were. Nothing has been written.

        Example: see `eval`.
        """
        self._switch(True)

    def _switch(self, training: bool) -> None:
        """Let all parameters be y if `training`, or x."""
        groups = [each for each in self.param_groups if each["train_mode"] is not training]
        shown = _Shown(self._stream)
        first = 0
        for each in self.param_groups:
            parameters = list(each["params"])
            members.check_parameters(parameters)
            if each["train_mode"] is not training:
                mix = each["momentum"] if "momentum" in self._hypers else each["betas"][0]
                called = members.names(each, parameters)
                for number, (parameter, name) in enumerate(zip(parameters, called), first):
                    entries = dict(self._state.get(parameter) or {})
                    what = members.label(number, name)
                    if "z" in entries and training:
                        shown.end(parameter, entries, what)
                    elif "z" in entries:
                        shown.begin(parameter, entries, what, 1 - 1 / mix)
            first += len(parameters)
        modes = [partial(dict.__setitem__, each, "train_mode", training) for each in groups]
        commit([*shown.actions(), self._state.updating(shown.after), *modes])


class _Shown:
    """What `eval` and `train` are to do, parameter by parameter.

    Attributes:
        after: the state of each parameter that changes, as it will be.
    """

    def __init__(self, stream: Any):
        self._stream = stream
        self.after: dict[Parameter, dict[str, Any]] = {}
        self._written: list[arrays.Used] = []
        self._read: list[arrays.Used] = []
        self._rows: dict[tuple, list[list[Any]]] = {}

    def begin(
        self, parameter: Parameter, entries: dict[str, Any], what: str, weight: float
    ) -> None:
        """Let a parameter become x = y + weight (z - y), and keep y."""
        view = self._used(what, parameter._view, parameter, self._written)
        y = buffers.full(0.0, view, None)
        z = self._used(f"state 'z' of {what}", entries["z"], parameter, self._read)
        columns = [z, view, buffers.view(y)]
        function = rules.beyond
        if "master" in entries:
            title = f"state 'master' of {what}"
            columns.append(self._used(title, entries["master"], parameter, self._written))
            function = rules.beyond_master
        self._add(function, (weight,), columns)
        self.after[parameter] = {**entries, "y": y}

    def end(self, parameter: Parameter, entries: dict[str, Any], what: str) -> None:
        """Let a parameter be y again."""
        if "y" not in entries:
            raise ValueError(
                f"the state of {what} has no 'y', what the parameter was before eval(), though its "
                "group is in eval mode: load the state as it was saved"
            )
        view = self._used(what, parameter._view, parameter, self._written)
        y = self._used(f"state 'y' of {what}", entries.pop("y"), parameter, self._read)
        self._add(rules.copy, (), [y, view])
        self.after[parameter] = entries

    def _used(self, what: str, array: Any, parameter: Parameter, among: list[arrays.Used]) -> Any:
        """The view of an array, once it is known to fit its parameter."""
        used = arrays.Used(what, array, parameter.shape, parameter.device)
        among.append(used)
        return arrays.fitting(used)

    def _add(self, function: Callable, scalars: tuple, columns: list[Any]) -> None:
        kinds = tuple(buffers.layout(column)[:2] for column in columns)
        self._rows.setdefault((function, scalars, kinds), []).append(columns)

    def actions(self) -> list[partial]:
        """The calls, for `commit`, that write the parameters; the arrays are verified first."""
        arrays.usable(self._written, self._read)
        actions: list[partial] = []
        for (function, scalars, _), rows in self._rows.items():
            columns = list(zip(*rows))
            launch = kernels.prepare(function, columns, len(scalars), self._stream)
            launch.set_scalars(1.0, scalars)
            actions += launch.once(columns)
        for parameter in self.after:
            parameter.changed()
        return actions


# ---- what the rules share ----

WARMUP_STEPS = hyper.count(0, "in how many updates the learning rate rises to its value", least=0)
R = hyper.non_negative(0.0, "the power of the update number with which z counts in the average")
WEIGHT_LR_POWER = hyper.non_negative(
    2.0, "the power of the largest learning rate so far with which z counts in the average"
)
DECAYS_AT_Y = hyper.non_negative(0, "weight decay, calculated at y")
BETAS = hyper.several(
    hyper.number(0.9, above=0, below=1),
    hyper.decay(0.999),
    text="how much of y is the average x, and the decay rate of the average of squares",
    title="beta parameter",
)


def _warm(lr, step, warmup_steps):
    """The learning rate of an update, which rises at first."""
    return lr * step / warmup_steps if step < warmup_steps else lr


def _shares(step, rate, weight_sum, lr_max, r, weight_lr_power):
    """The numbers by which the average x takes in the newest z, after an update of this rate."""
    lr_max = max(rate, lr_max)
    weight = step**r * lr_max**weight_lr_power
    weight_sum += weight
    # Nothing has moved as long as rates were 0, so that any share is as good.
    kept = 1 - weight / weight_sum if weight_sum else 1.0
    return {"rate": rate, "kept": kept, "weight_sum": weight_sum, "lr_max": lr_max}


def _moved(param, z, direction, rate, kept, mix):
    """Parameter and z after an update along a direction, and the average that is in both.

    With y = mix x + (1 - mix) z, it follows from x = kept x + (1 - kept) z, of the new z.
    """
    param = average(param, z, kept) - rate * (1 - mix * kept) * direction
    return param, z - rate * direction


# ---- the rules ----


def _sgd_numbers(step, weight_sum=0.0, lr_max=0.0, *, lr, warmup_steps, r, weight_lr_power):
    return _shares(step, _warm(lr, step, warmup_steps), weight_sum, lr_max, r, weight_lr_power)


@rule(numbers=_sgd_numbers, base=ScheduleFree)
def ScheduleFreeSGD(
    param,
    grad,
    z,
    *,
    lr=1.0,
    momentum=hyper.number(0.9, "how much of y is the average x", above=0, below=1),
    weight_decay=DECAYS_AT_Y,
    warmup_steps=WARMUP_STEPS,
    r=R,
    weight_lr_power=WEIGHT_LR_POWER,
    rate,
    kept,
    first,
):
    r"""Schedule-Free SGD: an average in place of a falling learning rate.

    Gradients are those at :math:`y`, which the parameter holds while it is trained. With gradient
    :math:`g`, learning rate :math:`\gamma`, momentum :math:`\beta`, weight decay :math:`\lambda`, update
    number :math:`t`, warm-up over :math:`T` updates, and :math:`x = y = z` at first:

    .. math::
        \gamma_t &= \gamma \min(1, t / T), \qquad
        w_t = t^r \max(\gamma_1, \dots, \gamma_t)^p, \qquad c_t = w_t / (w_1 + \dots + w_t) \\
        z &\leftarrow z - \gamma_t (g + \lambda y) \\
        x &\leftarrow (1 - c_t) \, x + c_t z \\
        y &= \beta x + (1 - \beta) z

    where :math:`p` is `weight_lr_power`. The result is the average :math:`x`: call `eval()` before the
    parameter is evaluated or handed on, and `train()` before training goes on. It is the learning rate
    that stays constant; a schedule besides is possible, and then counts in the average as above.

    :math:`x` is not kept: it follows from :math:`y` and :math:`z`. So with `state_dtype="bfloat16"`, in
    which :math:`z` takes no small steps, set `stochastic_rounding` as well.

    The paper's weight is :math:`\gamma_t^2`; the maximum is that of its authors' package. Numbers are
    counted for each parameter by the updates that it has had, in the package for each group.

    State of a parameter: "step", the numbers "weight_sum" (:math:`w_1 + \dots + w_t`) and "lr_max", "z",
    and in eval mode "y".

    Example:
        >>> import numpy as np, genesis
        >>> x = np.array([1.0, -2.0])
        >>> p = genesis.Parameter(x)
        >>> opt = genesis.optim.ScheduleFreeSGD([p], lr=0.1)
        >>> for _ in range(3):
        ...     p.grad = 2 * x  # the gradient of x @ x
        ...     _ = opt.step()
        >>> opt.eval()
        >>> x.round(3)
        array([ 0.646, -1.292])

    References:
        Defazio, Yang, Mehta, Mishchenko, Khaled, Cutkosky: The road less scheduled. NeurIPS 2024,
        https://arxiv.org/abs/2405.15682
    """
    z = param if first else z
    return _moved(param, z, grad + weight_decay * param, rate, kept, momentum)


def _adamw_numbers(
    step,
    weight_sum=0.0,
    lr_max=0.0,
    *,
    lr,
    betas,
    warmup_steps,
    r,
    weight_lr_power,
    corrects_lr=hyper.flag(
        False, "let the correction of the squares' start scale the learning rate, as in the paper"
    ),
):
    rate, correction = _warm(lr, step, warmup_steps), 1 - betas[1] ** step
    if corrects_lr:
        rate, correction = rate * correction**0.5, 1.0
    shares = _shares(step, rate, weight_sum, lr_max, r, weight_lr_power)
    return {**shares, "correction": correction}


@rule(numbers=_adamw_numbers, base=ScheduleFree)
def ScheduleFreeAdamW(
    param,
    grad,
    z,
    exp_avg_sq,
    *,
    lr=2.5e-3,
    betas=BETAS,
    eps=1e-8,
    weight_decay=DECAYS_AT_Y,
    warmup_steps=WARMUP_STEPS,
    r=R,
    weight_lr_power=WEIGHT_LR_POWER,
    rate,
    kept,
    correction,
    first,
):
    r"""Schedule-Free AdamW: an average in place of momentum and of a falling learning rate.

    Gradients are those at :math:`y`, which the parameter holds while it is trained. With gradient
    :math:`g`, learning rate :math:`\gamma`, weight decay :math:`\lambda`, update number :math:`t`,
    warm-up over :math:`T` updates, and :math:`x = y = z` at first:

    .. math::
        v &\leftarrow \beta_2 v + (1 - \beta_2) g^2 \\
        \gamma_t &= \gamma \min(1, t / T), \qquad
        w_t = t^r \max(\gamma_1, \dots, \gamma_t)^p, \qquad c_t = w_t / (w_1 + \dots + w_t) \\
        z &\leftarrow z - \gamma_t
            \left( \frac{g}{\sqrt{v / (1 - \beta_2^t)} + \epsilon} + \lambda y \right) \\
        x &\leftarrow (1 - c_t) \, x + c_t z \\
        y &= \beta_1 x + (1 - \beta_1) z

    where :math:`p` is `weight_lr_power`. The result is the average :math:`x`: call `eval()` before the
    parameter is evaluated or handed on, and `train()` before training goes on. It is the learning rate
    that stays constant; a schedule besides is possible, and then counts in the average as above.

    :math:`x` is not kept: it follows from :math:`y` and :math:`z`. So with `state_dtype="bfloat16"`, in
    which :math:`z` takes no small steps, set `stochastic_rounding` as well.

    These are the numbers of `schedulefree.AdamWScheduleFree`, the authors' package. In the paper
    :math:`\sqrt{1 - \beta_2^t}` is a factor of :math:`\gamma_t`, not of the denominator, so that the
    first updates count for less in the average: `corrects_lr=True`, the package's
    `AdamWScheduleFreePaper`. The paper's weight is :math:`\gamma_t^2`; the maximum is the package's.
    Numbers are counted for each parameter by the updates that it has had, in the package for each group.

    State of a parameter: "step", the numbers "weight_sum" (:math:`w_1 + \dots + w_t`) and "lr_max", "z",
    "exp_avg_sq" (:math:`v`), and in eval mode "y".

    Example:
        >>> import numpy as np, genesis
        >>> x = np.array([1.0, -2.0])
        >>> p = genesis.Parameter(x)
        >>> opt = genesis.optim.ScheduleFreeAdamW([p], lr=0.1)
        >>> for _ in range(3):
        ...     p.grad = 2 * x  # the gradient of x @ x
        ...     _ = opt.step()
        >>> opt.eval()
        >>> x.round(3)
        array([ 0.806, -1.803])

    References:
        Defazio, Yang, Mehta, Mishchenko, Khaled, Cutkosky: The road less scheduled. NeurIPS 2024,
        https://arxiv.org/abs/2405.15682
    """
    z = param if first else z
    exp_avg_sq = average_of_squares(exp_avg_sq, grad, betas[1])
    normed = grad / (math.sqrt(exp_avg_sq / correction) + eps)
    param, z = _moved(param, z, normed + weight_decay * param, rate, kept, betas[0])
    return param, z, exp_avg_sq


def _radam_numbers(
    step,
    weight_sum=0.0,
    lr_max=0.0,
    *,
    lr,
    betas,
    r,
    weight_lr_power,
    silent_sgd_phase=hyper.flag(
        True, "leave parameters as they are until the squares can be trusted; if False, follow SGD"
    ),
):
    beta2 = betas[1]
    # 1 - beta2**step with all its digits: the length is a small difference of numbers of its inverse.
    correction = -math.expm1(step * math.log(beta2)) if beta2 else 1.0
    longest = 2 / (1 - beta2) - 1
    length = longest - 2 * step * beta2**step / correction
    trusted = length > 4
    if trusted:
        now, finally_ = ((n - 4) * (n - 2) / n for n in (length, longest))
        rate = lr * (now / finally_) ** 0.5
    else:
        rate = 0.0 if silent_sgd_phase else lr
    shares = _shares(step, rate, weight_sum, lr_max, r, weight_lr_power)
    return {**shares, "correction": correction, "trusted": trusted}


@rule(numbers=_radam_numbers, base=ScheduleFree)
def ScheduleFreeRAdam(
    param,
    grad,
    z,
    exp_avg_sq,
    *,
    lr=2.5e-3,
    betas=BETAS,
    eps=1e-8,
    weight_decay=DECAYS_AT_Y,
    r=R,
    weight_lr_power=WEIGHT_LR_POWER,
    rate,
    kept,
    correction,
    trusted,
    first,
):
    r"""Schedule-Free RAdam: Schedule-Free AdamW whose warm-up follows from its squares.

    Gradients are those at :math:`y`, which the parameter holds while it is trained. With gradient
    :math:`g`, learning rate :math:`\gamma`, weight decay :math:`\lambda`, update number :math:`t`,
    :math:`\rho_\infty = 2 / (1 - \beta_2) - 1`, and :math:`x = y = z` at first:

    .. math::
        v &\leftarrow \beta_2 v + (1 - \beta_2) g^2 \\
        \rho &= \rho_\infty - 2 t \beta_2^t / (1 - \beta_2^t) \\
        \gamma_t &= \gamma \sqrt{
            \frac{(\rho - 4) (\rho - 2) \rho_\infty}{(\rho_\infty - 4) (\rho_\infty - 2) \rho}
        } \\
        w_t &= t^r \max(\gamma_1, \dots, \gamma_t)^p, \qquad c_t = w_t / (w_1 + \dots + w_t) \\
        z &\leftarrow z - \gamma_t
            \left( \frac{g}{\sqrt{v / (1 - \beta_2^t)} + \epsilon} + \lambda y \right) \\
        x &\leftarrow (1 - c_t) \, x + c_t z \\
        y &= \beta_1 x + (1 - \beta_1) z

    where :math:`p` is `weight_lr_power`. As long as :math:`\rho \le 4`, with the default betas in the
    first four updates, :math:`\gamma_t = 0`, or with `silent_sgd_phase=False` it is :math:`\gamma` and
    the gradient is not divided. The result is the average :math:`x`: call `eval()` before the parameter
    is evaluated or handed on, and `train()` before training goes on.

    :math:`x` is not kept: it follows from :math:`y` and :math:`z`. So with `state_dtype="bfloat16"`, in
    which :math:`z` takes no small steps, set `stochastic_rounding` as well.

    No paper has it: it is `schedulefree.RAdamScheduleFree`, of the package of Schedule-Free's authors.
    Numbers are counted for each parameter by the updates that it has had, in the package for each group.

    State of a parameter: "step", the numbers "weight_sum" (:math:`w_1 + \dots + w_t`) and "lr_max", "z",
    "exp_avg_sq" (:math:`v`), and in eval mode "y".

    Example:
        >>> import numpy as np, genesis
        >>> x = np.array([1.0, -2.0])
        >>> p = genesis.Parameter(x)
        >>> opt = genesis.optim.ScheduleFreeRAdam([p], lr=0.1, silent_sgd_phase=False)
        >>> for _ in range(3):
        ...     p.grad = 2 * x  # the gradient of x @ x
        ...     _ = opt.step()
        >>> opt.eval()
        >>> x.round(3)
        array([ 0.646, -1.292])

    References:
        Defazio, Yang, Mehta, Mishchenko, Khaled, Cutkosky: The road less scheduled. NeurIPS 2024,
        https://arxiv.org/abs/2405.15682. Liu, Jiang, He, Chen, Liu, Gao, Han: On the variance of the
        adaptive learning rate and beyond. ICLR 2020, https://arxiv.org/abs/1908.03265
    """
    z = param if first else z
    exp_avg_sq = average_of_squares(exp_avg_sq, grad, betas[1])
    normed = grad / (math.sqrt(exp_avg_sq / correction) + eps) if trusted else grad
    param, z = _moved(param, z, normed + weight_decay * param, rate, kept, betas[0])
    return param, z, exp_avg_sq
