"""Made by `python docs/optim_stub.py`: what type checkers see of `genesis.optim`."""

from collections.abc import Callable, Iterable
from typing import Any

from . import lr_scheduler as lr_scheduler
from . import schedules as schedules
from . import swa_utils as swa_utils
from .adafactor import Adafactor as Adafactor
from .adam_mini import AdamMini as AdamMini
from .came import CAME as CAME
from .clip_grad import clip_grad_norm as clip_grad_norm
from .clip_grad import clip_grad_value as clip_grad_value
from .dequantize import dequantize as dequantize
from .galore import GaLoreAdamW as GaLoreAdamW
from .hooks import register_optimizer_step_post_hook as register_optimizer_step_post_hook
from .hooks import register_optimizer_step_pre_hook as register_optimizer_step_pre_hook
from .kron import Kron as Kron
from .lbfgs import LBFGS as LBFGS
from .lookahead import Lookahead as Lookahead
from .mixed import Mixed as Mixed
from .mixed import MuonWithAdamW as MuonWithAdamW
from .muon import Muon as Muon
from .optimizer import Optimizer as Optimizer
from .param_groups import param_groups_layerwise_lr_decay as param_groups_layerwise_lr_decay
from .param_groups import param_groups_weight_decay as param_groups_weight_decay
from .rule_optimizer import RuleOptimizer as RuleOptimizer
from .sam import SAM as SAM
from .schedule_free import ScheduleFree
from .shampoo import Shampoo as Shampoo
from .soap import SOAP as SOAP

class ADOPT(RuleOptimizer):
    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Callable[[int], float] = 0.001,
        betas: tuple[float, float] = (0.9, 0.9999),
        eps: float = 1e-06,
        weight_decay: float = 0,
        decoupled_weight_decay: bool = False,
        clip_exp: float | None = 0.25,
        *,
        cautious: bool = False,
        cautious_weight_decay: bool = False,
        maximize: bool = False,
        master_weights: bool | str = False,
        state_dtype: str | None = None,
        stochastic_rounding: bool = False,
        ema_decay: float | None = None,
        skip_nonfinite: bool = False,
        measure_updates: bool = False,
    ) -> None: ...

class ASGD(RuleOptimizer):
    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Callable[[int], float] = 0.01,
        lambd: float = 0.0001,
        alpha: float = 0.75,
        t0: float = 1000000.0,
        weight_decay: float = 0,
        *,
        maximize: bool = False,
        master_weights: bool | str = False,
        state_dtype: str | None = None,
        stochastic_rounding: bool = False,
        ema_decay: float | None = None,
        skip_nonfinite: bool = False,
        measure_updates: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
        capturable: bool = False,
    ) -> None: ...

class FTRL(RuleOptimizer):
    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Callable[[int], float] = 0.001,
        beta: float = 0,
        lambda_1: float = 0,
        lambda_2: float = 0,
        initial_accumulator_value: float = 0,
        *,
        maximize: bool = False,
        master_weights: bool | str = False,
        state_dtype: str | None = None,
        stochastic_rounding: bool = False,
        ema_decay: float | None = None,
        skip_nonfinite: bool = False,
        measure_updates: bool = False,
    ) -> None: ...

class LAMB(RuleOptimizer):
    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Callable[[int], float] = 0.001,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-06,
        weight_decay: float = 0.01,
        bias_correction: bool = True,
        adapt: bool = True,
        *,
        maximize: bool = False,
        master_weights: bool | str = False,
        state_dtype: str | None = None,
        stochastic_rounding: bool = False,
        ema_decay: float | None = None,
        skip_nonfinite: bool = False,
        measure_updates: bool = False,
    ) -> None: ...

class LARS(RuleOptimizer):
    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Callable[[int], float] = 1.0,
        momentum: float = 0.9,
        weight_decay: float = 0,
        trust_coefficient: float = 0.001,
        adapt: bool = True,
        *,
        maximize: bool = False,
        master_weights: bool | str = False,
        state_dtype: str | None = None,
        stochastic_rounding: bool = False,
        ema_decay: float | None = None,
        skip_nonfinite: bool = False,
        measure_updates: bool = False,
    ) -> None: ...

class LDoG(RuleOptimizer):
    def __init__(
        self,
        params: Iterable[Any],
        reps_rel: float = 1e-06,
        lr: float | Callable[[int], float] = 1.0,
        weight_decay: float = 0,
        eps: float = 1e-08,
        init_eta: float | None = None,
        *,
        maximize: bool = False,
        master_weights: bool | str = False,
        state_dtype: str | None = None,
        stochastic_rounding: bool = False,
        ema_decay: float | None = None,
        skip_nonfinite: bool = False,
        measure_updates: bool = False,
    ) -> None: ...

