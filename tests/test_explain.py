"""`explain`: the plan in words and numbers, found without computing anything."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gramjd
from gramjd import Explanation, GradDrop, errors, explain, gramian
from gramjd.engine import _torch
from gramjd.errors import DenseRowsWarning, InputError
from gramjd.kernels import convolution, current_products, gathered, outer, ragged, use_backend
from gramjd.legend import ROUTES
from gramjd.profiling.memory import peak_bytes
from tests.kernels.onednn import needs_onednn
from tests.oracle import oracle_gramian
from tests.small import F32, F64, batch_norm_net, cnn, encoder, gpt, mlp, squares

GOLDEN = """\
parameter  shape   operation       rows                 route    operations  bytes
----------------------------------------------------------------------------------
0.weight   [6, 5]  AddmmBackward0  batch axis 4, 1 row  product  352         96 B
0.bias     [6]     AddmmBackward0  4 rows               rows     192         96 B
2.weight   [4, 6]  AddmmBackward0  batch axis 4, 1 row  product  320         64 B
2.bias     [4]     AddmmBackward0  4 rows               rows     128         64 B
----------------------------------------------------------------------------------
total      m = 4                                                 992         320 B
rows:       "batch axis 4": losses apart along an axis of 4, all in one tensor in the shape of the activation;
            "4 rows": a gradient per loss, one after the other
route:      product: two small products, one of inputs and one of output gradients; rows: the gradients
            themselves, some at a time, and their inner products
