"""Trees of arrays: parameters and gradients as NumPy programs keep them."""

import collections
import copy
import dataclasses
import gc
import pickle
import weakref

import numpy as np
import pytest
from cases import CASES, ONE_EACH, SPECIAL, TWO
from devices import DEVICE, on_cpu_only, on_device, on_host, parameter

import genesis
from genesis import optim
from genesis.optim import SGD, Adagrad, Adam, AdamW
from genesis.optim.swa_utils import AveragedParameters

Layer = collections.namedtuple("Layer", "W b")


@dataclasses.dataclass
class Net:
    first: object
    layers: object
    scale: object = None


def arrays(tree, dtype=np.float64):
    """The tree with an array of random numbers in place of each shape, "4x3" or "" or 5."""
    rng = np.random.default_rng(0)

    def array(shape):
        sizes = [int(size) for size in str(shape).split("x") if size]
        return on_device(np.asarray(rng.standard_normal(sizes), dtype))

    return genesis.tree.map(array, tree)


def like(tree, seed):
    rng = np.random.default_rng(seed)
    return genesis.tree.map(lambda a: on_device(rng.standard_normal(a.shape).astype(a.dtype)), tree)


def values(tree):
    return {path: on_host(leaf).copy() for path, leaf in genesis.tree.flatten_with_path(tree)}


def assert_equal(tree, expected):
    found = values(tree)
    assert found.keys() == expected.keys()
    for path, array in found.items():
        np.testing.assert_array_equal(array, expected[path], err_msg=path)


NESTED = {"layers": [{"W": 6, "b": 2}, {"W": 4, "b": 2}], "norm": (3, Layer(5, 1)), "none": None}
PATHS = [
    "layers.0.W", "layers.0.b", "layers.1.W", "layers.1.b", "norm.0", "norm.1.W", "norm.1.b",
]  # fmt: skip


# ---- trees ----


def test_paths_and_map_of_every_kind_of_node():
    frozen = collections.OrderedDict(z=1, a=collections.defaultdict(list, {10: 2, 9: 3}))
    tree = Net({"b": [4, (5,)], "a": Layer(6, None)}, frozen)
    expected = [
        ("first.a.W", 6), ("first.b.0", 4), ("first.b.1.0", 5), ("layers.a.9", 3),
        ("layers.a.10", 2), ("layers.z", 1),
    ]  # fmt: skip
    assert genesis.tree.flatten_with_path(tree) == expected
    doubled = genesis.tree.map(lambda leaf: 2 * leaf, tree)
    assert genesis.tree.flatten_with_path(doubled) == [(path, 2 * leaf) for path, leaf in expected]
    assert type(doubled) is Net
    assert type(doubled.first["a"]) is Layer
    assert doubled.first["a"].b is None
    assert list(doubled.layers) == ["z", "a"]  # in its own order
    assert doubled.layers["a"].default_factory is list
    assert tree.layers["z"] == 1
    both = genesis.tree.map(lambda x, y: (x, y), {"a": 1, "b": [2]}, {"b": [3], "a": 4})
    assert both == {"a": (1, 4), "b": [(2, 3)]}
    assert genesis.tree.flatten_with_path(3) == [("", 3)]
    assert genesis.tree.flatten_with_path({1: 1, "a": 2, (2, 3): 4}) == [
        ("1", 1), ("a", 2), ("(2, 3)", 4),
    ]  # fmt: skip


def test_a_tree_says_where_it_goes_wrong():
    for other, said in [
        ({"a": [1, 2]}, r"differ at a: the first has the keys \[0\], another has keys \[0, 1\]"),
        ({"a": 1}, "differ at a: .* another has int"),
        ({"b": [1]}, "differ at the top"),
    ]:
        with pytest.raises(ValueError, match=said):
            genesis.tree.map(lambda x, y: x, {"a": [1]}, other)
    endless = {"a": [1]}
    endless["a"].append(endless)
    with pytest.raises(ValueError, match=r"contains itself, at a\.1"):
        genesis.tree.flatten_with_path(endless)
    shared = [1]
    assert len(genesis.tree.flatten_with_path({"a": shared, "b": shared})) == 2


def test_nodes_that_jax_knows():
    jax = pytest.importorskip("jax")

    class Pair:
        def __init__(self, left, right, note):
            self.left, self.right, self.note = left, right, note

    jax.tree_util.register_pytree_with_keys(
        Pair,
        lambda pair: (
            [(jax.tree_util.GetAttrKey(n), getattr(pair, n)) for n in ("left", "right")],
            pair.note,
        ),
        lambda note, children: Pair(*children, note),
    )
    params = {"pair": Pair(np.ones(2), [np.ones(3)], "note")}
    assert [p for p, _ in genesis.tree.flatten_with_path(params)] == ["pair.left", "pair.right.0"]
    opt = SGD(params, lr=1.0)
    for _ in range(2):
        opt.step(grads={"pair": Pair(np.ones(2), [np.ones(3)], "note")})
    np.testing.assert_array_equal(params["pair"].right[0], [-1, -1, -1])
    assert genesis.tree.map(lambda leaf: leaf, params)["pair"].note == "note"


def test_nodes_that_optree_knows():
    optree = pytest.importorskip("optree")

    class Box:
        def __init__(self, inside):
            self.inside = inside

    optree.register_pytree_node(
        Box, lambda box: ((box.inside,), None, ("inside",)), lambda _, c: Box(*c),
        namespace=optree.registry.__GLOBAL_NAMESPACE,
    )  # fmt: skip
    params = [Box(np.ones(2)), Box({"W": np.ones(3)})]
    opt = SGD(params, lr=1.0)
    assert opt.param_groups[0]["param_names"] == ["0.inside", "1.inside.W"]
    for _ in range(2):
        opt.step(grads=[Box(np.ones(2)), Box({"W": np.ones(3)})])
    np.testing.assert_array_equal(params[1].inside["W"], [-1, -1, -1])


# ---- parameters ----


def test_the_arrays_are_shared_and_called_by_their_paths():
    params = arrays(NESTED)
    opt = SGD(params, lr=0.1)
    (group,) = opt.param_groups
    assert group["param_names"] == PATHS
    leaves = [leaf for _, leaf in genesis.tree.flatten_with_path(params)]
    assert all(p.data is leaf for p, leaf in zip(group["params"], leaves))
    assert [p.name for p in group["params"]] == PATHS
    assert opt.state_dict()["param_groups"][0]["param_names"] == PATHS


