"""One optimizer with a rule for each group."""

import copy
import pickle

import numpy as np
import pytest
from devices import on_cpu_only

import genesis
from genesis import optim
from genesis.optim import SAM, AdamW, Lookahead, Mixed, Muon, MuonWithAdamW, lr_scheduler

pytestmark = on_cpu_only

SHAPES = {"W": (4, 3), "V": (3, 4), "b": (3,), "s": ()}


def model(seed=0):
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape) for name, shape in SHAPES.items()}


def picked(params, *names):
    return {name: params[name] for name in names}


def groups_of(params, **others):
    return [
        {"params": picked(params, "W"), "optimizer": Muon, "lr": 0.02},
        {"params": picked(params, "b"), "optimizer": "SGD", "lr": 0.1, "momentum": 0.9},
        {"params": picked(params, "V"), "optimizer": Muon, "lr": 0.01, "weight_decay": 0.0},
        {"params": picked(params, "s"), "optimizer": AdamW, "lr": 0.1, **others},
    ]


def gradients(step):
    return {name: 0.3 * grad for name, grad in model(100 + step).items()}


def run(opt, *steps, **given):
    for step in steps:
        opt.step(grads=gradients(step), **given)


def everything(opt, params):
    saved = opt.state_dict()["state"]
    return [*params.values(), *(v for entries in saved.values() for v in entries.values())]


