"""GaLoreAdamW: AdamW on gradients projected to a low rank."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import numpy as np

from .. import buffers, hyper, kernels
from ..commit import assign
from ..kernels import rules
from ..parameter import Parameter
from . import spelling
from .adam import AdamW
from .own_shapes import OwnShapes
from .per_tensor import Work, arithmetic


class GaLoreAdamW(OwnShapes):
    r"""GaLore: AdamW whose moments live in the few directions that the gradients of a matrix take.

    With gradient :math:`G` of a matrix :math:`\Theta` of shape :math:`A \times B`, learning rate
    :math:`\gamma`, weight decay :math:`\lambda`, update number :math:`t`, rank :math:`r` and scale
    :math:`\alpha`; where :math:`A < B`:

    .. math::
        P &\leftarrow \text{the first } r \text{ left singular vectors of } G
            \qquad (t = 1, \; T + 1, \; 2 T + 1, \dots) \\
        R &= P^\top G \\
        M &\leftarrow \beta_1 M + (1 - \beta_1) R \\
        V &\leftarrow \beta_2 V + (1 - \beta_2) R^2 \\
        N &= \frac{M / (1 - \beta_1^t)}{\sqrt{V / (1 - \beta_2^t)} + \epsilon} \\
        \Theta &\leftarrow (1 - \gamma \lambda) \, \Theta - \gamma \alpha \, P N

    with :math:`T` the `update_proj_gap`. Otherwise :math:`P` are right singular vectors,
    :math:`R = G P` and :math:`N P^\top` is added: it is the shorter side that shrinks to :math:`r`.
    Moments stay as they are when :math:`P` changes. An SVD gives singular vectors up to their signs:
    those of the first :math:`P` do not matter, since :math:`R`, :math:`M` and :math:`N` have them too,
    and :math:`P N` is the same with any. A later vector gets the sign with which it points along that
    of the same place before, so that moments go on in its direction, and again any sign of the SVD
    leads to the same parameters. (The paper and packages take the signs as they come.)

    Everything else is AdamW's: parameters that are not 2-D, matrices whose shorter side is not longer
    than the rank, and groups with `rank=None`, where embeddings, the output layer and whatever else
    should keep its full gradient belong.

    The SVD is NumPy's (LAPACK), in the parameter's arithmetic, float64 or float32, and products are
    those of BLAS, which has threads of its own. An update with an SVD takes as long as hundreds of
    others. While a step lasts it takes memory for a copy of the projected moments and of the updates of
    projected matrices: all is written together at its end, so that a step which fails or is interrupted
    has changed nothing.

    In `galore_torch.GaLoreAdamW` and `pytorch_optimizer.GaLore`, :math:`\epsilon` is added to the root
    before it is corrected, weight decay shrinks what the update has given, and groups without "rank" are
    not projected. The second of them finds :math:`P` anew at updates 1, :math:`T`, :math:`2 T`, ...,
    and always in float32.

    Args:
        params: a tree of arrays, or an iterable of `Parameter`s, of `(name, Parameter)` pairs, or of
            group dicts, on the CPU.
        lr: learning rate, at least 0. Default: 1e-3. The paper takes 0.01, with `scale` 0.25.
        betas: decay rates of the averages of gradients and of squares, each in [0, 1).
            Default: (0.9, 0.999).
        eps: added to the denominator, at least 0. Default: 1e-6.
        weight_decay: decoupled weight decay, at least 0. Default: 0.
        rank: how many singular vectors, at least 1; None for AdamW. Default: 128. To change it, forget
            the parameter's state too: `optimizer.state.pop(parameter)`.
        update_proj_gap: how many updates until the next SVD, at least 1. Default: 200.
        scale: what projected updates are multiplied by, at least 0. Default: 0.25.
        maximize: go up the gradient instead of down. Default: False.

    Raises:
        TypeError: a hyper-parameter or `params` of a wrong type, or a sparse gradient.
        ValueError: an impossible hyper-parameter, or, in a step, a parameter on a GPU, or a gradient
            with inf or NaN of which the SVD is wanted.

    State of a parameter: "step", "exp_avg" (:math:`M`), "exp_avg_sq" (:math:`V`), both of the shape of
    :math:`R`, and "projector" (:math:`P`; :math:`P^\top` if it is made of right singular vectors), all
    float32 for a 16-bit parameter; or "step", "exp_avg" and "exp_avg_sq" of the parameter's shape.

    Example:
        >>> import numpy as np, genesis
        >>> x = np.array([[1.0, -2.0, 0.5], [0.5, 4.0, 1.0]])
        >>> p = genesis.Parameter(x)
        >>> opt = genesis.optim.GaLoreAdamW([p], lr=0.1, rank=1, scale=1.0)
        >>> for _ in range(3):
        ...     p.grad = 2 * x  # the gradient of (x * x).sum()
        ...     _ = opt.step()
        >>> x.round(3)
        array([[ 1.009, -1.875,  0.624],
               [ 0.481,  3.728,  0.73 ]])
        >>> opt.state[p]["exp_avg"].shape
        (1, 3)

    References:
        Zhao, Zhang, Chen, Wang, Anandkumar, Tian: GaLore: memory-efficient LLM training by gradient
        low-rank projection. ICML 2024, https://arxiv.org/abs/2403.03507
    """

    _always = ("exp_avg", "exp_avg_sq")
    _sometimes = ("projector",)
    _hypers: ClassVar = {
        "lr": hyper.rate(),
        "betas": hyper.betas(0.9, 0.999),
        "eps": hyper.epsilon(),
        "weight_decay": hyper.non_negative(),
        "rank": replace(hyper.count(), unset=True),
        "update_proj_gap": hyper.count(),
        "scale": hyper.non_negative(),
        "maximize": hyper.flag(),
    }

    @spelling.explained
    def __init__(
        self,
        params: Iterable,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        *,
        rank: int | None = 128,
        update_proj_gap: int = 200,
        scale: float = 0.25,
        maximize: bool = False,
    ):
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "rank": rank,
            "update_proj_gap": update_proj_gap,
            "scale": scale,
            "maximize": maximize,
        }
        super().__init__(params, defaults)

    def _shapes(self, group: dict[str, Any], parameter: Parameter) -> dict[str, tuple[int, ...]]:
        shape, rank = parameter.shape, group["rank"]
        if rank is None or len(shape) != 2 or min(shape) <= rank:
            return {"exp_avg": shape, "exp_avg_sq": shape}
        rows, columns = shape
        if rows < columns:
            small, projector = (rank, columns), (rows, rank)
        else:
            small, projector = (rows, rank), (rank, columns)
        return {"exp_avg": small, "exp_avg_sq": small, "projector": projector}

    def _state_type(self, name: str, shape: tuple[int, ...], parameter: Parameter) -> np.dtype:
        dtype = parameter._view.dtype
        is_narrow = name != "projector" and shape == parameter.shape
        return dtype if is_narrow else arithmetic(dtype)

    def _updates(self, work: list[Work], factor: float, clip_value: float | None) -> list[partial]:
        launches = _Launches()
        calls: list[partial] = []
        for each in work:
            scale = -factor if each.group["maximize"] else factor
            if "projector" in self._shapes(each.group, each.parameter):
                calls += self._projected(each, scale, clip_value, launches)
                continue
            columns = [each.gradient, each.parameter._view]
            columns += [buffers.view(each.state[name]) for name in self._always]
            launches.add(_adamw(each.group, each.state["step"]), scale, columns, clip_value)
        return [*launches.actions(), *calls]

    def _projected(
        self, work: Work, scale: float, clip_value: float | None, launches: _Launches
    ) -> list[partial]:
        """The calls that write a projected parameter's state; its own update goes to `launches`."""
        group, state, view = work.group, work.state, work.parameter._view
        number = arithmetic(view.dtype)
        gradient = work.gradient.view(np.ndarray).astype(number, copy=False)
        if clip_value is not None:
            limit = number.type(clip_value)
            with np.errstate(all="ignore"):
                gradient, scale = np.clip(gradient * number.type(scale), -limit, limit), 1.0
        is_right = gradient.shape[0] >= gradient.shape[1]
        if (state["step"] - 1) % group["update_proj_gap"] == 0:
            before = state["projector"].view(np.ndarray).astype(number)
            projector = singular_vectors(gradient, before, is_right, work.parameter)
        else:
            projector = state["projector"].view(np.ndarray).astype(number, copy=False)
        with np.errstate(all="ignore"):
            small = gradient @ projector.T if is_right else projector.T @ gradient
        # AdamW from zero, with a learning rate of 1, gives the update itself.
        moments = [state[name].view(np.ndarray).astype(number, order="C") for name in self._always]
        update = np.zeros(small.shape, number)
        settings = {**group, "lr": 1.0, "weight_decay": 0.0}
        alone = _Launches()
        alone.add(_adamw(settings, state["step"]), scale, [small, update, *moments], None)
        alone.run()
        with np.errstate(all="ignore"):
            whole = update @ projector if is_right else projector @ update
        scalars = 1 - group["lr"] * group["weight_decay"], group["lr"] * group["scale"]
        launches.add((rules.shift, scalars), 1.0, [whole, view], None)
        found = dict(zip(self._always, moments), projector=projector)
        with np.errstate(all="ignore"):
            return [assign(state[name].view(np.ndarray), array) for name, array in found.items()]