class MARS(RuleOptimizer):
    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Callable[[int], float] = 0.003,
        betas: tuple[float, float] = (0.95, 0.99),
        eps: float = 1e-08,
        weight_decay: float = 0,
        gamma: float = 0.025,
        *,
        maximize: bool = False,
        master_weights: bool | str = False,
        state_dtype: str | None = None,
        stochastic_rounding: bool = False,
        ema_decay: float | None = None,
        skip_nonfinite: bool = False,
        measure_updates: bool = False,
    ) -> None: ...

class SGD(RuleOptimizer):
    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Callable[[int], float],
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float = 0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        master_weights: bool | str = False,
        state_dtype: str | None = None,
        stochastic_rounding: bool = False,
        ema_decay: float | None = None,
        skip_nonfinite: bool = False,
        measure_updates: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None: ...

class AdEMAMix(RuleOptimizer):
    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Callable[[int], float] = 0.001,
        betas: tuple[float, float, float] = (0.9, 0.999, 0.9999),
        alpha: float = 5.0,
        beta3_warmup: float | None = None,
        alpha_warmup: float | None = None,
        eps: float = 1e-08,
        weight_decay: float = 0,
        *,
        cautious: bool = False,
        cautious_weight_decay: bool = False,
        maximize: bool = False,
        master_weights: bool | str = False,
        state_dtype: str | None = None,
        stochastic_rounding: bool = False,
        ema_decay: float | None = None,
        skip_nonfinite: bool = False,
        measure_updates: bool = False,
    ) -> None: ...

class AdaBelief(RuleOptimizer):
    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Callable[[int], float] = 0.001,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-16,
        weight_decay: float = 0,
        decoupled_weight_decay: bool = True,
        *,
        cautious: bool = False,
        cautious_weight_decay: bool = False,
        maximize: bool = False,
        master_weights: bool | str = False,
        state_dtype: str | None = None,
        stochastic_rounding: bool = False,
        ema_decay: float | None = None,
        skip_nonfinite: bool = False,
        measure_updates: bool = False,
    ) -> None: ...

class AdaBound(RuleOptimizer):
    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Callable[[int], float] = 0.001,
        betas: tuple[float, float] = (0.9, 0.999),
        final_lr: float = 0.1,
        gamma: float = 0.001,
        eps: float = 1e-08,
        weight_decay: float = 0,
        decoupled_weight_decay: bool = False,
        amsbound: bool = False,
        *,
        maximize: bool = False,
        master_weights: bool | str = False,
        state_dtype: str | None = None,
        stochastic_rounding: bool = False,
        ema_decay: float | None = None,
        skip_nonfinite: bool = False,
        measure_updates: bool = False,
    ) -> None: ...

class Adadelta(RuleOptimizer):
    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Callable[[int], float] = 1.0,
        rho: float = 0.9,
        eps: float = 1e-06,
        weight_decay: float = 0,
        *,
        maximize: bool = False,
        master_weights: bool | str = False,
        state_dtype: str | None = None,
        stochastic_rounding: bool = False,
        ema_decay: float | None = None,
        skip_nonfinite: bool = False,
        measure_updates: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None: ...

class Adagrad(RuleOptimizer):
    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Callable[[int], float] = 0.01,
        lr_decay: float = 0,
        weight_decay: float = 0,
        initial_accumulator_value: float = 0,
        eps: float = 1e-10,
        *,
        maximize: bool = False,
        master_weights: bool | str = False,
        state_dtype: str | None = None,
        stochastic_rounding: bool = False,
        ema_decay: float | None = None,
        skip_nonfinite: bool = False,
        measure_updates: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None: ...

class Adam(RuleOptimizer):
    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Callable[[int], float] = 0.001,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-08,
        weight_decay: float = 0,
        amsgrad: bool = False,
        *,
        cautious: bool = False,
        maximize: bool = False,
        master_weights: bool | str = False,
        state_dtype: str | None = None,
        stochastic_rounding: bool = False,
        ema_decay: float | None = None,
        skip_nonfinite: bool = False,
        measure_updates: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None: ...

class AdamW(RuleOptimizer):
    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Callable[[int], float] = 0.001,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-08,
        weight_decay: float = 0.01,
        amsgrad: bool = False,
        *,
        cautious: bool = False,
        cautious_weight_decay: bool = False,
        maximize: bool = False,
        master_weights: bool | str = False,
        state_dtype: str | None = None,
        stochastic_rounding: bool = False,
        ema_decay: float | None = None,
        skip_nonfinite: bool = False,
        measure_updates: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None: ...

class Adamax(RuleOptimizer):
    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Callable[[int], float] = 0.002,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-08,
        weight_decay: float = 0,
        *,
        maximize: bool = False,
        master_weights: bool | str = False,
        state_dtype: str | None = None,
        stochastic_rounding: bool = False,
        ema_decay: float | None = None,
        skip_nonfinite: bool = False,
        measure_updates: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
        capturable: bool = False,
    ) -> None: ...