def test_what_may_be_a_tree():
    a, b = (on_device(np.ones(n)) for n in (2, 3))
    p, q = genesis.Parameter(a), genesis.Parameter(b, name="mine")
    for given, names in [
        ({"x": a, "y": b}, ["x", "y"]),
        ([a, b], ["0", "1"]),
        ((a, b), ["0", "1"]),
        ([p, b], ["0", "1"]),
        ([[p], [q]], ["0.0", "1.0"]),
        (Layer(a, b), ["W", "b"]),
        (Net(a, b), ["first", "layers"]),
        ([{"W": a}, {"W": b}], ["0.W", "1.W"]),
        ({"params": {"W": a, "b": b}}, ["params.W", "params.b"]),
        ({"W": p, "b": q}, ["W", "b"]),
        (iter([a, b]), ["0", "1"]),
        ({"x": a, "y": b}.values(), ["0", "1"]),
        ({"x": a, "y": b}.items(), ["x", "y"]),
        ([("x", a), ("y", q)], ["x", "y"]),
        ([("x", {"W": a}), ("y", [b])], ["x.W", "y.0"]),
        ([{"params": {"x": a, "y": [b]}}], ["x", "y.0"]),
    ]:
        (group,) = SGD(given, lr=0.1).param_groups
        assert group["param_names"] == names
        assert [parameter.data is array for parameter, array in zip(group["params"], (a, b))]
    for given in ([p, q], (x for x in (p, q)), [{"params": p}, {"params": [q]}], [{"params": a}]):
        assert "param_names" not in SGD(given, lr=0.1).param_groups[0]
    groups = SGD([{"params": {"a": a}, "lr": 0.2}, {"params": [("b", q)]}], lr=0.1).param_groups
    assert [(group["lr"], group["param_names"]) for group in groups] == [(0.2, ["a"]), (0.1, ["b"])]


def test_a_tree_joins_as_a_group():
    a, b, c = (on_device(np.ones(2)) for _ in range(3))
    opt = SGD({"a": a}, lr=1.0)
    opt.add_param_group({"params": {"head": {"b": b}}, "lr": 2.0})
    opt.step(grads={"a": on_device(np.ones(2)), "head": {"b": on_device(np.ones(2))}})
    assert [on_host(x)[0] for x in (a, b)] == [0, -1]
    with pytest.raises(ValueError, match=r"without names .*'params': {'name': array}"):
        opt.add_param_group({"params": c})
    unnamed = SGD([genesis.Parameter(a)], lr=1.0)
    unnamed.add_param_group({"params": c})
    ones = [on_device(np.ones(2))] * 2
    unnamed.step(grads=ones)
    assert on_host(c)[0] == 0


def test_refuses_what_cannot_be_optimized():
    a = np.ones(3)
    p = genesis.Parameter(np.ones(2))
    locked = np.ones(2)
    locked.flags.writeable = False
    for bad, error, said in [
        ({"layers": [{"W": a, "n": 3}]}, TypeError, "'layers.0.n' is a int, 3: give an array"),
        ({"W": np.ones(3, int)}, TypeError, "parameter 'W' must have dtype .* got int64"),
        ({"W": a, "name": "linear"}, TypeError, "'name' is a str, 'linear'"),
        ({"W": a, "f": np.sin}, TypeError, "'f' is a ufunc"),
        ({"x": {"W": locked}}, ValueError, "parameter 'x.W' is read-only"),
        ({"W": np.ma.ones(2)}, TypeError, "parameter 'W' must be a plain array"),
        ({"W": a, "V": a[:2]}, ValueError, r"0 \('V'\) and parameter 1 \('W'\) share memory"),
        ({"W": a, "V": a}, ValueError, "share memory"),
        ({"W": p, "V": p}, ValueError, "at 'V' and at 'W': each would have a gradient"),
        ({"a.b": a, "a": {"b": np.ones(2)}}, ValueError, "two parameters have the path 'a.b'"),
        ({}, ValueError, "empty parameter list"),
        ({"params": [a], "lr": 0.1}, TypeError, r"\[group\]"),
        ([{"lr": 0.1}], ValueError, "must have 'params'"),
        ([{"params": {"W": a}}, {"params": {"W": 3}}], TypeError, "parameter 'W' is a int"),
        ({"x": {a.tobytes()}}, TypeError, "parameter 'x' is a set"),
    ]:
        with pytest.raises(error, match=said):
            SGD(bad, lr=0.1)
    np.testing.assert_array_equal(a, np.ones(3))


def test_a_rebound_name_is_another_array():
    params = {"W": on_device(np.ones(2))}
    opt = SGD(params, lr=1.0)
    first = params["W"]
    params["W"] = on_device(np.ones(2))  # as `W = W - ...` does: the optimizer keeps the first
    opt.step(grads={"W": on_device(np.ones(2))})
    assert on_host(first)[0] == 0
    assert on_host(params["W"])[0] == 1


# ---- gradients in the step ----


@pytest.mark.parametrize("case", ONE_EACH if DEVICE == "cpu" else TWO[:1], ids=lambda case: case.id)
def test_given_gradients_are_assigned_ones(case):
    params, same = arrays(NESTED, np.float32), arrays(NESTED, np.float32)
    opt = case.make(params, lr=0.01)
    leaves = [leaf for _, leaf in genesis.tree.flatten_with_path(same)]
    others = [genesis.Parameter(leaf) for leaf in leaves]
    other = case.make(others, lr=0.01)
    for seed, asked in enumerate([{}, {}, {"max_norm": 0.5}, {"clip_value": 0.3}, {}]):
        grads = like(params, seed)
        for p, (_, grad) in zip(others, genesis.tree.flatten_with_path(grads)):
            p.grad = grad
        assert opt.step(grads=grads, **asked) is opt
        other.step(**asked)
        assert opt.grad_norm == other.grad_norm
        assert_equal(params, values(same))


@on_cpu_only
@pytest.mark.parametrize(
    "name", ["Adafactor", "AdamMini", "CAME", "GaLoreAdamW", "Kron", "Muon", "SOAP", "Shampoo"]
)
def test_given_gradients_of_optimizers_by_tensor(name):
    params, same = arrays({"W": "4x3", "V": ["3x2"]}), arrays({"W": "4x3", "V": ["3x2"]})
    opt = getattr(genesis.optim, name)(params)
    others = [genesis.Parameter(leaf) for _, leaf in genesis.tree.flatten_with_path(same)]
    other = getattr(genesis.optim, name)(others)
    for seed, asked in enumerate([{}, {"max_norm": 0.5}, {"clip_value": 0.3}]):
        grads = like(params, seed)
        for p, (_, grad) in zip(others, genesis.tree.flatten_with_path(grads)):
            p.grad = grad.copy()
        if "clip_value" in asked:
            genesis.nn.utils.clip_grad_value_(others, 0.3)
            other.step()
        else:
            other.step(**asked)
        opt.step(grads=grads, **asked)
        assert_equal(params, values(same))
    grads = like(params, 3)
    scaled = genesis.tree.map(lambda g: 8 * g, grads)
    genesis.amp.GradScaler(init_scale=8.0).step(opt, grads=scaled, clip_value=0.3)
    other.step(
        closure=lambda: (1.0, [g for _, g in genesis.tree.flatten_with_path(grads)]), clip_value=0.3
    )
    assert_equal(params, values(same))
    with pytest.raises(ValueError, match=r"has no 'V\.0'"):
        opt.step(grads={"W": np.ones((4, 3))})


