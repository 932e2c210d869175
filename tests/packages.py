"""Optimizers of other packages, made for hyper-parameters by the names that genesis gives them.

Where one does something else than the paper, which the docstring of genesis' optimizer says, it is
handed what makes up for exactly that. Used by test_packages.py, which compares numbers, and by the
benchmarks.
"""

SHAPES = [(10, 5), (7,), (3, 4, 2)]


class Peer:
    """A package's optimizer on tensors of its own, handed what makes up for its deviations.

    Args:
        make: `make(tensors, hyper)`, the optimizer for hyper-parameters in genesis' names.
        before: `before(optimizer, step, grads)`, called before each step, from 1.
        factor: `factor(hyper)`, by which its parameters are those of genesis from the start.
        apart: hyper-parameters for both, in place of the row's.
        size: how large gradients are.
        shapes: of the parameters.
        handed: `handed(ours, theirs, step)`, called between the step of genesis and its own.
    """

    def __init__(
        self, make, before=None, factor=None, apart=None, size=1.0, shapes=SHAPES, handed=None
    ):
        self.make, self.before, self.factor = make, before, factor
        self.apart, self.size, self.shapes = apart or {}, size, shapes
        self.handed = handed


def renamed(name, names=(), **fixed):
    """`make` for `pytorch_optimizer`, whose hyper-parameters may have other names."""

    def make(tensors, hyper):
        import pytorch_optimizer

        given = {dict(names).get(key, key): value for key, value in hyper.items()}
        return getattr(pytorch_optimizer, name)(tensors, **{**fixed, **given}, foreach=False)

    return make


def state_of(optimizer):
    """Its group, and the state of each tensor with it, which it makes only in a step otherwise."""
    (group,) = optimizer.param_groups
    optimizer.init_group(group)
    return group, [optimizer.state[tensor] for tensor in group["params"]]


# ---- AdEMAMix, ADOPT ----


def ademamix(tensors, hyper):
    import pytorch_optimizer

    hyper = dict(hyper)
    warmups = {hyper.pop("alpha_warmup", None), hyper.pop("beta3_warmup", None)}
    (warmup,) = warmups  # it has one for both
    return pytorch_optimizer.AdEMAMix(
        tensors, t_alpha_beta3=warmup, weight_decouple=True, foreach=False, **hyper
    )


def one_average(decoupled):
    """`make` for AdamW or Adam: AdEMAMix without its slow average, which can be cautious."""

    def make(tensors, hyper):
        import pytorch_optimizer

        betas = (*hyper.get("betas", (0.9, 0.999)), 0.9999)
        hyper = {**hyper, "betas": betas, "alpha": 0.0, "weight_decouple": decoupled}
        return pytorch_optimizer.AdEMAMix(tensors, foreach=False, **hyper)

    return make


def adopt(tensors, hyper):
    import pytorch_optimizer

    hyper = dict(hyper)
    power = hyper.pop("clip_exp", 0.25)
    # It counts the first gradient, which the paper calls the 0th.
    clip = None if power is None else lambda step: (step - 1) ** power
    decoupled = hyper.pop("decoupled_weight_decay", False)
    return pytorch_optimizer.ADOPT(
        tensors, clip_lambda=clip, weight_decouple=decoupled, foreach=False, **hyper
    )


def decay_from_the_second_step(optimizer, step, grads):
    (group,) = optimizer.param_groups
    if step == 1 and group["weight_decouple"]:
        optimizer.later, group["weight_decay"] = group["weight_decay"], 0.0
    elif step == 2 and group["weight_decouple"]:
        group["weight_decay"] = optimizer.later


# ---- Adan, MARS, Yogi, FTRL: what their state begins with ----


def no_difference_at_first(optimizer, step, grads):
    """With `maximize` it takes the first gradient with the wrong sign for the one before it."""
    if step == 1 and optimizer.maximize:
        for state, grad in zip(state_of(optimizer)[1], grads):
            state["previous_grad"].copy_(grad)


def no_change_at_first(optimizer, step, grads):
    if step == 1:
        sign = -1 if optimizer.maximize else 1
        for state, grad in zip(state_of(optimizer)[1], grads):
            state["last_grad"].copy_(sign * grad)


def no_momentum_at_first(optimizer, step, grads):
    if step == 1:
        for state in state_of(optimizer)[1]:
            state["exp_avg"].zero_()


def ftrl(tensors, hyper):
    import pytorch_optimizer

    hyper = dict(hyper)
    begins = hyper.pop("initial_accumulator_value", 0)
    optimizer = pytorch_optimizer.FTRL(tensors, foreach=False, **hyper)
    optimizer.begins = begins
    return optimizer