class Adan(RuleOptimizer):
    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Callable[[int], float] = 0.001,
        betas: tuple[float, float, float] = (0.98, 0.92, 0.99),
        eps: float = 1e-08,
        weight_decay: float = 0,
        no_prox: bool = False,
        *,
        cautious: bool = False,
        maximize: bool = False,
        master_weights: bool | str = False,
        state_dtype: str | None = None,
        stochastic_rounding: bool = False,
        ema_decay: float | None = None,
        skip_nonfinite: bool = False,
        measure_updates: bool = False,
    ) -> None: ...

class DAdaptAdam(RuleOptimizer):
    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Callable[[int], float] = 1.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-08,
        weight_decay: float = 0,
        decouple: bool = False,
        use_bias_correction: bool = False,
        d0: float = 1e-06,
        growth_rate: float = ...,
        layer_scale: float = 1.0,
        *,
        maximize: bool = False,
        master_weights: bool | str = False,
        state_dtype: str | None = None,
        stochastic_rounding: bool = False,
        ema_decay: float | None = None,
        skip_nonfinite: bool = False,
        measure_updates: bool = False,
    ) -> None: ...

class DoG(RuleOptimizer):
    def __init__(
        self,
        params: Iterable[Any],
        reps_rel: float = 1e-06,
        lr: float | Callable[[int], float] = 1.0,
        weight_decay: float = 0,
        eps: float = 1e-08,
        init_eta: float | None = None,
        *,
        maximize: bool = False,
        master_weights: bool | str = False,
        state_dtype: str | None = None,
        stochastic_rounding: bool = False,
        ema_decay: float | None = None,
        skip_nonfinite: bool = False,
        measure_updates: bool = False,
    ) -> None: ...

class LaProp(RuleOptimizer):
    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Callable[[int], float] = 0.0004,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-15,
        weight_decay: float = 0,
        decoupled_weight_decay: bool = True,
        *,
        cautious: bool = False,
        cautious_weight_decay: bool = False,
        maximize: bool = False,
        master_weights: bool | str = False,
        state_dtype: str | None = None,
        stochastic_rounding: bool = False,
        ema_decay: float | None = None,
        skip_nonfinite: bool = False,
        measure_updates: bool = False,
    ) -> None: ...

class Lion(RuleOptimizer):
    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Callable[[int], float] = 0.0001,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0,
        *,
        cautious: bool = False,
        cautious_weight_decay: bool = False,
        maximize: bool = False,
        master_weights: bool | str = False,
        state_dtype: str | None = None,
        stochastic_rounding: bool = False,
        ema_decay: float | None = None,
        skip_nonfinite: bool = False,
        measure_updates: bool = False,
    ) -> None: ...

class NAdam(RuleOptimizer):
    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Callable[[int], float] = 0.002,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-08,
        weight_decay: float = 0,
        momentum_decay: float = 0.004,
        decoupled_weight_decay: bool = False,
        *,
        cautious: bool = False,
        cautious_weight_decay: bool = False,
        maximize: bool = False,
        master_weights: bool | str = False,
        state_dtype: str | None = None,
        stochastic_rounding: bool = False,
        ema_decay: float | None = None,
        skip_nonfinite: bool = False,
        measure_updates: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None: ...

class NovoGrad(RuleOptimizer):
    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Callable[[int], float] = 0.001,
        betas: tuple[float, float] = (0.95, 0.98),
        eps: float = 1e-08,
        weight_decay: float = 0,
        grad_averaging: bool = False,
        *,
        maximize: bool = False,
        master_weights: bool | str = False,
        state_dtype: str | None = None,
        stochastic_rounding: bool = False,
        ema_decay: float | None = None,
        skip_nonfinite: bool = False,
        measure_updates: bool = False,
    ) -> None: ...

class Prodigy(RuleOptimizer):
    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Callable[[int], float] = 1.0,
        betas: tuple[float, float] = (0.9, 0.999),
        beta3: float | None = None,
        eps: float = 1e-08,
        weight_decay: float = 0,
        decouple: bool = True,
        use_bias_correction: bool = False,
        safeguard_warmup: bool = False,
        d0: float = 1e-06,
        d_coef: float = 1.0,
        growth_rate: float = ...,
        *,
        maximize: bool = False,
        master_weights: bool | str = False,
        state_dtype: str | None = None,
        stochastic_rounding: bool = False,
        ema_decay: float | None = None,
        skip_nonfinite: bool = False,
        measure_updates: bool = False,
    ) -> None: ...