def singular_vectors(
    matrix: np.ndarray, before: np.ndarray, is_right: bool, parameter: Parameter
) -> np.ndarray:
    """The first singular vectors of a gradient: right ones as rows, or left ones as columns.

    There are as many as before, and each points along the one before, which may be zero.
    """
    if not np.isfinite(matrix).all():
        raise ValueError(
            f"the gradient of {parameter.name or f'a parameter of shape {parameter.shape}'} has inf or "
            "NaN, so GaLoreAdamW cannot find its singular vectors: skip such steps, as "
            "genesis.amp.GradScaler does"
        )
    left, _, right = np.linalg.svd(matrix, full_matrices=False)
    found = right[: len(before)] if is_right else left[:, : before.shape[1]]
    along = np.sum(found * before, axis=1 if is_right else 0, keepdims=True)
    return np.where(along < 0, -found, found)


def _adamw(group: dict[str, Any], step: int) -> tuple[Any, tuple[float, ...]]:
    """The rule of AdamW and its scalars; what a group does not say is AdamW's default."""
    hypers = AdamW._recipe.hypers
    settings = {name: group.get(name, declared.default) for name, declared in hypers.items()}
    written = AdamW._recipe.written_for(settings)
    return written.rule, tuple(written.scalars(settings, step, None, step == 1))