def same(some, others):
    for one, other in zip(some, others, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("clipped", [{}, {"max_norm": 0.5}, {"clip_value": 0.2}])
def test_the_numbers_are_those_of_the_optimizers_by_themselves(clipped):
    params, others = model(), model()
    opt = Mixed(groups_of(params))
    muon = Muon(
        [
            {"params": picked(others, "W"), "lr": 0.02},
            {"params": picked(others, "V"), "lr": 0.01, "weight_decay": 0.0},
        ]
    )
    sgd = optim.SGD(picked(others, "b"), lr=0.1, momentum=0.9)
    adamw = AdamW(picked(others, "s"), lr=0.1)
    for step in range(5):
        run(opt, step, **clipped)
        grads = gradients(step)
        norm = np.sqrt(sum(np.sum(g**2) for g in grads.values()))
        if "max_norm" in clipped:
            np.testing.assert_allclose(opt.grad_norm, norm)
            factor = min(1, 0.5 / (norm + 1e-6))
            assert factor < 1
            grads = {name: factor * g for name, g in grads.items()}
        if "clip_value" in clipped:
            grads = {name: np.clip(g, -0.2, 0.2) for name, g in grads.items()}
        for each, names in ((muon, "WV"), (sgd, "b"), (adamw, "s")):
            each.step(grads=picked(grads, *names))
    for name, array in params.items():
        np.testing.assert_allclose(array, others[name], rtol=1e-9 if clipped else 0)


@pytest.mark.parametrize("stop", [0, 1, 4])
def test_a_resumed_run_is_the_same_run(stop, tmp_path):
    path = tmp_path / "run.safetensors"
    whole = model()
    opt = Mixed(groups_of(whole))
    run(opt, *range(8))
    params = model()
    first = Mixed(groups_of(params))
    run(first, *range(stop))
    genesis.save_checkpoint(path, params=params, optimizer=first)
    others = model(7)
    resumed = Mixed(groups_of(others))
    run(resumed, 50)
    resumed.param_groups[0]["lr"] = 5.0
    genesis.load_checkpoint(path, params=others, optimizer=resumed)
    assert resumed.param_groups[0]["lr"] == 0.02
    run(resumed, *range(stop, 8))
    same(everything(resumed, others), everything(opt, whole))


def test_the_state_dict_has_torchs_layout_and_names_the_classes():
    params = model()
    opt = Mixed(groups_of(params))
    run(opt, 0, 1)
    saved = opt.state_dict()
    assert saved.keys() == {"state", "param_groups"}
    assert [group["optimizer"] for group in saved["param_groups"]] == [
        "Muon",
        "SGD",
        "Muon",
        "AdamW",
    ]
    assert [group["params"] for group in saved["param_groups"]] == [[0], [1], [2], [3]]
    assert {i: set(entries) for i, entries in saved["state"].items()} == {
        0: {"momentum_buffer"},
        1: {"momentum_buffer"},
        2: {"momentum_buffer"},
        3: {"step", "exp_avg", "exp_avg_sq"},
    }
    before = everything(opt, params)
    other = Mixed(groups_of(model())[:3])
    for bad, said in [
        (
            other.state_dict(),
            "different number of parameter groups: 3 instead of 4. Make the groups",
        ),
        (
            {**saved, "param_groups": [saved["param_groups"][i] for i in (1, 0, 2, 3)]},
            "group 0 of the loaded state dict was updated by 'SGD', but here by 'Muon'",
        ),
        ({**saved, "state": {9: {}}}, "has state for 9, which no group names"),
        ({**saved, "state": {0: {"step": 1}}}, "saved by another optimizer than Muon"),
    ]:
        with pytest.raises(ValueError, match=said):
            opt.load_state_dict(bad)
    same(everything(opt, params), before)


def test_copies_and_pickles_go_on():
    params = model()
    opt = Mixed(groups_of(params))
    run(opt, 0)
    for other in (copy.deepcopy(opt), pickle.loads(pickle.dumps(opt))):
        other.param_groups[3]["lr"] = 0.05
        run(other, 1, 2)
    opt.param_groups[3]["lr"] = 0.05
    run(opt, 1, 2)
    theirs = {g["param_names"][0]: g["params"][0].data for g in other.param_groups}
    same(everything(other, picked(theirs, *params)), everything(opt, params))


def test_one_scheduler_and_edits_of_groups_reach_all():
    params = model()
    opt = Mixed(groups_of(params))
    schedule = lr_scheduler.StepLR(opt, step_size=1, gamma=0.5)
    run(opt, 0)
    schedule.step()
    assert [group["lr"] for group in opt.param_groups] == [0.01, 0.05, 0.005, 0.05]
    with pytest.raises(ValueError, match="Invalid learning rate: -1"):
        opt.param_groups[1]["lr"] = -1
    before = {name: array.copy() for name, array in params.items()}
    frozen = opt.param_groups.pop(0)
    opt.step(grads={name: g for name, g in gradients(1).items() if name != "W"})
    assert [np.array_equal(params[name], before[name]) for name in "WVbs"] == [True] + [False] * 3
    opt.param_groups.append(frozen)
    run(opt, 2)
    assert repr(opt).startswith("Mixed(Muon(")
    opt.param_groups[0]["optimizer"] = "Lion"
    with pytest.raises(ValueError, match=r"the 'optimizer' of group 0 is 'Lion'.*add_param_group"):
        run(opt, 3)


def test_state_is_one_mapping_and_can_be_edited():
    params = model()
    opt = Mixed(groups_of(params))
    run(opt, 0)
    members = {group["param_names"][0]: group["params"][0] for group in opt.param_groups}
    assert len(opt.state) == 4
    assert set(opt.state) == set(members.values())
    assert members["s"] in opt.state
    opt.state[members["b"]]["momentum_buffer"][...] = 0
    run(opt, 1)
    np.testing.assert_array_equal(opt.state[members["b"]]["momentum_buffer"], gradients(1)["b"])
    kept = dict(opt.state)
    opt.state = {}
    assert len(opt.state) == 0
    opt.state = kept
    assert opt.state[members["s"]]["step"] == 2
    del opt.state[members["s"]]
    assert opt.state.get(members["s"]) is None
    with pytest.raises(ValueError, match="a parameter that is in no group"):
        opt.state = {genesis.Parameter(np.ones(1)): {}}
    with pytest.raises(TypeError, match="state must be a mapping"):
        opt.state = [1]


def test_groups_may_be_added_and_gradients_assigned_and_forgotten():
    params = model()
    opt = Mixed(groups_of(params)[:1])
    for group in groups_of(params)[1:]:
        opt.add_param_group(group)
    others = model()
    other = Mixed(groups_of(others))
    for step in range(3):
        run(opt, step)
        for group in other.param_groups:
            group["params"][0].grad = gradients(step)[group["param_names"][0]]
        other.step()
        other.zero_grad()
        assert all(group["params"][0].grad is None for group in other.param_groups)
    same(everything(opt, params), everything(other, others))
    assert opt.to("cpu") is opt


# ---- what fails, fails as a whole ----


@pytest.mark.parametrize("name", SHAPES)
def test_a_bad_gradient_anywhere_leaves_all_as_it_was(name):
    params = model()
    opt = Mixed(groups_of(params))
    run(opt, 0)
    before = everything(opt, params)
    bad = {**gradients(1), name: np.ones(7)}
    with pytest.raises(ValueError, match=r"shape.*\(counted among those of \w+\)"):
        opt.step(grads=bad)
    same(everything(opt, params), before)
    group = next(g for g in opt.param_groups if g["param_names"] == [name])
    good = dict.copy(group)
    dict.__setitem__(group, "lr", -1.0)
    with pytest.raises(ValueError, match="Invalid learning rate: -1"):
        run(opt, 1)
    dict.update(group, good)
    same(everything(opt, params), before)
    others = model()
    other = Mixed(groups_of(others))
    run(opt, 1, 2)
    run(other, 0, 1, 2)
    same(everything(opt, params), everything(other, others))


def test_a_first_step_that_fails_has_not_begun():
    params = model()
    opt = Mixed(groups_of(params))
    with pytest.raises(ValueError, match="shape"):
        opt.step(grads={**gradients(0), "s": np.ones(7)})
    assert len(opt.state) == 0
    others = model()
    other = Mixed(groups_of(others))
    run(opt, 0, 1)
    run(other, 0, 1)
    same(everything(opt, params), everything(other, others))


def test_memory_that_two_of_them_would_use_is_refused():
    params = model()
    opt = Mixed(groups_of(params))
    run(opt, 0)
    before = everything(opt, params)
    with pytest.raises(
        ValueError, match=r"the gradient of .*'b'\) shares memory with the array of .*'W'"
    ):
        opt.step(grads={**gradients(1), "b": params["W"][0]})
    b, w = opt.param_groups[1]["params"][0], opt.param_groups[0]["params"][0]
    kept = opt.state[b]["momentum_buffer"]
    opt.state[b]["momentum_buffer"] = w.data[1]
    with pytest.raises(ValueError, match="share memory, and a step would write both"):
        run(opt, 1)
    opt.state[b]["momentum_buffer"] = kept
    same(everything(opt, params), before)


def test_what_is_not_finite_skips_all_under_a_scaler():
    params = model()
    opt = Mixed(groups_of(params))
    run(opt, 0)
    before = everything(opt, params)
    scaler = genesis.amp.GradScaler(init_scale=4.0)
    scaler.scale(1.0)
    grads = {name: 4 * g for name, g in gradients(1).items()}
    assert scaler.step(opt, grads={**grads, "s": np.array(np.inf)}) is None
    assert opt.step_skipped
    scaler.update()
    same(everything(opt, params), before)
    opt.scaled_step(0.25, grads=grads)
    others = model()
    other = Mixed(groups_of(others))
    run(other, 0, 1)
    same(everything(opt, params), everything(other, others))


def test_no_gradient_at_all_is_said_once():
    opt = Mixed(groups_of(model()))
    with pytest.warns(UserWarning, match=r"Mixed.step: no parameter has a gradient"):
        opt.step()
    opt.step()


def test_averages_are_swapped_where_there_are_any():
    params = model()
    opt = Mixed(groups_of(params, ema_decay=0.5))
    with pytest.raises(RuntimeError, match="found no averages"):
        opt.swap_ema()
    run(opt, 0, 1)
    before = {name: array.copy() for name, array in params.items()}
    opt.swap_ema()
    assert [np.array_equal(params[name], before[name]) for name in "WVbs"] == [True] * 3 + [False]
    with pytest.raises(RuntimeError, match="shows its average"):
        run(opt, 2)
    opt.swap_ema()
    same(params.values(), before.values())


@pytest.mark.parametrize(
    ("groups", "error", "said"),
    [
        (np.ones(3), TypeError, "group 0 of Mixed must be a dict"),
        ({"params": np.ones(3)}, TypeError, "Mixed takes a list of groups"),
        ([], ValueError, "empty parameter list"),
        ([{"params": np.ones(3)}], ValueError, "group 0 of Mixed has no 'optimizer': give a class"),
        ([{"params": np.ones(3), "optimizer": 3}], TypeError, "'optimizer' of group 0 must be .*3"),
        ([{"params": np.ones(3), "optimizer": "Adamm"}], TypeError, "name of one of genesis.optim"),
        ([{"params": np.ones(3), "optimizer": optim.Optimizer}], TypeError, "must be an optimizer"),
        ([{"params": np.ones(3), "optimizer": "LBFGS"}], TypeError, "does not support LBFGS"),
        ([{"params": np.ones(3), "optimizer": Lookahead}], TypeError, "does not support Lookahead"),
        ([{"params": np.ones(3), "optimizer": Mixed}], TypeError, "does not support Mixed"),
        (
            [{"params": np.ones(3), "optimizer": optim.ScheduleFreeSGD}],
            TypeError,
            "does not support ScheduleFreeSGD",
        ),
        (
            [{"params": np.ones(3), "optimizer": "SGD"}],
            ValueError,
            r"group 0 of Mixed needs \['lr'\]",
        ),
        ([{"params": np.ones(3), "optimizer": Muon}], ValueError, "Muon only supports 2D"),
        (
            [{"params": np.ones(3), "optimizer": AdamW, "lr": -1}],
            ValueError,
            "Invalid learning rate: -1",
        ),
    ],
)
def test_impossible_groups_are_refused(groups, error, said):
    with pytest.raises(error, match=said):
        Mixed(groups)
    if isinstance(groups, list) and groups:
        opt = Mixed([{"params": [genesis.Parameter(np.ones((2, 2)))], "optimizer": AdamW}])
        with pytest.raises(error, match=said.replace("group 0", "group 1")):
            opt.add_param_group(groups[0])
        assert len(opt.param_groups) == 1
        opt.step(grads=[np.ones((2, 2))])


def test_parameters_belong_to_one_group_and_all_have_names_or_none():
    p = genesis.Parameter(np.ones((2, 2)))
    with pytest.raises(ValueError, match="appear in more than one parameter group"):
        Mixed([{"params": [p], "optimizer": Muon}, {"params": [p], "optimizer": AdamW}])
    with pytest.raises(ValueError, match="share memory"):
        Mixed(
            [
                {"params": [p], "optimizer": Muon},
                {"params": [genesis.Parameter(p.data[0])], "optimizer": AdamW},
            ]
        )
    with pytest.raises(ValueError, match=r"with/without names, but group 1 of Mixed is with"):
        Mixed(
            [{"params": [p], "optimizer": Muon}, {"params": {"b": np.ones(2)}, "optimizer": AdamW}]
        )

    def descent(param, grad, *, lr=0.1):
        return param - lr * grad

    kinds = [genesis.rule(descent), genesis.rule(descent)]
    with pytest.raises(ValueError, match="two classes of Mixed have the name 'descent'"):
        Mixed([{"params": [np.ones(2)], "optimizer": kind} for kind in kinds])


@pytest.mark.parametrize("wrap", [lambda o: Lookahead(o, k=2), SAM], ids=["Lookahead", "SAM"])
def test_it_can_be_wrapped(wrap, tmp_path):
    def stepped(opt, *steps):
        for step in steps:
            opt.step(lambda step=step: (0.0, gradients(step)))

    whole = model()
    opt = wrap(Mixed(groups_of(whole)))
    stepped(opt, 0, 1, 2, 3)
    params = model()
    first = wrap(Mixed(groups_of(params)))
    stepped(first, 0, 1, 2)
    path = tmp_path / "run.safetensors"
    genesis.save_checkpoint(path, params=params, optimizer=first)
    others = model(7)
    resumed = wrap(Mixed(groups_of(others)))
    genesis.load_checkpoint(path, params=others, optimizer=resumed)
    stepped(resumed, 3)
    same(everything(resumed, others), everything(opt, whole))


# ---- Muon with AdamW ----


def transformer():
    rng = np.random.default_rng(0)
    return {
        "tok_embed": rng.standard_normal((9, 4)),
        "blocks": [
            {"qkv": {"W": rng.standard_normal((4, 12)), "b": np.zeros(12)}, "ln": np.ones(4)}
        ],
        "conv": rng.standard_normal((2, 3, 4)),
        "header": rng.standard_normal((4, 4)),
        "lm_head": {"W": rng.standard_normal((4, 9))},
    }


def test_hidden_matrices_are_for_muon_and_the_rest_for_adamw():
    opt = MuonWithAdamW(transformer(), lr=0.01, weight_decay=0.2, adamw_lr=0.02, betas=(0.8, 0.9))
    shown = [
        (g["optimizer"], g["lr"], g["weight_decay"], sorted(g["param_names"]))
        for g in opt.param_groups
    ]
    assert shown == [
        ("Muon", 0.01, 0.2, ["blocks.0.qkv.W", "header"]),
        ("AdamW", 0.02, 0.2, ["conv", "lm_head.W", "tok_embed"]),
        ("AdamW", 0.02, 0.0, ["blocks.0.ln", "blocks.0.qkv.b"]),
    ]
    assert opt.param_groups[0]["adjust_lr_fn"] == "match_rms_adamw"
    assert opt.param_groups[1]["betas"] == (0.8, 0.9)
    again = MuonWithAdamW(transformer(), not_hidden=["qkv"])
    assert sorted(again.param_groups[0]["param_names"]) == ["header", "lm_head.W", "tok_embed"]
    only = MuonWithAdamW({"b": np.ones(2)})
    assert [group["optimizer"] for group in only.param_groups] == ["AdamW"]


def test_muon_with_adamw_trains_and_goes_on():
    params = transformer()
    opt = MuonWithAdamW(params, lr=0.01)
    grads = transformer()
    for _ in range(3):
        opt.step(grads=grads, max_norm=1.0)
    saved, kept = copy.deepcopy(opt.state_dict()), copy.deepcopy(params)
    opt.step(grads=grads)
    other = MuonWithAdamW(kept)
    other.load_state_dict(saved)
    other.step(grads=grads)
    for (_, one), (_, two) in zip(
        genesis.tree.flatten_with_path(params), genesis.tree.flatten_with_path(kept), strict=True
    ):
        np.testing.assert_array_equal(one, two)


def test_muon_with_adamw_needs_names():
    with pytest.raises(TypeError, match="named_parameters must be a tree of arrays"):
        MuonWithAdamW([genesis.Parameter(np.ones((2, 2)))])
    with pytest.raises(TypeError, match=r"not_hidden must hold strings.*\('embed',\)"):
        MuonWithAdamW({"W": np.ones((2, 2))}, not_hidden="embed")
    with pytest.raises(ValueError, match="Invalid learning rate: -1"):
        MuonWithAdamW({"W": np.ones((2, 2))}, lr=-1)