def sum_at_first(optimizer, step, grads):
    if step == 1:
        for state in state_of(optimizer)[1]:
            state["n"].fill_(optimizer.begins)


def lamb(tensors, hyper):
    without = {name: value for name, value in hyper.items() if name != "bias_correction"}
    return renamed("Lamb", weight_decouple=False, adam_debias=True)(tensors, without)


# ---- Schedule-Free ----


def schedule_free(name):
    """`make` for `schedulefree`, whose optimizers begin in eval mode and know no `maximize`."""

    def make(tensors, hyper):
        import schedulefree

        hyper = dict(hyper)
        maximizes = hyper.pop("maximize", False)
        kind = f"{name}Paper" if hyper.pop("corrects_lr", False) else name
        optimizer = getattr(schedulefree, kind)(tensors, foreach=False, **hyper)
        optimizer.train()
        optimizer.maximizes = maximizes
        return optimizer

    return make


def downhill(optimizer, step, grads):
    if optimizer.maximizes:
        for tensor in optimizer.param_groups[0]["params"]:
            tensor.grad.neg_()


# ---- Prodigy, DAdaptAdam, DoG, LDoG ----


def of_package(module, name):
    """`make` for a package's optimizer that knows no `maximize`."""

    def make(tensors, hyper):
        hyper = dict(hyper)
        maximizes = hyper.pop("maximize", False)
        optimizer = getattr(__import__(module), name)(tensors, **hyper)
        optimizer.maximizes = maximizes
        return optimizer

    return make


DECOUPLED = {"decoupled_weight_decay": "weight_decouple"}
PEERS = {
    "Adam": Peer(one_average(False)),
    "AdamW": Peer(one_average(True)),
    "Lion": Peer(renamed("Lion")),
    "SignSGD": Peer(renamed("SignSGD")),
    "AdEMAMix": Peer(ademamix),
    "ADOPT": Peer(adopt, decay_from_the_second_step),
    "Adan": Peer(renamed("Adan", {"no_prox": "weight_decouple"}), no_difference_at_first),
    # Its epsilon is divided by the correction of the root, and would be seen. Some tensors are longer
    # than 1, and are scaled, others are not.
    "MARS": Peer(renamed("MARS", optimize_1d=True), no_change_at_first, None, {"eps": 0.0}, 0.3),
    # It adds epsilon to the norm, too, bounds that of the parameter by 10, and unless it is told not to,
    # divides the rate by the correction of the first average.
    "LAMB": Peer(lamb, None, None, {"eps": 0.0}),
    # It leaves vectors to SGD.
    "LARS": Peer(renamed("LARS"), None, None, None, 1.0, [(10, 5), (3, 4, 2)]),
    "StableAdamW": Peer(renamed("StableAdamW", kahan_sum=False)),
    "AdaBelief": Peer(renamed("AdaBelief", DECOUPLED)),
    "Yogi": Peer(
        lambda tensors, hyper: renamed(
            "Yogi",
            {**DECOUPLED, "initial_accumulator_value": "initial_accumulator"},
            weight_decouple=False,
        )(tensors, {key: value for key, value in hyper.items() if key != "bias_correction"}),
        no_momentum_at_first,
        None,
        {"bias_correction": True},
    ),
    # It shrinks the parameter after the update, as genesis does one that is larger by this factor. Its
    # epsilon is divided by the correction of the root.
    "LaProp": Peer(
        renamed("LaProp", DECOUPLED),
        None,
        lambda hyper: 1 - hyper.get("lr", 4e-4) * hyper.get("weight_decay", 0),
    ),
    "FTRL": Peer(ftrl, sum_at_first),
    "AdaBound": Peer(
        renamed("AdaBound", {**DECOUPLED, "amsbound": "ams_bound"}, weight_decouple=False)
    ),
    "NovoGrad": Peer(renamed("NovoGrad")),
    "Prodigy": Peer(of_package("prodigyopt", "Prodigy"), downhill),
    "DAdaptAdam": Peer(of_package("dadaptation", "DAdaptAdam"), downhill),
    "DoG": Peer(of_package("dog", "DoG"), downhill),
    "LDoG": Peer(of_package("dog", "LDoG"), downhill),
    "ScheduleFreeSGD": Peer(schedule_free("SGDScheduleFree"), downhill),
    "ScheduleFreeAdamW": Peer(schedule_free("AdamWScheduleFree"), downhill),
    "ScheduleFreeRAdam": Peer(schedule_free("RAdamScheduleFree"), downhill),
}
"""How the peer of each optimizer is made whose row names a package."""