@pytest.mark.parametrize("hyper", [{}, {"maximize": True}, {"master_weights": True}], ids=str)
def test_clipping_by_value_in_the_step_is_clipping_before_it(hyper):
    dtype = np.float16 if hyper.get("master_weights") else np.float32
    params, same = arrays(NESTED, dtype), arrays(NESTED, dtype)
    opt, other = AdamW(params, lr=0.1, **hyper), AdamW(same, lr=0.1, **hyper)
    for seed in range(3):
        grads = like(params, seed)
        bounds = on_host(grads["layers"][0]["W"])
        bounds[:3] = 5, -5, 0.1
        grads["layers"][0]["W"] = on_device(bounds)
        clipped = genesis.tree.map(lambda g: on_device(np.clip(on_host(g), -0.25, 0.25)), grads)
        before = values(grads)
        opt.step(grads=grads, clip_value=0.25)
        other.step(grads=clipped)
        assert_equal(params, values(same))
        assert_equal(grads, before)


def test_clipping_by_value_keeps_nan_and_takes_infinity():
    params = {"x": on_device(np.zeros(3))}
    SGD(params, lr=1.0).step(grads={"x": on_device(np.array([np.nan, np.inf, -2.0]))}, clip_value=1)
    np.testing.assert_array_equal(on_host(params["x"]), [np.nan, -1, 1])
    p = parameter(np.zeros(2))
    p.grad = on_device(np.array([3.0, -0.5]))
    SGD([p], lr=1.0).step(clip_value=0)
    np.testing.assert_array_equal(on_host(p.data), [0, 0])
    for bad, error in [(-1, ValueError), (np.nan, ValueError), ("1", TypeError), (True, TypeError)]:
        with pytest.raises(error, match="clip_value must be"):
            SGD([p], lr=1.0).step(clip_value=bad)
    with pytest.raises(ValueError, match="max_norm or clip_value, but not both"):
        SGD([p], lr=1.0).step(clip_value=1.0, max_norm=1.0)


@on_cpu_only
def test_clipping_by_value_comes_after_the_sum_of_rows():
    table = np.zeros((4, 2))
    grad = genesis.SparseGrad([1, 1, 3], np.array([[3.0, 0.2], [1.0, 0.2], [-9.0, 0.1]]))
    SGD({"table": table}, lr=1.0).step(grads={"table": grad}, clip_value=0.5)
    np.testing.assert_allclose(table, [[0, 0], [-0.5, -0.4], [0, 0], [0.5, -0.1]])


def test_keys_in_any_order_and_nodes_of_other_types():
    params = arrays(NESTED)
    grads = like(params, 1)
    first = {path: on_host(leaf) for path, leaf in genesis.tree.flatten_with_path(params)}
    expected = {
        path: first[path] - on_host(grad) for path, grad in genesis.tree.flatten_with_path(grads)
    }
    turned = {
        "none": None,
        "norm": [grads["norm"][0], {"b": grads["norm"][1].b, "W": grads["norm"][1].W}],
        "layers": tuple(dict(reversed(layer.items())) for layer in grads["layers"]),
    }
    flat = dict(genesis.tree.flatten_with_path(grads))
    for tree in (grads, turned, flat):
        copies = genesis.tree.map(lambda a: on_device(on_host(a).copy()), params)
        opt = SGD(copies, lr=1.0)
        opt.step(grads=tree)
        assert_equal(copies, expected)


def test_none_leaves_a_parameter_as_it_is():
    params = arrays({"a": 3, "b": {"W": 2, "V": 2}, "c": [2, 2]})
    opt = Adam(params, lr=0.1)
    ones = genesis.tree.map(lambda a: on_device(np.ones(a.shape)), params)
    steps = dict.fromkeys(opt.param_groups[0]["param_names"], 0)
    for absent in (
        ["a"], ["b.W"], ["b"], [], ["b", "c"], ["c.1"], ["b"], ["b.W", "b.V"], ["a", "b", "c"],
    ):  # fmt: skip
        grads = copy.deepcopy(ones) if DEVICE == "cpu" else genesis.tree.map(lambda g: g, ones)
        for path in absent:
            node, (*above, last) = grads, path.split(".")
            for key in above:
                node = node[key]
            node[int(last) if last.isdigit() else last] = None
        before = values(params)
        if len(absent) == 3:
            with pytest.warns(UserWarning, match="no parameter has a gradient"):
                opt.step(grads=grads)
        else:
            opt.step(grads=grads)
        for path, array in values(params).items():
            left = any(path == gone or path.startswith(gone + ".") for gone in absent)
            assert np.array_equal(array, before[path]) == left, (path, absent)
            steps[path] += not left
    found = [opt.state.get(p, {}).get("step") for p in opt.param_groups[0]["params"]]
    assert found == list(steps.values())


def test_what_parameters_hold_is_neither_read_nor_changed():
    params = arrays({"a": 3, "b": 2})
    opt = SGD(params, lr=1.0)
    p, q = opt.param_groups[0]["params"]
    held = on_device(np.full(3, 7.0))
    p.grad = held
    before = values(params)
    grads = {"a": None, "b": on_device(np.ones(2))}
    opt.step(grads=grads)
    assert p.grad is held
    assert q.grad is None
    np.testing.assert_array_equal(on_host(params["a"]), before["a"])
    opt.step()
    np.testing.assert_array_equal(on_host(params["a"]), before["a"] - 7)
    opt.zero_grad(set_to_none=False)
    np.testing.assert_array_equal(on_host(p.grad), np.zeros(3))
    np.testing.assert_array_equal(on_host(grads["b"]), np.ones(2))