operations: floating-point operations of these products
bytes:      what is kept of the walk until the parameter's last use
way: walk: asked for
no dense rows: no layer mixes losses that were apart
stacked rows: 0 B at most, beyond plain training
products: {products}"""


def contrastive(model: nn.Module, x: Tensor) -> Tensor:
    """Each sample is compared with all others of the batch."""
    z = F.normalize(model(x), dim=1)
    return F.cross_entropy(z @ z.T, torch.arange(len(x)), reduction="none")


def named(plan: Explanation) -> dict[str, tuple[str, str, int]]:
    return {use.parameter: (use.rows, use.route, use.operations) for use in plan.uses}


def test_table_of_a_small_mlp() -> None:
    model = mlp(dtype=F32)
    assert str(explain(squares(model, dtype=F32), dict(model.named_parameters()))) == GOLDEN.format(
        products=current_products()
    )


def test_the_legend_has_every_word_of_the_table() -> None:
    """Also those of ids, of losses that share their batch, of parts of a parameter and of slices that data assign."""
    model = batch_norm_net()
    told = " ".join(str(explain(squares(model), dict(model.named_parameters()))).split())
    assert "shared: the gradients by way of the inputs" in told
    assert "pairwise:" not in told  # which is not in the table
    words = {"product", "pairwise", "rows", "shared", "unique", "pairs", "own slices"}
    assert set(ROUTES) == words
    assert {*outer.ROUTES, *gathered.ESTIMATES, *ragged.ESTIMATES} <= words


def test_names_are_asked_for_where_there_are_none() -> None:
    model = mlp()
    assert "pass inputs=model" in str(explain(squares(model)))
    assert "pass inputs=model" not in str(explain(squares(model), model))


def test_order_of_the_mapping_is_the_order_of_the_table() -> None:
    model = mlp()
    inputs = dict(reversed(list(model.named_parameters())))
    assert [use.parameter for use in explain(squares(model), inputs).uses] == list(inputs)


def test_names_from_a_mapping_and_numbers_without() -> None:
    model = mlp()
    losses = squares(model)
    chosen = {"head": model[2].weight, "tail": model[0].bias}
    assert [use.parameter for use in explain(losses, chosen).uses] == ["head", "tail"]
    assert [use.parameter for use in explain(losses, list(chosen.values())).uses] == ["input 0", "input 1"]


def test_every_use_of_a_reused_parameter_has_a_line() -> None:
    layer = nn.Linear(5, 5)
    losses = layer(layer(layer(torch.randn(3, 5)))).square().sum(1)
    uses = explain(losses, {"w": layer.weight}).uses
    assert [use.parameter for use in uses] == ["w"] * 3


def test_plain_data_is_json() -> None:
    model = batch_norm_net()
    plan = explain(squares(model), dict(model.named_parameters()))
    data = json.loads(json.dumps(plan.to_dict()))
    assert data["losses"] == 4
    assert data["operations"] == sum(use["operations"] for use in data["uses"]) == plan.operations
    assert data["bytes"] == sum(use["bytes"] for use in data["uses"]) == plan.bytes
    assert [use["parameter"] for use in data["uses"]] == [use.parameter for use in plan.uses]
    assert [loss["operation"] for loss in data["dense"]] == ["NativeBatchNormBackward0"]
    assert data["row_bytes"] == plan.row_bytes


MODELS: dict[str, Callable[[], Tensor]] = {
    "mlp": lambda: squares(mlp()),
    "cnn": lambda: cnn()(torch.randn(4, 2, 6, 6, dtype=F64)).square().sum(1),
    "transformer": lambda: encoder()(torch.randn(4, 3, 8, dtype=F64)).square().sum((1, 2)),
    "language model": lambda: gpt(20, 6, 2)[1](4),
    "batch norm in evaluation": lambda: squares(batch_norm_net().eval()),
}


@pytest.mark.parametrize("name", MODELS)
def test_nothing_dense_where_samples_stay_apart(name: str) -> None:
    plan = explain(MODELS[name]())
    assert plan.dense == ()
    assert str(plan).splitlines()[-3] == "no dense rows: no layer mixes losses that were apart"
    assert all(
        use.rows.startswith("batch axis 4") for use in plan.uses if "Addmm" in use.operation and use.route != "rows"
    )


@pytest.mark.parametrize("name", MODELS)
def test_planning_agrees_with_walking(name: str) -> None:
    """No warning of dense rows was planned, and none comes (warnings are errors here)."""
    losses = MODELS[name]()
    assert explain(losses).dense == ()
    G = gramian(losses)
    assert (G.diagonal() > 0).all()


def test_batch_norm_in_training_is_reported() -> None:
    plan = explain(squares(batch_norm_net()))
    assert [(loss.operation, loss.reason) for loss in plan.dense] == [
        ("NativeBatchNormBackward0", "normalises over the batch")
    ]
    assert plan.row_bytes >= 4 * 4 * 6 * 8
    assert "dense rows from NativeBatchNormBackward0 on: it normalises over the batch; GroupNorm" in str(plan)


def test_contrastive_loss_is_reported() -> None:
    model = mlp()
    plan = explain(contrastive(model, torch.randn(4, 5, dtype=F64)), dict(model.named_parameters()))
    assert len(plan.dense) == 1
    assert plan.dense[0].operation in str(plan)
    assert named(plan)["0.weight"][0] == "4 rows"


def test_numbers_of_linear_layers() -> None:
    """2 b^2 i + 2 R^2 o for a product; 2 R^2 d for rows."""
    model = mlp(5, 7, 3)
    plan = named(explain(squares(model, b=6), dict(model.named_parameters())))
    assert plan["0.weight"] == ("batch axis 6, 1 row", "product", 2 * 6 * 6 * 5 + 2 * 6 * 6 * 7)
    assert plan["2.weight"] == ("batch axis 6, 1 row", "product", 2 * 6 * 6 * 7 + 2 * 6 * 6 * 3)
    assert plan["0.bias"] == ("6 rows", "rows", 2 * 6 * 6 * 7)


@pytest.mark.parametrize(("T", "expected"), [(2, "pairwise"), (60, "rows")])
def test_numbers_with_positions(T: int, expected: str) -> None:
    layer = nn.Linear(160, 240)
    losses = layer(torch.randn(8, T, 160)).square().sum((1, 2))
    rows, route, operations = named(explain(losses, {"w": layer.weight}))["w"]
    sizes = outer.Extent(g=1, K=1, b=8, T=T, i=160, o=240)
    assert (rows, route) == ("batch axis 8, 1 row", expected)
    assert operations == 2 * outer.operations(route, sizes)
    assert outer.operations("rows", sizes) == 8 * T * 160 * 240 + 8 * 8 * 160 * 240


def test_numbers_of_tasks() -> None:
    """Two rows over one batch: 2 T^2 i + 2 R T^2 o + 2 R^2 T o, or rows at 2 R T i o + 2 R^2 i o."""
    layer = nn.Linear(5, 4)
    y = layer(torch.randn(3, 5))
    losses = torch.stack([y.sin().sum(), y.cos().sum()])
    rows, route, operations = named(explain(losses, {"w": layer.weight}))["w"]
    assert rows == "2 rows"
    assert (
        operations
        == {
            "shared": 2 * 9 * 5 + 2 * 2 * 9 * 4 + 2 * 4 * 3 * 4,
            "rows": 2 * 2 * 3 * 20 + 2 * 4 * 20,
        }[route]
    )


def test_numbers_of_a_convolution() -> None:
    """2 R P n + 2 R^2 n for n weights and P output pixels."""
    layer = nn.Conv2d(2, 4, 3)
    losses = layer(torch.randn(5, 2, 6, 7)).square().sum((1, 2, 3))
    assert named(explain(losses, {"w": layer.weight}))["w"] == (
        "batch axis 5, 1 row",
        "rows",
        2 * 5 * 72 * (4 * 5) + 2 * 25 * 72,
    )


def test_numbers_of_an_embedding() -> None:
    table = nn.Embedding(10, 3)
    ids = torch.randint(10, (4, 600))  # so many that one route is best on every machine
    losses = table(ids).square().sum((1, 2))
    rows, route, operations = named(explain(losses, {"table": table.weight}))["table"]
    assert (rows, route) == ("batch axis 4, 1 row", "unique")
    assert operations == 2 * 4 * 4 * len(ids.unique()) * 3


def test_bytes_are_those_of_the_cotangents() -> None:
    model = mlp(5, 7, 3, dtype=F32)
    uses = explain(squares(model, b=6, dtype=F32), dict(model.named_parameters())).uses
    assert {use.parameter: use.bytes for use in uses if "weight" in use.parameter} == {
        "0.weight": 6 * 7 * 4,
        "2.weight": 6 * 3 * 4,
    }


@pytest.mark.parametrize("mixes", [False, True], ids=["per sample", "batch norm"])
def test_nothing_is_computed(mixes: bool) -> None:
    middle = nn.BatchNorm1d(256) if mixes else nn.Tanh()
    model = nn.Sequential(nn.Linear(64, 256), middle, nn.Linear(256, 8))
    losses = model(torch.randn(64, 64)).square().sum(1)
    assert peak_bytes(lambda: explain(losses)) < 64 * 64 * 4
    assert all(p.grad is None for p in model.parameters())
    losses.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@needs_onednn
def test_the_products_and_why() -> None:
    with use_backend("onednn"):
        plan = explain(squares(mlp()))
    assert str(plan).splitlines()[-1] == 'products: oneDNN (backend "onednn")'
    assert plan.to_dict()["products"] == 'oneDNN (backend "onednn")'
    with use_backend("torch"):
        last = str(explain(squares(mlp()))).splitlines()[-1]
    assert last.startswith("products: PyTorch's own")
    assert last.endswith('(backend "torch")')


def linear(dtype: torch.dtype) -> Tensor:
    """Float64's constants choose pairs of positions here, float32's choose rows."""
    layer = nn.Linear(64, 64, bias=False, dtype=dtype)
    return layer(torch.randn(8, 4, 64, dtype=dtype)).square().sum((1, 2))


def embedding(dtype: torch.dtype) -> Tensor:
    return nn.Embedding(500, 8, dtype=dtype)(torch.randint(500, (6, 3))).square().sum((1, 2))


def pointwise_convolution(dtype: torch.dtype) -> Tensor:
    layer = nn.Conv2d(64, 64, 1, bias=False, dtype=dtype)
    return layer(torch.randn(8, 64, 2, 2, dtype=dtype)).square().sum((1, 2, 3))


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("make", [linear, embedding, pointwise_convolution])
def test_the_route_told_is_the_route_taken(
    make: Callable[[torch.dtype], Tensor], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = make(dtype)
    told = explain(losses).uses[0].route
    taken: list[str] = []
    for module in (outer, convolution, gathered):
        original = module.route
        monkeypatch.setattr(module, "route", lambda *a, of=original: taken.append(of(*a)) or taken[-1])
    gramian(losses)
    assert taken[-1] == told


def test_inputs_that_are_not_reached() -> None:
    with pytest.raises(InputError, match="not reached by any loss"):
        explain(squares(mlp()), {"stranger": torch.ones(2, requires_grad=True)})


# -- what is said is what is done -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call",
    [
        gramian,
        gramjd.gradient_norms,
        lambda losses: gramian(losses, other=losses),
        gramjd.gram_backward,
        lambda losses: gramjd.gram_backward(losses, GradDrop()),
        lambda losses: gramjd.gram_backward(losses, update="reuse"),
    ],
)
def test_warnings_point_at_the_caller(call: Callable[[Tensor], object]) -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    with pytest.warns(DenseRowsWarning, match="NativeBatchNorm") as caught:
        call(net(torch.randn(5, 3)).square().sum(1))
    assert {w.filename for w in caught} == {__file__}


@pytest.mark.parametrize(("action", "count"), [("default", 1), ("module", 1), ("always", 3)])
def test_a_warning_is_given_once_per_line(action: str, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where something leaves `catch_warnings` in between, by which Python forgets what it has shown."""
    monkeypatch.setattr(errors, "_given", set())
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter(action)  # type: ignore[arg-type]
        for _ in range(3):
            gramian(net(torch.randn(5, 3)).square().sum(1))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
    assert [w.category for w in caught] == [DenseRowsWarning] * count


