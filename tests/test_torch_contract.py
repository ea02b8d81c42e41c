"""The private interfaces of PyTorch that the engine relies on, each by name and by what it does."""

from __future__ import annotations

import ast
import re
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, allow_mutation_on_saved_tensors, saved_tensors_hooks
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts
from torch.utils.hooks import RemovableHandle

import gramjd.engine
from gramjd.compiled import _compilers
from gramjd.engine import _fsdp, _torch
from gramjd.engine.graph import LEAF

LIBRARY = Path(gramjd.engine.__file__).parent.parent
DOORS = ("_torch.py", "_compilers.py", "_fsdp.py")
# Of the standard library.
STANDARD = {"_asdict", "_replace", "_fields", "_getframe", "_exit"}


class Twice(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, a: Tensor, k: int) -> Tensor:
        return k * a

    @staticmethod
    def backward(ctx: object, g: Tensor) -> tuple[Tensor, None]:
        return 2 * g, None


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's profiler writes a line at each start unless told otherwise before its first use in a process."""
    monkeypatch.setenv("KINETO_LOG_LEVEL", "99")


@pytest.fixture
def w() -> Tensor:
    return torch.tensor([1.0, 2.0], requires_grad=True)


def test_run_backward(w: Tensor) -> None:
    y = w.exp()
    edge = (GradientEdge(y.grad_fn, 0),)
    (found,) = _torch.run_backward(edge, (torch.ones(2),), edge, True)
    torch.testing.assert_close(found, torch.ones(2))
    _torch.run_backward((y,), (torch.ones(2),), (), True, accumulate=True)
    torch.testing.assert_close(w.grad, y.detach())


def test_undefined_gradients(w: Tensor) -> None:
    end = _torch.undefined_gradients()(w.exp())
    end.sum().backward()
    assert w.grad is None


def test_outputs_and_order(w: Tensor) -> None:
    first, second = w.exp(), w.view(1, 2).unbind(1)
    (output,) = _torch.outputs_of(first.grad_fn)
    assert (tuple(output.shape), output.dtype, output.device.type) == ((2,), torch.float32, "cpu")
    assert not output.is_nested_tensor
    assert len(_torch.outputs_of(second[0].grad_fn)) == 2
    assert _torch.sequence_number(first.grad_fn) < _torch.sequence_number(second[0].grad_fn)


def test_custom_functions(w: Tensor) -> None:
    node = Twice.apply(w, 2).grad_fn
    assert _torch.is_python(node)
    assert not _torch.is_python(w.exp().grad_fn)
    assert _torch.run_python(node, [torch.ones(2)]) is not None
    assert tuple(_torch.needs_gradient(node)) == (True, False)


def test_saved_values(w: Tensor) -> None:
    node = w.exp().grad_fn
    assert _torch.has_saved(node, "result")
    assert not _torch.has_saved(node, "weight")
    torch.testing.assert_close(_torch.saved(node, "result"), w.exp())
    assert _torch.saved_names(type(node)) == ("result",)
    with pytest.raises(AttributeError):
        _torch.saved(node, "weight")


def test_hooks_of_saved_tensors(w: Tensor) -> None:
    assert not _torch.unpacks_by_hook(w.exp().grad_fn)
    with saved_tensors_hooks(lambda t: t, lambda t: t):
        assert _torch.unpacks_by_hook(w.exp().grad_fn) == _torch.TELLS_HOOKS


def test_selective_checkpoints_and_edits(w: Tensor) -> None:
    def run(context: Any) -> Tensor:
        return checkpoint(torch.exp, w, use_reentrant=False, **context)

    chosen = partial(create_selective_checkpoint_contexts, [torch.ops.aten.exp.default])
    assert not _torch.in_selective_checkpoint(run({}).grad_fn)
    assert _torch.in_selective_checkpoint(run({"context_fn": chosen}).grad_fn) == _torch.TELLS_HOOKS
    assert not _torch.mutation_is_watched()
    with allow_mutation_on_saved_tensors():
        assert _torch.mutation_is_watched()


def test_hooks(w: Tensor) -> None:
    before = _torch.handles_made()
    assert not _torch.leaf_hooks(w)
    w.register_hook(lambda g: g)
    assert _torch.handles_made() == before + 1 == RemovableHandle.next_id
    assert len(_torch.leaf_hooks(w)) == 1
    assert list(_torch.accumulated_hooks(w)) == []
    hook = lambda leaf: None  # noqa: E731
    w.register_post_accumulate_grad_hook(hook)
    assert list(_torch.accumulated_hooks(w)) == [hook]


def test_hooks_of_nodes(w: Tensor) -> None:
    node, foreign = w.exp().grad_fn, _torch.foreign_handles()
    assert not _torch.has_own_hooks(node)
    assert _torch.foreign_handles() == foreign
    node.register_hook(lambda *_: None)
    assert _torch.has_own_hooks(node)