class RAdam(RuleOptimizer):
    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Callable[[int], float] = 0.001,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-08,
        weight_decay: float = 0,
        decoupled_weight_decay: bool = False,
        *,
        maximize: bool = False,
        master_weights: bool | str = False,
        state_dtype: str | None = None,
        stochastic_rounding: bool = False,
        ema_decay: float | None = None,
        skip_nonfinite: bool = False,
        measure_updates: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None: ...

class RMSprop(RuleOptimizer):
    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Callable[[int], float] = 0.01,
        alpha: float = 0.99,
        eps: float = 1e-08,
        weight_decay: float = 0,
        momentum: float = 0,
        centered: bool = False,
        *,
        maximize: bool = False,
        master_weights: bool | str = False,
        state_dtype: str | None = None,
        stochastic_rounding: bool = False,
        ema_decay: float | None = None,
        skip_nonfinite: bool = False,
        measure_updates: bool = False,
        capturable: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
    ) -> None: ...

class Rprop(RuleOptimizer):
    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Callable[[int], float] = 0.01,
        etas: tuple[float, float] = (0.5, 1.2),
        step_sizes: tuple[float, float] = (1e-06, 50),
        *,
        maximize: bool = False,
        master_weights: bool | str = False,
        state_dtype: str | None = None,
        stochastic_rounding: bool = False,
        ema_decay: float | None = None,
        skip_nonfinite: bool = False,
        measure_updates: bool = False,
        capturable: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
    ) -> None: ...

class ScheduleFreeAdamW(ScheduleFree):
    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Callable[[int], float] = 0.0025,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-08,
        weight_decay: float = 0,
        warmup_steps: int = 0,
        r: float = 0.0,
        weight_lr_power: float = 2.0,
        corrects_lr: bool = False,
        *,
        maximize: bool = False,
        master_weights: bool | str = False,
        state_dtype: str | None = None,
        stochastic_rounding: bool = False,
        ema_decay: float | None = None,
        skip_nonfinite: bool = False,
        measure_updates: bool = False,
    ) -> None: ...

class ScheduleFreeRAdam(ScheduleFree):
    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Callable[[int], float] = 0.0025,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-08,
        weight_decay: float = 0,
        r: float = 0.0,
        weight_lr_power: float = 2.0,
        silent_sgd_phase: bool = True,
        *,
        maximize: bool = False,
        master_weights: bool | str = False,
        state_dtype: str | None = None,
        stochastic_rounding: bool = False,
        ema_decay: float | None = None,
        skip_nonfinite: bool = False,
        measure_updates: bool = False,
    ) -> None: ...

class ScheduleFreeSGD(ScheduleFree):
    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Callable[[int], float] = 1.0,
        momentum: float = 0.9,
        weight_decay: float = 0,
        warmup_steps: int = 0,
        r: float = 0.0,
        weight_lr_power: float = 2.0,
        *,
        maximize: bool = False,
        master_weights: bool | str = False,
        state_dtype: str | None = None,
        stochastic_rounding: bool = False,
        ema_decay: float | None = None,
        skip_nonfinite: bool = False,
        measure_updates: bool = False,
    ) -> None: ...

class SignSGD(RuleOptimizer):
    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Callable[[int], float] = 0.001,
        momentum: float = 0.9,
        weight_decay: float = 0,
        *,
        maximize: bool = False,
        master_weights: bool | str = False,
        state_dtype: str | None = None,
        stochastic_rounding: bool = False,
        ema_decay: float | None = None,
        skip_nonfinite: bool = False,
        measure_updates: bool = False,
    ) -> None: ...

class SparseAdam(RuleOptimizer):
    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Callable[[int], float] = 0.001,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-08,
        *,
        maximize: bool = False,
        master_weights: bool | str = False,
        state_dtype: str | None = None,
        stochastic_rounding: bool = False,
        ema_decay: float | None = None,
        skip_nonfinite: bool = False,
        measure_updates: bool = False,
    ) -> None: ...

class StableAdamW(RuleOptimizer):
    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Callable[[int], float] = 0.001,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-08,
        weight_decay: float = 0.01,
        *,
        maximize: bool = False,
        master_weights: bool | str = False,
        state_dtype: str | None = None,
        stochastic_rounding: bool = False,
        ema_decay: float | None = None,
        skip_nonfinite: bool = False,
        measure_updates: bool = False,
    ) -> None: ...

class Yogi(RuleOptimizer):
    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Callable[[int], float] = 0.01,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 0.001,
        weight_decay: float = 0,
        decoupled_weight_decay: bool = False,
        initial_accumulator_value: float = 1e-06,
        bias_correction: bool = False,
        *,
        maximize: bool = False,
        master_weights: bool | str = False,
        state_dtype: str | None = None,
        stochastic_rounding: bool = False,
        ema_decay: float | None = None,
        skip_nonfinite: bool = False,
        measure_updates: bool = False,
    ) -> None: ...
