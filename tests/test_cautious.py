"""Cautious updates and cautious weight decay: what the flags mean, wherever they are.

The formulas are run by themselves here, in Python, for every choice of the two flags; the rows of the
table run some of them as kernels, beside packages too.
"""

import inspect
import itertools

import numpy as np
import pytest
from cases import CASES
from devices import on_device, parameter
from reference import REFERENCES

import genesis
from genesis import optim

CAUTIOUS = ["Adam", "AdamW", "NAdam", "Lion", "AdaBelief", "Adan", "LaProp", "AdEMAMix", "ADOPT"]
DECAYING = [name for name in CAUTIOUS if name not in ("Adam", "Adan")]


def with_flag(flag):
    names = {case.name for case in CASES}
    return {n for n in names if flag in inspect.signature(getattr(optim, n)).parameters}


def test_these_optimizers_have_the_flags_and_no_others():
    assert with_flag("cautious") == {*CAUTIOUS}
    assert with_flag("cautious_weight_decay") == {*DECAYING}
    for flag, names in (("cautiously", CAUTIOUS), ("shrunk", DECAYING)):
        doc = getattr(optim.pieces, flag).__doc__
        assert {name for name in with_flag("lr") if f"`{name}`" in doc} == {*names}


CHOICES = [
    (name, cautious, decays)
    for name in CAUTIOUS
    for cautious, decays in itertools.product((False, True), repeat=2)
    if (cautious or decays) and (not decays or name in DECAYING)
]


@pytest.mark.parametrize(("name", "cautious", "decays"), CHOICES)
def test_every_choice_follows_the_reference(name, cautious, decays, rng):
    kind = getattr(optim, name)
    hyper = {"lr": 0.1, "weight_decay": 0.3, "cautious": cautious}
    if decays:
        hyper["cautious_weight_decay"] = True
    if "decoupled_weight_decay" in inspect.signature(kind).parameters:
        hyper["decoupled_weight_decay"] = decays
    param = expected = rng.standard_normal(30)
    found, state = (), {}
    carried = {}
    for step in range(1, 7):
        grad = rng.standard_normal(30) * (0 if step == 4 else 1)
        param, *found = kind.reference(param, grad, *found, step=step, **carried, **hyper)
        expected, state = REFERENCES[name](expected, grad, state, step, **hyper)
        carried = {key: state[key] for key in kind._recipe.carried}
        np.testing.assert_allclose(param, expected, rtol=1e-12)


def moves(grads, **hyper):
    """How far AdamW moves a parameter, which begins with ones, at each step."""
    param = parameter(np.ones(4))
    opt = optim.AdamW([param], **{"weight_decay": 0, **hyper})
    found = [param.numpy().copy()]
    for grad in grads:
        param.grad = on_device(np.array(grad))
        opt.step()
        found.append(param.numpy().copy())
    return -np.diff(found, axis=0)


GRADS = [[1.0, 1.0, 1.0, 1.0], [-0.1, 1.0, 1.0, 0.0]]


def test_what_disagrees_with_the_gradient_waits_and_the_others_go_further():
    plain, careful = moves(GRADS), moves(GRADS, cautious=True)
    assert np.all(plain > 0)  # momentum goes on where the gradient turns
    np.testing.assert_allclose(careful[0], 4 / 5 * plain[0])  # of four all four agree
    np.testing.assert_allclose(careful[1], 4 / 3 * plain[1] * [0, 1, 1, 0])


def test_where_nothing_agrees_nothing_moves():
    np.testing.assert_array_equal(moves([[1.0] * 4, [-0.1] * 4], cautious=True)[1], 0)


def test_nan_is_not_hidden():
    last = moves([[1.0, 1.0, 1.0, np.nan]], cautious=True)[0]
    assert np.isnan(last).tolist() == [False, False, False, True]


def test_weights_that_the_loss_wants_larger_do_not_decay():
    grads = [[1.0, -1.0, 1.0, -1.0]]
    decay = {"lr": 0.1, "weight_decay": 0.5}
    drift = moves(grads, lr=0.1)[0]
    np.testing.assert_allclose(moves(grads, **decay)[0], drift + 0.05)
    careful = moves(grads, cautious_weight_decay=True, **decay)[0]
    np.testing.assert_allclose(careful, drift + [0.05, 0, 0.05, 0])
    # No change at all is no objection.
    still = moves([[0.0] * 4], cautious_weight_decay=True, **decay)[0]
    np.testing.assert_allclose(still, 0.05)


def test_the_number_of_threads_and_the_grouping_change_no_bit(small_chunks, num_threads, rng):
    arrays = [rng.standard_normal(n).astype(np.float32) for n in (100, 7, 3000)]
    grads = [rng.standard_normal((3, a.size)).astype(np.float32) for a in arrays]

    def run(order, threads):
        genesis.set_num_threads(threads)
        params = [parameter(a.copy()) for a in arrays]
        opt = optim.AdamW([params[i] for i in order], cautious=True, cautious_weight_decay=True)
        for step in range(3):
            for p, g in zip(params, grads):
                p.grad = on_device(g[step])
            opt.step()
        return b"".join(p.numpy().tobytes() for p in params)

    assert run([0, 1, 2], 1) == run([2, 0, 1], 1) == run([1, 0, 2], 2)


@pytest.mark.parametrize("name", ["NAdam", "AdaBelief", "LaProp", "ADOPT"])
def test_cautious_weight_decay_needs_a_decoupled_one(name):
    params = [genesis.Parameter(np.ones(2))]
    make = getattr(optim, name)
    with pytest.raises(ValueError, match="with it set decoupled_weight_decay=True"):
        make(params, cautious_weight_decay=True, decoupled_weight_decay=False)
    make(params, cautious_weight_decay=True, decoupled_weight_decay=True)


def test_l2_is_not_decoupled():
    with pytest.raises(TypeError, match="cautious_weight_decay"):
        optim.Adam([genesis.Parameter(np.ones(2))], cautious_weight_decay=True)