@on_cpu_only
def test_gradients_do_not_outlive_the_step():
    class Array(np.ndarray):
        pass

    params = {"a": np.zeros(3), "b": np.zeros((4, 3))}
    opt = SGD(params, lr=1.0)
    for _ in range(3):
        a = np.ones(3).view(Array)
        b = np.ones((3, 4)).T.view(Array)
        gone = [weakref.ref(a), weakref.ref(b)]
        opt.step(grads={"a": a, "b": b}, max_norm=1e9)
        del a, b
        gc.collect()
        assert [reference() for reference in gone] == [None, None]


def test_the_optimizer_notices_that_its_groups_were_edited():
    ones = {name: on_device(np.ones(2)) for name in "abc"}
    params = {name: on_device(np.zeros(2)) for name in "abc"}
    opt = SGD(
        [{"params": {"a": params["a"], "b": params["b"]}}, {"params": {"c": params["c"]}}], lr=1.0
    )

    def stepped(grads):
        before = values(params)
        opt.step(grads=grads)
        return {n: int((before[n] - on_host(params[n]))[0]) for n in params}

    assert stepped(ones) == {"a": 1, "b": 1, "c": 1}
    del opt.param_groups[0]
    assert stepped({"c": ones["c"]}) == {"a": 0, "b": 0, "c": 1}
    with pytest.raises(ValueError, match="grads has 'a', but the optimizer has no such parameter"):
        opt.step(grads=ones)
    opt.param_groups[0]["param_names"][0] = "z"
    with pytest.raises(ValueError, match="has no 'z'"):
        opt.step(grads={"c": ones["c"]})
    assert stepped({"z": ones["c"]}) == {"a": 0, "b": 0, "c": 1}
    opt.add_param_group({"params": {"a": params["a"]}, "lr": 2.0})
    assert stepped({"z": ones["c"], "a": ones["a"]}) == {"a": 2, "b": 0, "c": 1}
    group = opt.param_groups[0]
    group["params"].append(genesis.Parameter(params["b"]))
    with pytest.raises(ValueError, match="grads has no '0'"):  # names for all, or numbers
        opt.step(grads={"z": ones["c"], "a": ones["a"]})
    group["param_names"].append("b")
    assert stepped({"z": ones["c"], "a": ones["a"], "b": None}) == {"a": 2, "b": 0, "c": 1}
    group["params"].reverse()
    group["param_names"].reverse()
    assert stepped({"z": ones["c"], "a": None, "b": None}) == {"a": 0, "b": 0, "c": 1}


@on_cpu_only
def test_a_list_of_another_length_is_not_read():
    """As another thread could bring about, which edits a group between two lines of a step."""
    opt = SGD([np.zeros(2), np.zeros(2)], lr=1.0)
    grads = [np.ones(2), np.ones(2)]
    opt.step(grads=grads)
    ((plan,),) = [step.plans for step in opt._plans]
    holders = opt.param_groups[0]["params"]
    for given in (grads[:1], [], [*grads, None]):
        assert plan.look(id(holders), id(given)) == genesis.kernels.CHANGED
    assert plan.look(id(holders), id(grads)) >= 0
    plan.release()


def test_several_groups_of_one_structure_take_a_list():
    encoder, head = ({"W": on_device(np.zeros(2))} for _ in range(2))
    opt = SGD([{"params": encoder}, {"params": head, "lr": 2.0}], lr=1.0)
    grads = [{"W": on_device(np.ones(2))} for _ in range(2)]
    opt.step(grads=grads)
    opt.step(grads=tuple(grads))
    assert [on_host(tree["W"])[0] for tree in (encoder, head)] == [-2, -4]
    with pytest.raises(ValueError, match=r"two parameters are called 'W'.*each group"):
        opt.step(grads=grads[0])
    unnamed = [genesis.Parameter(on_device(np.zeros(2))) for _ in range(3)]
    opt = SGD([{"params": unnamed[:2]}, {"params": unnamed[2:], "lr": 2.0}], lr=1.0)
    ones = on_device(np.ones(2))
    opt.step(grads=[ones, None, ones])
    opt.step(grads=[[ones, ones], [None]])
    assert [on_host(p.data)[0] for p in unnamed] == [-2, -1, -2]


def test_gradients_of_many_kinds():
    params = {"x": np.zeros(2, np.float32), "s": np.zeros(()), "t": np.zeros((3, 2))}
    if DEVICE != "cpu":
        pytest.skip("host arrays")
    opt = SGD(params, lr=1.0)
    locked = np.ones(2, np.float32)
    locked.flags.writeable = False
    strided = np.ones((2, 3)).T
    rows = genesis.SparseGrad([2], np.ones((1, 2)))
    for x, s, t in [
        (locked, 1.0, strided),
        (memoryview(locked), np.float64(1), strided[::-1]),
        (np.ones(2, np.float64), np.float32(1), np.ones((3, 2), np.float16)),
        (locked, np.ones(()), rows),
        (locked, None, rows),
    ]:
        before = values(params)
        opt.step(grads={"x": x, "s": s, "t": t})
        np.testing.assert_array_equal(before["x"] - params["x"], np.ones(2))
        np.testing.assert_array_equal(before["s"] - params["s"], 0 if s is None else 1)
        dense = rows.to_dense(3) if t is rows else np.ones((3, 2))
        np.testing.assert_array_equal(before["t"] - params["t"], dense)


@on_cpu_only
def test_gradients_of_torch_are_read_where_they_are():
    torch = pytest.importorskip("torch")
    params = {"W": np.zeros((2, 3), np.float32), "b": np.zeros(3, np.float32)}
    opt = SGD(params, lr=1.0)
    W, b = torch.nn.Parameter(torch.ones(2, 3)), torch.ones(3, dtype=torch.bfloat16)
    for _ in range(3):
        opt.step(grads={"W": W, "b": b})
    with torch.no_grad():
        W *= 2
    opt.step(grads={"W": W, "b": b})
    np.testing.assert_array_equal(params["W"], np.full((2, 3), -5))
    np.testing.assert_array_equal(params["b"], np.full(3, -4))


@on_cpu_only
def test_gradients_of_jax_and_its_losses():
    jax = pytest.importorskip("jax")
    jnp = jax.numpy
    params = {"W": np.ones((3, 2), np.float32), "b": np.zeros(2, np.float32)}
    opt = SGD(params, lr=0.1)
    x = np.ones((4, 3), np.float32)

    @jax.jit
    @jax.value_and_grad
    def loss(params):
        return jnp.mean((x @ params["W"] + params["b"]) ** 2)

    first = opt.step(lambda: loss(params))
    assert float(first) == 9.0
    assert float(loss(params)[0]) < 9.0
    grads = loss(params)[1]
    kept = np.array(grads["W"])
    opt.step(grads=grads)
    np.testing.assert_array_equal(grads["W"], kept)
    assert not np.array_equal(params["W"], np.ones((3, 2)))