def test_a_warning_that_was_ignored_is_given_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(errors, "_given", set())
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    with warnings.catch_warnings(record=True) as caught:
        for action in ("ignore", "default"):
            warnings.simplefilter(action)  # type: ignore[arg-type]
            gramian(net(torch.randn(5, 3)).square().sum(1))
    assert [w.category for w in caught] == [DenseRowsWarning]


def test_a_warning_that_is_an_error_is_raised_each_time() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    for _ in range(2):
        with pytest.raises(DenseRowsWarning, match=r"GroupNorm, LayerNorm or BatchNorm in eval\(\) keep samples apart"):
            gramian(net(torch.randn(5, 3)).square().sum(1))


def test_a_value_that_is_not_saved_makes_rows_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a release of PyTorch has renamed what a node saves."""
    layer = nn.Linear(3, 2, dtype=torch.float64)
    losses = layer(torch.randn(5, 3, dtype=torch.float64)).square().sum(1)
    expected = oracle_gramian(losses)
    has = _torch.has_saved
    monkeypatch.setattr(_torch, "has_saved", lambda node, name: name != "mat1" and has(node, name))
    with pytest.warns(DenseRowsWarning, match="AddmmBackward0 saves no mat1 in this release of PyTorch"):
        torch.testing.assert_close(gramian(losses), expected)