def test_hooks_of_outputs(w: Tensor) -> None:
    first, second = w.exp().unbind()
    for nr in (0, 1):
        seen: list[Tensor] = []
        registry = {0: seen.append}
        _torch.add_output_hooks(first.grad_fn, nr, registry)
        (first + 2 * second).backward(retain_graph=True)
        assert [float(g) for g in seen] == [1.0 + nr]
        registry.clear()


def test_tensors_and_the_process(w: Tensor) -> None:
    assert _torch.is_zero_tensor(torch._efficientzerotensor(2))
    assert not _torch.is_zero_tensor(w)
    assert _torch.storage_of(w) == _torch.storage_of(w.view(1, 2)) != _torch.storage_of(w.clone())
    assert not _torch.profiler_runs()
    with torch.autograd.profiler.profile():
        assert _torch.profiler_runs()


def test_products_and_modes() -> None:
    if _torch.onednn_linear is not None:
        a, b = torch.randn(8, 3), torch.randn(4, 3)
        torch.testing.assert_close(_torch.product_by_onednn(a, b), a @ b.T)
    seen: list[object] = []

    class Note(_torch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(_torch.operation_of(func))
            return func(*args, **(kwargs or {}))

    with Note():
        torch.ones(2) + 1
        with _torch.untraced():
            torch.ones(2).sin()
    assert torch.ops.aten.add in seen
    assert torch.ops.aten.sin not in seen


def test_recordings() -> None:
    with torch.autograd.profiler.profile(profile_memory=True) as recording:
        torch.ones(64)

    def kinds(events: object) -> set[object]:
        return {e.tag for e in events} | {tag for e in events for tag in kinds(e.children)}

    assert _torch.EventType.Allocation in kinds(_torch.recorded_events(recording.kineto_results))
    assert callable(torch.cuda.memory._record_memory_history)
    assert callable(torch.cuda.memory._dump_snapshot)


def test_references_and_trees(w: Tensor) -> None:
    tensor = torch.ones(3)
    reference = _torch.StorageWeakRef(tensor.untyped_storage())
    assert not reference.expired()
    del tensor
    assert reference.expired()
    assert [id(leaf) for leaf in _torch.tree_leaves([w, {"a": (w, None)}])] == [id(w), id(w), id(None)]


def test_tensors_without_numbers(w: Tensor) -> None:
    with _torch.fake_tensors() as paper:
        fake, again = paper.from_tensor(w), paper.from_tensor(w)
        made = torch.ones(3, 5) @ torch.ones(5, 2)
    assert fake is again
    assert fake.shape == w.shape
    assert _torch.storage_of(fake.detach()) == _torch.storage_of(fake)
    assert (_torch.is_fake(fake), _torch.is_fake(made), _torch.is_fake(w)) == (True, True, False)
    assert made.untyped_storage().nbytes() == 4 * 3 * 2
    assert _torch.tree_map_only(Tensor, torch.Tensor.dim, ([w, 7], {"a": w})) == ([w.dim(), 7], {"a": w.dim()})


def test_leaves_are_what_they_are_called() -> None:
    layer = nn.Linear(2, 1)
    node = torch.autograd.graph.get_gradient_edge(layer.weight).node
    assert node.name() == LEAF
    assert node.variable is layer.weight


def test_a_graph_is_made_on_tensors_without_numbers() -> None:
    seen = []

    def function(a: Tensor) -> list[Tensor]:
        seen.append(_torch.is_fake(a))
        return [a.add_(1) * held, torch.ops.aten.lift_fresh_copy.default(held)]

    held = torch.tensor([2.0, 3.0])
    graph = _compilers.make_graph(function, [torch.ones(2)])
    assert seen == [True]
    names = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
    assert names == ["aten.add_.Tensor", "aten.mul.Tensor", "aten.lift_fresh_copy.default"]
    given = torch.ones(2)
    torch.testing.assert_close(graph(given), [torch.tensor([4.0, 6.0]), held])
    torch.testing.assert_close(given, torch.full((2,), 2.0))
    with pytest.raises(RuntimeError):
        _compilers.make_graph(lambda a: [a.cpu().numpy()], [torch.ones(2)])


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_compiled_graph() -> None:
    graph = _compilers.make_graph(lambda a, b: [a.sub_(b * 2), (a @ b).sum()], [torch.ones(3), torch.ones(3)])
    run = _compilers.compiled_graph(graph, [torch.ones(3), torch.ones(3)], {})
    a, b = torch.arange(3.0), torch.ones(3)
    with torch.no_grad():
        _, product = run(a, b)
    torch.testing.assert_close(a, torch.arange(3.0) - 2)
    torch.testing.assert_close(product, a @ b)


def test_compiling() -> None:
    with _compilers.compiling():
        assert torch.compiler.is_compiling()
    assert not torch.compiler.is_compiling()


def test_what_optimizers_and_schedulers_tell(w: Tensor) -> None:
    optimizer = torch.optim.SGD([w], lr=0.1)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    assert not _compilers.optimizer_hooks(optimizer)
    _compilers.mark_stepped(optimizer)
    assert _compilers.optimizer_marks(optimizer)
    schedule.step()  # warns, which is an error here, unless the optimizer has stepped
    handle = optimizer.register_step_post_hook(lambda *_: None)
    assert _compilers.optimizer_hooks(optimizer)
    handle.remove()


def test_homes_and_shape_of_a_module() -> None:
    module = nn.BatchNorm1d(2)
    parameters, buffers = _compilers.homes_of(module)
    assert set(parameters) == {"weight", "bias"}
    assert set(buffers) == {"running_mean", "running_var", "num_batches_tracked"}
    before = _compilers.shape_of(module)
    handle = module.register_forward_hook(lambda *_: None)
    assert _compilers.shape_of(module) != before
    handle.remove()
    module.inner = nn.Linear(1, 1)
    assert _compilers.shape_of(module) != before


def test_schemas_and_versions() -> None:
    schema = _torch.schema_of(torch.ops.aten.add_.Tensor)
    assert [a.alias_info is not None and a.alias_info.is_write for a in schema.arguments][:2] == [True, False]
    assert _torch.schema_of(torch.add) is None
    t = torch.ones(2)
    version = _torch.version_of(t)
    t.add_(1)
    assert _torch.version_of(t) > version
    assert _compilers.unsafe_view is torch.ops.aten._unsafe_view.default


def own_names(files: list[ast.Module]) -> set[str]:
    """Names with an underscore that this package defines: functions, fields, attributes that it sets."""
    found: set[str] = set()
    for node in (n for tree in files for n in ast.walk(tree)):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            found.add(node.attr)
        elif isinstance(node, ast.alias):
            found.add(node.asname or node.name)
    return found


def test_operations_that_draw_and_write() -> None:
    aten, x = torch.ops.aten, torch.ones(2, 3)
    assert _compilers.draws(aten.rand.default, [[2]], {})
    assert not _compilers.draws(aten.add.Tensor, [x, x], {})
    attention = aten._scaled_dot_product_flash_attention_for_cpu.default
    assert not _compilers.draws(attention, [x, x, x], {})
    assert _compilers.draws(attention, [x, x, x, 0.5], {})
    assert _torch.operation_of(attention) is _torch.attention_on_cpu
    assert _torch.attention_on_cpu_backward.default
    assert [w for _, w in _compilers.arguments_of(aten.add_.Tensor, [x, x], {})][:2] == [True, False]
    norm = [x, None, None, x[0], x[1], True, 0.1, 1e-5]
    written = [given for given, writes in _compilers.arguments_of(aten.native_batch_norm.default, norm, {}) if writes]
    assert len(written) == 2
    norm[5] = False
    assert not any(writes for _, writes in _compilers.arguments_of(aten.native_batch_norm.default, norm, {}))
    with _torch.fake_tensors():
        fake = torch.ones(2)
    assert _compilers.fake_mode_of([3, fake]) is fake.fake_mode
    with _compilers.fake_mode_of([3]):
        assert _torch.is_fake(torch.ones(2))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_a_compiled_backward_pass_saved_stays(w: Tensor) -> None:
    """Asked for by two passes, within a pass that keeps its graph."""
    run: list[Any] = []

    def note(graph: Any, examples: Any) -> Any:
        run.append(_compilers.compiled_with_backward(graph, examples, "aot_eager"))
        return run[-1]

    torch._dynamo.reset()
    out = torch.compile(lambda a: (a.exp().sin() * a).sum(), backend=note)(w)

    class Inside(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, a: Tensor) -> Tensor:
            return a.clone()

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Tensor:
            (found,) = _compilers.gradients_of_compiled([out], [w], [g[0]])
            assert found is not None
            return found

    leaf = w.detach().clone().requires_grad_()
    around = Inside.apply(leaf)
    first, second = (torch.autograd.grad(around, leaf, torch.ones(2), retain_graph=keep)[0] for keep in (True, False))
    expected = torch.cos(w.exp()) * w.exp() * w + torch.sin(w.exp())
    torch.testing.assert_close(first, expected.detach())
    assert torch.equal(first, second)
    assert len(run) == 1


def test_tensors_that_are_spread(tmp_path: Path) -> None:
    assert not _torch.is_spread(torch.ones(2))
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'meeting'}", rank=0, world_size=1)
    try:
        from torch.distributed.tensor import distribute_tensor, init_device_mesh

        assert _torch.is_spread(distribute_tensor(torch.ones(2), init_device_mesh("cpu", (1,))))
        whole = _torch.replicated(torch.ones(2), init_device_mesh("cpu", (1,)))
        assert _torch.is_spread(whole)
        assert not _torch.is_spread(whole.full_tensor())
    finally:
        torch.distributed.destroy_process_group()


