"""The contract of a rule, and the rules of the package's own use, in order of complexity.

A rule takes one element of a parameter with its gradient and state, and the step's scalars, and
returns what they become. The same function is compiled for every target, which owns the loops; so a
rule imports nothing but `math` and holds no numbers: a literal would turn float32 arithmetic into
float64 on a GPU. Complements such as `1 - beta` come ready-made from the host, which computes them
in float64. `genesis.rule` makes such functions of formulas as people write them; the optimizers
(`optim/`) are written so.

`hyper` never holds the learning rate's sign, a loss scale or a clip factor: the loop multiplies the
gradient by one `scale` before the rule sees it (-1 to maximize).
"""


def copy(param, grad, state, hyper):
    return grad, state


def accumulate(param, grad, state, hyper):
    return param + grad, state


def shift(param, grad, state, hyper):
    """A part of the parameter is kept, and a multiple of `grad` is added."""
    kept, length = hyper
    return param * kept + grad * length, state


def average(param, grad, state, hyper):
    kept, weight = hyper
    change = grad - param
    return param + weight * change if weight < kept else grad - kept * change, state


def beyond(param, grad, state, hyper):
    """The parameter, kept as the state, is moved along the line from `grad` through it."""
    (weight,) = hyper
    return param + weight * (grad - param), (param,)


def beyond_master(param, grad, state, hyper):
    """As `beyond`, from the master, of which the parameter is a copy."""
    _, master = state
    (weight,) = hyper
    return master + weight * (grad - master), (param, master)


def synchronize(param, grad, state, hyper):
    """A slow parameter, the state, goes a part of the way to the parameter, which joins it there."""
    (slow,) = state
    (share,) = hyper
    slow = slow + share * (param - slow)
    return slow, (slow,)


def accumulate_in_proportion(param, grad, state, hyper):
    return param + param * param * grad, state


def product(param, grad, state, hyper):
    """The product of parameter and gradient, as the state."""
    return param, (param * grad,)