def test_a_defaultdict_is_not_asked_for_what_it_has_not():
    params = {"a": on_device(np.zeros(())), "b": on_device(np.zeros(()))}
    opt = SGD(params, lr=1.0)
    one = on_device(np.ones(()))
    for _ in range(2):
        opt.step(grads=collections.defaultdict(float, a=one, b=one))
    grads = collections.defaultdict(float, a=one, c=one)
    with pytest.raises(ValueError, match="has no 'b'"):
        opt.step(grads=grads)
    assert grads.keys() == {"a", "c"}
    assert on_host(params["a"]) == -2


def test_closures_may_return_the_gradients():
    params = {"x": on_device(np.zeros(2))}
    opt = SGD(params, lr=1.0)
    ones = {"x": on_device(np.ones(2))}
    assert opt.step(lambda: (3.5, ones)) == 3.5
    assert opt.step(lambda: ((3.5, "aux"), ones), max_norm=0.0) == (3.5, "aux")
    np.testing.assert_array_equal(on_host(params["x"]), [-1, -1])
    opt.param_groups[0]["params"][0].grad = ones["x"]
    for loss in (None, 2.0, (1.0, 0.5), [1.0, ones], (1.0, ones, ones)):
        assert opt.step(lambda loss=loss: loss) is loss
    np.testing.assert_array_equal(on_host(params["x"]), [-6, -6])


def test_both_or_no_closure():
    opt = SGD({"x": on_device(np.zeros(2))}, lr=1.0)
    grads = {"x": on_device(np.ones(2))}
    with pytest.raises(ValueError, match="grads= or a closure, but not both"):
        opt.step(lambda: 1.0, grads=grads)
    for given in ([grads["x"]], grads, grads["x"]):
        with pytest.raises(TypeError, match=r"gradients go in grads=, step\(grads=gradients\)"):
            opt.step(given)