def test_sharded_modules(tmp_path: Path) -> None:
    """A group of one process shards as larger ones do."""
    assert not _fsdp.loaded()
    assert _fsdp.states() == []
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'meeting'}", rank=0, world_size=1)
    try:
        from torch.distributed.fsdp import fully_shard

        layer, first = nn.Linear(2, 3), nn.Linear(2, 2)
        fully_shard(layer, reshard_after_forward=True)
        assert _fsdp.loaded()
        (state,) = _fsdp.states()
        (group,) = _fsdp.groups(state)
        assert _fsdp.parameters(group) == []  # nothing was gathered yet
        out = layer(first(torch.ones(1, 2)))
        pairs = _fsdp.parameters(group)
        assert all(shard is p for (shard, _), p in zip(pairs, layer.parameters(), strict=True))
        (_, weight), _ = pairs
        assert weight.shape == (3, 2)
        assert not _fsdp.is_gathered(group)
        assert weight.untyped_storage().nbytes() == 0
        names: dict[str, Any] = {}
        stack = [out.grad_fn]
        while stack:
            node = stack.pop()
            names[node.name()] = node
            stack += [child for child, _ in node.next_functions if child is not None]
        assert names[_fsdp.LEAVING].param_group is group
        _fsdp.gather(group)
        assert _fsdp.is_gathered(group)
        torch.testing.assert_close(weight.detach(), pairs[0][0].full_tensor().detach())
        _fsdp.free(group)
        assert weight.untyped_storage().nbytes() == 0
        assert _fsdp.ranks(group) == (1, [0])
        assert _fsdp.divisor(group) == 1
        layer.set_gradient_divide_factor(3.0)
        assert _fsdp.divisor(group) == 3
        _frames_of_hooks(out, state, group)
    finally:
        torch.distributed.destroy_process_group()


