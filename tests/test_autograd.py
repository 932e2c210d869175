"""HIPS autograd differentiates with respect to parameters, and through them."""

import subprocess
import sys

import numpy as np
import pytest

import genesis

autograd = pytest.importorskip("autograd")
anp = pytest.importorskip("autograd.numpy")

X = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
Y = np.array([1.0, -1.0, 0.5])


def model():
    return {
        "w": genesis.Parameter(np.array([0.3, -0.2])),
        "b": genesis.Parameter(np.array(0.1)),
    }


def loss(params):
    return anp.mean((anp.tanh(anp.dot(X, params["w"]) + params["b"]) - Y) ** 2)


def plain(params):
    return {name: p.data for name, p in params.items()}


def test_gradient_of_one_parameter():
    p = genesis.Parameter(np.array([[1.0, 2.0], [3.0, 4.0]], np.float32))

    def squares(p):
        return (p**2).sum() + anp.sum(p[0] * 3) + anp.sum(p.T @ X.T)

    value, gradient = autograd.value_and_grad(squares)(p)
    expected = autograd.grad(squares)(p.data)
    assert type(gradient) is np.ndarray
    assert value == squares(p.data)
    np.testing.assert_array_equal(gradient, expected)
    p.grad = autograd.grad(squares)(p)
    genesis.optim.SGD([p], lr=0.1).step()


def test_gradient_of_a_scalar():
    p = genesis.Parameter(np.array(3.0))
    p.grad = autograd.grad(lambda p: p * p)(p)
    assert p.grad == 6


def test_gradients_of_dicts_and_lists():
    params = model()
    value, gradients = autograd.value_and_grad(loss)(params)
    expected = autograd.grad(loss)(plain(params))
    assert value == loss(plain(params))
    for name, p in params.items():
        np.testing.assert_array_equal(gradients[name], expected[name])
        p.grad = gradients[name]
        assert type(p.grad) is np.ndarray
    listed = autograd.grad(lambda ps: loss({"w": ps[0], "b": ps[1]}))([*params.values()])
    np.testing.assert_array_equal(listed[0], expected["w"])
    np.testing.assert_array_equal(listed[1], expected["b"])


def test_training_is_that_of_the_arrays():
    params, arrays = model(), plain(model())
    opt = genesis.optim.SGD(params.values(), lr=0.1)
    for _ in range(5):
        gradients, expected = autograd.grad(loss)(params), autograd.grad(loss)(arrays)
        for name, gradient in gradients.items():
            params[name].grad = gradient
            arrays[name] = arrays[name] - 0.1 * expected[name]
        opt.step()
    for name, p in params.items():
        np.testing.assert_allclose(p, arrays[name], rtol=1e-14)


CONSTANTS = {
    "x * p": lambda x, p: x * p,
    "p * x": lambda x, p: p * x,
    "p - x": lambda x, p: p - x,
    "p / x": lambda x, p: p / x,
    "x @ p": lambda x, p: x @ p,
    "p @ x": lambda x, p: p @ x,
    "x ** p": lambda x, p: x**p,
    "multiply": lambda x, p: anp.multiply(p, x),
    "maximum": lambda x, p: anp.maximum(x, p),
    "dot": lambda x, p: anp.dot(x, p),
    "dot of p": lambda x, p: anp.dot(p, x),
    "einsum": lambda x, p: anp.einsum("i,i->", x, p),
    "where": lambda x, p: anp.where(p > 0, x, p),
    "concatenate": lambda x, p: anp.concatenate([x, p]) ** 2,
    "numpy's own": lambda x, p: np.multiply(p, x),
    "p[0]": lambda x, p: x * p[0],
    "p.sum()": lambda x, p: x * p.sum(),
}


@pytest.mark.parametrize("used", CONSTANTS.values(), ids=CONSTANTS)
def test_a_parameter_may_be_a_constant(used):
    p, x = genesis.Parameter(np.array([2.0, -3.0])), np.array([1.5, 2.5])
    got = autograd.grad(lambda x: anp.sum(used(x, p)))(x)
    expected = autograd.grad(lambda x: anp.sum(used(x, p.data)))(x)
    np.testing.assert_array_equal(got, expected)
    # Both at once: differentiated by a parameter, with another one as a constant.
    got = autograd.grad(lambda q: anp.sum(used(q, p)))(genesis.Parameter(x))
    np.testing.assert_array_equal(got, expected)


def test_elementwise_gradients_and_jacobians():
    p = genesis.Parameter(np.array([0.1, 0.2, 0.3]))
    a = p.data
    for function in (anp.sin, anp.exp, lambda x: x * x, lambda x: x, lambda x: anp.outer(x, x)):
        got, expected = (autograd.jacobian(function)(value) for value in (p, a))
        np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(autograd.elementwise_grad(anp.sin)(p), np.cos(a))
    got, expected = (autograd.hessian(lambda x: anp.sum(x**3))(value) for value in (p, a))
    np.testing.assert_array_equal(got, expected)
    backward, value = autograd.make_vjp(anp.sin)(p)
    np.testing.assert_array_equal(value, np.sin(a))
    np.testing.assert_array_equal(backward(np.ones(3)), np.cos(a))


def test_subclasses_are_known_too():
    class Weight(genesis.Parameter):
        pass

    assert autograd.grad(lambda w: anp.sum(w**2))(Weight(np.array([3.0]))) == 6


ORDERS = """
import sys, numpy as np, genesis
early = genesis.Parameter(np.array([1.0, 2.0]))
assert "autograd" not in sys.modules
import autograd, autograd.numpy as anp
loss = lambda p: anp.sum(p * p)
try:
    autograd.grad(loss)(early)
except TypeError as error:
    print("not yet:", "Parameter" in str(error))
late = genesis.Parameter(np.array([1.0, 2.0]))
print(autograd.grad(loss)(late), autograd.grad(loss)(early))
"""


def test_autograd_may_be_imported_after_genesis():
    run = subprocess.run(
        [sys.executable, "-c", ORDERS], capture_output=True, text=True, check=False
    )
    assert run.stdout == "not yet: True\n[2. 4.] [2. 4.]\n", run.stderr