BAD = {
    "a missing key": (lambda g: g["layers"][1].pop("b"), ValueError, "has no 'layers.1.b'"),
    "an extra key": (lambda g: g["layers"][1].update(c=g["s"]), ValueError, "has 'layers.1.c'"),
    "a misspelt key": (
        lambda g: g["layers"][0].update(bias=g["layers"][0].pop("b_")) or g["layers"][0].pop("b"),
        ValueError, "has no 'layers.0.b'",
    ),
    "a longer list": (lambda g: g["layers"].append({}) or g["layers"].append(g["s"]), ValueError,
                      "has 'layers.3'"),
    "another shape": (lambda g: g["layers"][0].update(W=on_device(np.ones(5))), ValueError,
                      r"parameter 0 \('layers.0.W'\) has shape \(5,\), but its place has shape \(6,\): "
                      "give a gradient of its parameter's shape"),
    "whole numbers": (lambda g: g["layers"][0].update(W=on_device(np.ones(6, int))), TypeError,
                      r"'layers.0.W'\) must have dtype .* got int64"),
    "complex numbers": (lambda g: g["layers"][0].update(W=on_device(np.ones(6, complex))), TypeError,
                        r"'layers.0.W'\) must have dtype"),
    "a string": (lambda g: g["layers"][0].update(W="x"), TypeError, r"'layers.0.W'\) must be"),
    "a number for an array": (lambda g: g["layers"][0].update(W=1.0), ValueError,
                              r"'layers.0.W'\) has shape \(\)"),
    "a node for a leaf": (lambda g: g["layers"][0].update(W=[g["s"]]), ValueError,
                          r"no 'layers.0.W', .* at 'layers.0.W.0': give one array, as numpy"),
    "another name": (lambda g: g.update(gain=g.pop("s")), ValueError,
                     "no 's', .* It has 'gain', which no parameter is called"),
    "a leaf for a node": (lambda g: g["layers"].__setitem__(0, g["s"]), ValueError, "no 'layers.0.W'"),
    "itself": (lambda g: g["layers"].append(g), ValueError, "contains itself, at layers.2"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("warm", [False, True], ids=["first", "later"])
def test_refuses_gradients_that_do_not_fit(name, warm):
    params = arrays({"layers": [{"W": 6, "b": 2}, {"W": 4, "b": 2}], "s": ""})
    opt = AdamW(params, lr=0.1)
    if warm:
        opt.step(grads=like(params, 0))
    grads = like(params, 1)
    if name == "a misspelt key":
        grads["layers"][0]["b_"] = grads["layers"][0]["b"]
    spoil, error, said = BAD[name]
    spoil(grads)
    before, state = values(params), opt.state_dict()
    with pytest.raises(error, match=said):
        opt.step(grads=grads)
    assert_equal(params, before)
    np.testing.assert_equal(opt.state_dict(), state)
    opt.step(grads=like(params, 1))


@on_cpu_only
def test_refuses_gradients_that_alias_what_the_step_writes():
    params = {"W": np.zeros(4), "b": np.zeros(2)}
    opt = Adam(params, lr=0.1)
    fresh = {"W": np.ones(4), "b": np.ones(2)}
    opt.step(grads=fresh)
    W, b = opt.param_groups[0]["params"]
    before = values(params)
    for bad, said in [
        ({**fresh, "W": params["W"]}, r"'W'\) shares memory with the array of parameter 0"),
        (params, "shares memory with the array"),
        ({**fresh, "b": params["W"][1:3]}, r"'b'\) shares memory with the array of parameter 0"),
        (
            {**fresh, "b": opt.state[b]["exp_avg"]},
            r"shares memory with state 'exp_avg' of parameter 1",
        ),
        ({**fresh, "b": memoryview(params["b"])}, "shares memory with the array of parameter 1"),
    ]:
        for _ in range(2):
            with pytest.raises(ValueError, match=said):
                opt.step(grads=bad)
    with pytest.raises(TypeError, match=r"parameter 0 \('W'\) is a Parameter: give the gradient"):
        opt.step(grads={"W": W, "b": b})
    for bad, error, said in [
        (np.ones(4), TypeError, r"grads must be a tree like the parameters.*\[gradient\]"),
        (fresh.values(), TypeError, r"list\(grads\)"),
        ([np.ones(4), np.ones(2)], ValueError, "has no 'W'"),
        ({**fresh, "W": genesis.SparseGrad([5], np.ones((1,)))}, ValueError, "out of range"),
    ]:
        with pytest.raises(error, match=said):
            opt.step(grads=bad)
    assert_equal(params, before)
    assert opt.state[W]["step"] == 1


def test_a_gradient_elsewhere_is_refused():
    if DEVICE == "cpu":
        pytest.skip("needs a second device: NUMBA_ENABLE_CUDASIM=1")
    params = {"W": on_device(np.zeros(4)), "b": on_device(np.zeros(2))}
    opt = SGD(params, lr=0.1)
    with pytest.raises(
        ValueError, match=r"parameter 0 \('W'\) is on cpu, but its place is on cuda"
    ):
        opt.step(grads={"W": np.ones(4), "b": np.ones(2)})
    assert on_host(params["b"])[0] == 0


def test_an_array_made_read_only_is_not_written():
    params = {"W": np.zeros(4), "b": np.zeros(2)}
    if DEVICE != "cpu":
        pytest.skip("host arrays")
    opt = SGD(params, lr=0.1)
    grads = {"W": np.ones(4), "b": np.ones(2)}
    opt.step(grads=grads)
    before = values(params)
    params["b"].flags.writeable = False
    with pytest.raises(ValueError, match=r"parameter 1 \('b'\) is read-only"):
        opt.step(grads=grads)
    assert_equal(params, before)


def test_a_step_without_gradients_warns_once():
    for opt in (SGD({"x": on_device(np.zeros(2))}, lr=1.0), AdamW([parameter(np.zeros(2))])):
        with pytest.warns(UserWarning, match=r"no parameter has a gradient.*grads=") as caught:
            opt.step()
        assert caught[0].filename == __file__
        opt.step()
    empty = SGD([{"params": [parameter(np.zeros(2))]}], lr=1.0)
    empty.param_groups[0]["params"] = []
    empty.step()  # nothing to be surprised at


# ---- hooks, scalers, schedules ----


def test_hooks_see_the_gradients_and_may_change_them():
    params = {"x": on_device(np.zeros(2))}
    opt = SGD(params, lr=1.0)
    seen = []

    def double(optimizer, args, kwargs):
        seen.append(kwargs["grads"])
        doubled = genesis.tree.map(lambda g: on_device(2 * on_host(g)), kwargs["grads"])
        return args, {**kwargs, "grads": doubled}

    with opt.register_step_pre_hook(double):
        grads = {"x": on_device(np.ones(2))}
        opt.step(grads=grads)
        assert seen == [grads]
        np.testing.assert_array_equal(on_host(params["x"]), [-2, -2])
        scaler = genesis.amp.GradScaler(init_scale=4.0)
        scaler.step(opt, grads=grads)
    np.testing.assert_array_equal(on_host(params["x"]), [-2.5, -2.5])


@pytest.mark.parametrize("enabled", [True, False])
def test_a_scaler_takes_gradients(enabled):
    params = arrays({"a": 3, "b": [2]}, np.float32)
    same = arrays({"a": 3, "b": [2]}, np.float32)
    opt, other = AdamW(params, lr=0.1), AdamW(same, lr=0.1)
    scaler = genesis.amp.GradScaler(init_scale=8.0, enabled=enabled)
    factor = 8 if enabled else 1
    for asked in ({}, {"max_norm": 0.1}, {"clip_value": 0.2}):
        grads = like(params, 3)
        scaled = genesis.tree.map(lambda g: on_device(factor * on_host(g)), grads)
        assert scaler.step(opt, grads=scaled, **asked) is opt
        scaler.update()
        other.step(grads=grads, **asked)
        assert_equal(params, values(same))
    if not enabled:
        return
    before = values(params)
    scaled["b"][0] = on_device(np.array([1, np.inf], np.float32))
    assert scaler.step(opt, grads=scaled) is None
    assert opt.step_skipped
    scaler.update()
    assert scaler.get_scale() == 4
    assert_equal(params, before)
    opt.param_groups[0]["params"][0].grad = on_device(np.ones(3, np.float32))
    scaler.unscale_(opt)
    with pytest.raises(RuntimeError, match="other gradients"):
        scaler.step(opt, grads=scaled)


# ---- clipping and norms ----


def test_clipping_takes_trees_of_parameters_and_of_gradients():
    grads = {"a": on_device(np.array([3.0])), "b": [None, on_device(np.array([[4.0]]))]}
    assert genesis.nn.utils.get_total_norm(grads) == 5
    assert genesis.nn.utils.clip_grad_norm_(grads, 1.0) == 5
    np.testing.assert_allclose(on_host(grads["b"][1]), [[0.8]], rtol=1e-5)
    genesis.nn.utils.clip_grad_value_(grads, 0.7)
    np.testing.assert_allclose(on_host(grads["b"][1]), [[0.7]])
    np.testing.assert_allclose(on_host(grads["a"]), [0.6], rtol=1e-5)
    genesis.nn.utils.clip_grads_with_norm_(grads, 1.0, 2.0)
    np.testing.assert_allclose(on_host(grads["a"]), [0.3], rtol=1e-5)
    genesis.optim.clip_grad_value(grads, 0.0, 0.1)
    assert genesis.nn.utils.clip_grad_norm_(on_device(np.array([3.0, 4.0])), 1.0) == 5
    p = parameter(np.zeros(1))
    p.grad = on_device(np.array([3.0]))
    tree = {"p": [p, parameter(np.zeros(1))], "g": on_device(np.array([4.0]))}
    assert genesis.nn.utils.clip_grad_norm_(tree, 1.0) == 5
    np.testing.assert_allclose(on_host(p.grad), [0.6], rtol=1e-5)
    assert genesis.nn.utils.clip_grad_norm_({}, 1.0) == 0


@on_cpu_only
def test_clipping_says_what_it_cannot_write():
    locked = np.ones(2)
    locked.flags.writeable = False
    grads = {"a": np.ones(2), "x": {"W": locked}}
    with pytest.raises(ValueError, match=r"'x.W' is read-only.*step\(max_norm=...\)"):
        genesis.nn.utils.clip_grad_norm_(grads, 0.1)
    np.testing.assert_array_equal(grads["a"], np.ones(2))
    SGD({"a": np.ones(2), "x": {"W": np.ones(2)}}, lr=1.0).step(grads=grads, max_norm=0.1)
    rows = genesis.SparseGrad([0, 0], np.array([[3.0], [1.0]]))
    assert genesis.nn.utils.clip_grad_norm_({"t": rows}, 1.0) == 4
    with pytest.raises(TypeError, match="SparseGrad cannot be clipped by value"):
        genesis.nn.utils.clip_grad_value_({"t": rows}, 1.0)
    with pytest.raises(TypeError, match="the tensor 'W' is a Parameter"):
        genesis.nn.utils.get_total_norm({"W": genesis.Parameter(np.ones(2))})


# ---- groups by name ----


def names_and(groups, setting):
    return [(group[setting], group["param_names"]) for group in groups]


def test_no_decay_by_path():
    params = arrays({"block": [{"W": 2, "bias": 2, "ln": {"scale": 2}}], "head": 3})
    groups = optim.param_groups_weight_decay(params, 0.1)
    assert names_and(groups, "weight_decay") == [
        (0.1, ["block.0.W", "head"]),
        (0.0, ["block.0.bias", "block.0.ln.scale"]),
    ]
    opt = AdamW(groups, lr=0.0)
    assert opt.param_groups[0]["params"][1].data is params["head"]
    opt.step(grads=like(params, 0))


def test_layers_by_path():
    decayed = optim.param_groups_layerwise_lr_decay
    written = {
        "stem": {"W": 1, "b": 1},
        "blocks": [{"W": 1, "ln": {"scale": 1}}, {"W": 1, "ln": {"scale": 1}}],
        "head": 1,
    }
    params = arrays(written)
    layers = [
        (0.125, ["stem.W", "stem.b"]),
        (0.25, ["blocks.0.W", "blocks.0.ln.scale"]),
        (0.5, ["blocks.1.W", "blocks.1.ln.scale"]),
        (1.0, ["head"]),
    ]
    assert names_and(decayed(params, 1.0, 0.5), "lr") == layers
    pairs = [(name, leaf) for name, leaf in genesis.tree.flatten_with_path(params)]
    assert names_and(decayed(pairs, 1.0, 0.5), "lr")[0][1] == ["blocks.0.W", "blocks.0.ln.scale"]
    order = {"stem": 0, "blocks": 1, "head": 2}
    by_part = decayed(pairs, 1.0, 0.5, layer=lambda name: order[name.split(".")[0]])
    assert [group["lr"] for group in by_part] == [0.25, 0.5, 1.0]
    numbered = arrays({"W1": 1, "b1": 1, "W2": 1, "b2": 1, "out": 1})
    assert names_and(decayed(numbered, 1.0, 0.5), "lr") == [
        (0.25, ["W1", "b1"]), (0.5, ["W2", "b2"]), (1.0, ["out"]),
    ]  # fmt: skip
    both = decayed(params, 1.0, 0.5, weight_decay=0.1, no_decay=("b", "ln"))
    assert names_and(both, "weight_decay")[:3] == [
        (0.1, ["stem.W"]), (0.0, ["stem.b"]), (0.1, ["blocks.0.W"]),
    ]  # fmt: skip
    AdamW(both).step(grads=like(params, 0))
    for bad, error in [({"lr": -1}, ValueError), ({"lr": "1"}, TypeError), ({"decay": 0}, ValueError),
                       ({"decay": 1.5}, ValueError)]:  # fmt: skip
        with pytest.raises(error, match=f"{next(iter(bad))} must be"):
            decayed(params, **{"lr": 1.0, "decay": 0.5, **bad})
    with pytest.raises(TypeError, match=r"\(name, Parameter\) pairs"):
        decayed([genesis.Parameter(np.ones(1))], 1.0, 0.5)


# ---- snapshots ----


def turned(tree):
    """The same tree, whose dicts were put together in another order."""
    if isinstance(tree, dict):
        return {key: turned(below) for key, below in reversed(tree.items())}
    return [turned(below) for below in tree] if isinstance(tree, list) else tree


@on_cpu_only
@pytest.mark.parametrize(
    ("name", "hyper", "dtype"),
    [
        *((case.name, case.hyper, np.float32) for case in ONE_EACH),
        ("AdamW", {"stochastic_rounding": True}, genesis.buffers.BFLOAT16),
        ("AdamW", {"master_weights": True, "ema_decay": 0.9}, np.float16),
        ("Adafactor", {}, np.float32),
        ("Muon", {}, np.float32),
        ("SOAP", {}, np.float32),
        ("Shampoo", {"grafting": "adam"}, np.float32),
        ("Kron", {}, np.float32),
    ],
    ids=str,
)
def test_a_tree_resumes_in_another_order(tmp_path, name, hyper, dtype):
    sizes = {"W": "4x2", "layers": [{"V": "3x3", "U": "4x3"}, {"V": "2x2", "U": "3x2"}]}
    make = getattr(genesis.optim, name)
    params = arrays(sizes, dtype)
    opt = make(params, **hyper)
    average = AveragedParameters(params)
    for seed in range(3):
        opt.step(grads=like(params, seed), max_norm=0.5)
        average.update()
    path = tmp_path / "run.safetensors"
    genesis.save_checkpoint(path, params=params, optimizer=opt, average=average)
    resumed = turned(genesis.load(path)["params"])
    other = make(resumed, **hyper)
    mean = AveragedParameters(resumed)
    other.step(grads=like(resumed, 9))  # whatever it did before
    genesis.load_checkpoint(path, optimizer=other, average=mean, params=resumed)
    assert list(resumed) == ["layers", "W"] or list(resumed) == list(reversed(sizes))
    for seed in range(3, 6):
        grads = like(params, seed)
        opt.step(grads=grads, max_norm=0.5)
        other.step(grads=turned(grads), max_norm=0.5)
        average.update()
        mean.update()
    assert_equal(resumed, values(params))
    np.testing.assert_equal(other.state_dict(), opt.state_dict())
    np.testing.assert_equal(mean.state_dict(), average.state_dict())


@on_cpu_only
def test_a_checkpoint_is_loaded_into_the_arrays_of_a_tree(tmp_path):
    path = tmp_path / "run.safetensors"
    params = arrays({"W": "4x2", "layers": [{"b": 3}, {"b": 2}]}, np.float32)
    opt = Adam(params, lr=0.1)
    opt.step(grads=like(params, 0))
    genesis.save_checkpoint(path, params=params, optimizer=opt)
    expected = values(params)
    for _ in range(2):
        opt.step(grads=like(params, 1))
    later = values(params)
    genesis.load_checkpoint(path, params=turned(params), optimizer=opt)
    assert_equal(params, expected)
    opt.step(grads=like(params, 1))
    opt.step(grads=like(params, 1))
    assert_equal(params, later)
    holders = dict(zip(opt.param_groups[0]["param_names"], opt.param_groups[0]["params"]))
    genesis.load_checkpoint(path, params=holders)  # by path, whatever the nodes
    assert_equal(params, expected)

    opt.step(grads=like(params, 1))
    before, state = values(params), opt.state_dict()
    fewer, more = {"W": params["W"]}, {**params, "V": np.ones(2, np.float32)}
    other_type = {**params, "W": params["W"].astype(np.float64)}
    other_shape = {**params, "W": params["W"].T}
    for bad, said in [
        (fewer, r"it has more, at 'layers.0.b', 'layers.1.b'"),
        (more, "it has nothing at 'V'"),
        (other_type, "has at 'W' an array of shape .* dtype float32, but .* dtype float64"),
        (other_shape, r"has at 'W' an array of shape \(4, 2\) .* shape \(2, 4\)"),
    ]:
        with pytest.raises(ValueError, match=f"params in .*run.safetensors.*{said}"):
            genesis.load_checkpoint(path, optimizer=opt, params=bad)
    with pytest.raises(ValueError, match=r"different number of parameter groups|size of"):
        genesis.load_checkpoint(
            path, params=params, optimizer=Adam([genesis.Parameter(np.ones(2))])
        )
    locked = params["W"].copy()
    locked.flags.writeable = False
    for bad in ({**params, "W": locked}, {"W": [1.0]}, {"W": "x"}, [3], {}):
        with pytest.raises(TypeError, match=r"params: an? (dict|list) has no load_state_dict"):
            genesis.load_checkpoint(path, params=bad)
    assert_equal(params, before)
    np.testing.assert_equal(opt.state_dict(), state)


def test_pairs_resume_by_name_and_other_names_are_refused():
    arrays_ = {name: np.zeros(2) for name in "abc"}
    a = Adam([(name, parameter(array)) for name, array in arrays_.items()])
    for i, p in enumerate(a.param_groups[0]["params"]):
        p.grad = on_device(np.full(2, i + 1.0))
    a.step()
    b = Adam([(name, parameter(arrays_[name])) for name in "cab"])
    b.load_state_dict(a.state_dict())
    assert b.param_groups[0]["param_names"] == ["c", "a", "b"]
    for name, p in zip("cab", b.param_groups[0]["params"]):
        expected = 0.1 * ("abc".index(name) + 1)
        np.testing.assert_allclose(on_host(b.state[p]["exp_avg"]), expected)
    other = Adam([(name, parameter(np.zeros(2))) for name in "abd"])
    with pytest.raises(ValueError, match=r"has no \['d'\], but \['c'\].*delete 'param_names'"):
        other.load_state_dict(a.state_dict())
    assert not other.state
    saved = a.state_dict()
    del saved["param_groups"][0]["param_names"]
    other.load_state_dict(saved)
    assert other.param_groups[0]["param_names"] == ["a", "b", "d"]
    lbfgs = genesis.optim.LBFGS([("a", parameter(np.zeros(2))), ("b", parameter(np.zeros(2)))])
    turned_ = genesis.optim.LBFGS([("b", parameter(np.zeros(2))), ("a", parameter(np.zeros(2)))])
    with pytest.raises(ValueError, match="give them to the constructor in that order"):
        turned_.load_state_dict(lbfgs.state_dict())


@on_cpu_only
def test_copies_and_pickles_of_an_optimizer_of_a_tree():
    params = arrays(NESTED)
    opt = Adam(params)
    opt.step(grads=like(params, 0))
    for other in (copy.deepcopy(opt), pickle.loads(pickle.dumps(opt))):
        assert other.param_groups[0]["param_names"] == PATHS
        other.step(grads=like(params, 1))
    opt.step(grads=like(params, 1))
    for p, q in zip(opt.param_groups[0]["params"], other.param_groups[0]["params"]):
        np.testing.assert_array_equal(p.data, q.data)


# ---- LBFGS ----


@on_cpu_only
def test_lbfgs_takes_gradients_from_its_closure_and_says_why_it_stopped():
    A, y = np.diag([1.0, 10.0]), np.array([1.0, 2.0])

    def problem(params):
        residual = A @ params["x"] + params["c"] - y
        return residual @ residual, {"c": 2 * residual, "x": 2 * A.T @ residual}

    found = []
    for assign in (False, True):
        params = {"x": np.zeros(2), "c": np.zeros(2)}
        opt = genesis.optim.LBFGS(params, line_search_fn="strong_wolfe")
        assert opt.stop_reason is None
        holders = dict(zip(opt.param_groups[0]["param_names"], opt.param_groups[0]["params"]))

        def closure(params=params, holders=holders, assign=assign):
            loss, grads = problem(params)
            if not assign:
                return loss, grads
            for name, p in holders.items():
                p.grad = grads[name]
            return loss

        assert opt.step(closure) == 5
        opt.step(closure)
        assert opt.stop_reason == "tolerance_grad"
        assert assign or all(p.grad is None for p in holders.values())
        found.append(values(params))
    np.testing.assert_equal(found[0], found[1])

    for hyper, reason in [
        ({"max_iter": 1}, "max_iter"),
        ({"max_iter": 100, "max_eval": 2}, "max_eval"),
        ({"tolerance_change": 10.0}, "tolerance_change"),
        ({"tolerance_grad": 1e6}, "tolerance_grad"),
    ]:
        params = {"x": np.zeros(2), "c": np.zeros(2)}
        opt = genesis.optim.LBFGS(params, **hyper)
        opt.step(lambda params=params: problem(params))
        assert opt.stop_reason == reason
    before = values(params)
    bad = lambda: (1.0, {"x": np.ones(2)})  # noqa: E731
    with pytest.raises(ValueError, match="has no 'c'"):
        opt.step(bad)
    with pytest.raises(TypeError, match=r"which may return \(loss, grads\)"):
        opt.step(grads=problem(params)[1])
    with pytest.raises(ValueError, match="LBFGS does not take clip_value"):
        opt.step(lambda: problem(params), clip_value=1.0)
    assert_equal(params, before)


@on_cpu_only
def test_a_table_by_rows_and_dense_parameters_in_one_optimizer():
    params = {"table": np.ones((5, 2)), "bias": np.ones(5)}
    opt = Adagrad(params, lr=0.5)
    rows = genesis.SparseGrad([3, 1, 3], np.ones((3, 2)))
    opt.step(grads={"table": rows, "bias": np.ones(5)})
    np.testing.assert_allclose(params["table"][:, 0], [1, 0.5, 1, 0.5, 1])
    np.testing.assert_allclose(params["bias"], np.full(5, 0.5))


def test_every_optimizer_takes_a_tree():
    for name in {case.name for case in CASES} | SPECIAL.keys():
        optimizer = getattr(genesis.optim, name)
        hyper = {"lr": 0.1} if name == "SGD" else {}
        opt = optimizer({"b": on_device(np.ones((2, 3))), "a": on_device(np.ones((3, 2)))}, **hyper)
        assert opt.param_groups[0]["param_names"] == ["a", "b"]