def _frames_of_hooks(out: Tensor, state: Any, group: Any) -> None:
    """The hook on the output is seen in its frame; while it is quiet it gathers nothing."""
    seen = []

    def watch(frame: Any, event: str, argument: Any) -> None:
        found = _fsdp.state_of_hook(frame)
        if found is not None:
            seen.append((found, _fsdp.is_own(frame)))

    before = group._training_state
    place = (GradientEdge(out.grad_fn, 0),)
    with _fsdp.quiet([state]):
        sys.settrace(watch)
        try:
            _torch.run_backward(place, (torch.ones(1, 3),), place, True)
        finally:
            sys.settrace(None)
        assert not _fsdp.is_gathered(group)
    assert (state, True) in seen
    assert _fsdp.state_of_hook(sys._getframe()) is None
    assert group._training_state == before


def test_every_interface_is_tried() -> None:
    """All names of the doors stand in this file, but for those that are types alone."""
    tried = Path(__file__).read_text()
    for door in (_torch, _compilers, _fsdp):
        tree = ast.parse(Path(str(door.__file__)).read_text())
        names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        missing = {name for name in names if not name.startswith("_") and f".{name}(" not in tried}
        assert missing <= {"uncompiled", "dump_memory_history", "record_memory_history", "saved_attribute"}, missing


def test_there_is_one_door() -> None:
    """No other file reads a name with an underscore that is not of this package."""
    roots = (LIBRARY, Path(gramjd.kernels.__file__).parent, Path(gramjd.profiling.__file__).parent)
    files = {file: ast.parse(file.read_text()) for root in roots for file in root.rglob("*.py")}
    ours = own_names([tree for file, tree in files.items() if file.name not in DOORS])
    found = []
    for file, tree in files.items():
        for node in ast.walk(tree) if file.name not in DOORS else ():
            if isinstance(node, ast.Attribute) and re.match(r"_[^_]", node.attr) and node.attr not in ours | STANDARD:
                found.append(f"{file.name}:{node.lineno}: {ast.unparse(node)}")
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("torch"):
                names = [node.module or "", *(alias.name for alias in node.names)]
                found += [f"{file.name}:{node.lineno}: {name}" for name in names if re.search(r"(^|\.)_[^_]", name)]
            if isinstance(node, ast.Constant) and "_saved_" in str(node.value):
                found.append(f"{file.name}:{node.lineno}: {node.value}")
    assert found == []