class _Launches:
    """Updates by rules, gathered into one launch for all that are alike."""

    def __init__(self) -> None:
        self._rows: dict[tuple, list[Sequence[np.ndarray]]] = {}

    def add(
        self,
        rule: tuple[Any, tuple[float, ...]],
        scale: float,
        columns: Sequence[np.ndarray],
        clip_value: float | None,
    ) -> None:
        """Add a tensor: its gradient, which is multiplied by `scale` and clipped, itself, its state."""
        kinds = tuple(buffers.layout(column)[:2] for column in columns)
        self._rows.setdefault((*rule, scale, clip_value, kinds), []).append(columns)

    def _launches(self) -> Iterable[tuple[kernels.Launch, list]]:
        for (rule, scalars, scale, clip_value, _), rows in self._rows.items():
            columns = list(zip(*rows))
            clips = clip_value is not None
            launch = kernels.prepare(rule, columns, len(scalars), clips=clips)
            launch.set_scalars(scale, (*scalars, clip_value) if clips else scalars)
            yield launch, columns

    def actions(self) -> list[partial]:
        """The calls that make all updates, for `commit`."""
        return [call for launch, columns in self._launches() for call in launch.once(columns)]

    def run(self) -> None:
        """Make all updates here and now."""
        for launch, _ in self._launches():
            launch.run()
