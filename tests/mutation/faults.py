"""One deliberate fault: a piece of one function's source, and what is written in its place."""

from __future__ import annotations

import ast
import importlib
import inspect
import operator
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FunctionType
from typing import Any


@dataclass(frozen=True)
class Fault:
    """A fault.

    Attributes:
        place: ``module:function`` below the package, such as ``axes.solver:Solver.unify``.
        old: text that the function's source holds.
        new: what stands there in the faulty function.
        cases: beginnings of the names of the corpus networks that the function works on, separated by ``|``.
    """

    place: str
    old: str
    new: str
    cases: str

    def __str__(self) -> str:
        return f"{self.place}: {' '.join(self.old.split())!r} -> {' '.join(self.new.split())!r}"

    def function(self) -> FunctionType:
        """The function that is changed."""
        module, _, name = self.place.partition(":")
        found: Any = operator.attrgetter(name)(importlib.import_module(f"fxprune.{module}"))
        found = found.fget if isinstance(found, property) else inspect.unwrap(getattr(found, "__func__", found))
        assert isinstance(found, FunctionType), self.place
        return found

    def faulty_code(self) -> Any:
        """The code object of the changed source."""
        function = self.function()
        source = textwrap.dedent(inspect.getsource(function))
        if source.count(self.old) < 1:
            raise ValueError(f"{self}: the function does not hold this text")
        tree = ast.parse(source.replace(self.old, self.new, 1))
        definition = tree.body[0]
        assert isinstance(definition, ast.FunctionDef)
        definition.decorator_list = []
        ast.increment_lineno(tree, function.__code__.co_firstlineno - 1)
        made: dict[str, Any] = {}
        exec(compile(tree, function.__code__.co_filename, "exec"), dict(function.__globals__), made)
        return made[definition.name].__code__

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The function is faulty inside."""
        function = self.function()
        right = function.__code__
        function.__code__ = self.faulty_code()
        try:
            yield
        finally:
            function.__code__ = right


_SHUFFLES = "reshape|window/channel_shuffle|window/ChannelShuffle|attention/by hand|index/interleaved"
_CUTS = "cut/|index/slice|index/list|index/strided"

AXES = (
    Fault("axes.expressions:product", "for f in factors for", "for f in reversed(list(factors)) for", _SHUFFLES),
    Fault("axes.expressions:concat", "in parts for part", "in reversed(list(parts)) for part", "cut/|index/rolled"),
    Fault("axes.expressions:gather", "base.base, base.index[index]", "base.base, index", "index/"),
    Fault("axes.expressions:gather", "len(index) == base.size", "True", "index/|cut/rotated"),
    Fault("axes.elements:strides_of", "reversed(factors)", "factors", _SHUFFLES),
    Fault("axes.elements:ends_of", "accumulate(p.size for p in parts)", "accumulate(p.size - 1 for p in parts)", _CUTS),
    Fault("axes.elements:between", "[start, *inside]", "[start + 1, *inside]", _CUTS),
    Fault("axes.elements:runs", "run_x[::-1], run_y[::-1]", "run_x, run_y[::-1]", _SHUFFLES),
    Fault("axes.elements:regroup", "size -= taken[-1].size", "size -= taken[-1].size; break", _CUTS),
    Fault(
        "axes.elements:as_gather",
        "np.repeat(np.arange(base.size, dtype=np.int64), inner), outer",
        "np.repeat(np.arange(base.size, dtype=np.int64), outer), inner",
        "repeat|index/|linear/kron",
    ),
    Fault("axes.elements:couple_elements", "(channel - 1) % count", "channel", "index/|cut/rotated"),
    Fault("axes.elements:_connected", "np.minimum.at(label, right, low)", "pass", "index/"),
    Fault("axes.elements:_by_element", "values[0][axis.index]", "values[0][axis.index[::-1]]", "index/"),
    Fault(
        "axes.elements:_by_element",
        "combine(outer, inner)",
        "combine(inner, outer)",
        _SHUFFLES + "|linear/of a flattened",
    ),
    Fault("axes.elements:_by_element", "np.concatenate(values)", "np.concatenate(values[::-1])", "cut/|pad"),
    Fault(
        "axes.solver:Solver.unify",
        "self._unify(self.resolve(left), self.resolve(right))",
        "pass",
        "norm/|conv2d/|binary/add|linear/|buffer/per channel",
    ),
    Fault("axes.solver:Solver._pin", "axis.binding = Fixed(axis.size, reason)", "pass", "pinned/"),
    Fault(
        "axes.solver:Solver._pin",
        "for inner in axis.factors if isinstance(axis, Product) else axis.parts:",
        "for inner in (axis.factors if isinstance(axis, Product) else axis.parts)[:1]:",
        "pinned/|cut/|attention/",
    ),
    Fault("axes.solver:Solver._fix", "if isinstance(other, Fixed):", "if False:", "pinned/|index/|binary/|cut/"),
    Fault("axes.solver:Solver._bind", "value.parent = variable", "pass", "norm/|conv2d/|binary/add|linear/"),
    Fault(
        "axes.solver:Solver._unify_products",
        "for left, right in runs(a.factors, b.factors, math.prod):",
        "for left, right in runs(a.factors, b.factors, math.prod)[1:]:",
        _SHUFFLES,
    ),
    Fault("axes.solver:Solver._refine", "][::-1]", "]", "reshape"),
    Fault(
        "axes.solver:Solver._unify_concats",
        "for left, right in runs(a.parts, b.parts, sum):",
        "for left, right in runs(a.parts, b.parts, sum)[1:]:",
        "cut/",
    ),
    Fault(
        "axes.solver:Solver._unify_product_concat",
        "product((multiples[-1], inner))",
        "product((inner, multiples[-1]))",
        "cut/|attention/|index/",
    ),
    Fault(
        "axes.solver:Solver._unify_product_concat",
        "self._unify(outer, concat(multiples))",
        "pass",
        "cut/|attention/packed",
    ),
    Fault(
        "axes.solver:Solver._split_product",
        "[s // inner.size for s in sizes]",
        "[s // inner.size for s in reversed(list(sizes))]",
        "cut/|attention/",
    ),
    Fault(
        "axes.solver:Solver._split",
        "self.fresh(s, self._inner) for s in sizes",
        "self.fresh(s, self._inner) for s in reversed(list(sizes))",
        _CUTS,
    ),
    Fault(
        "axes.solver:Solver._in_runs",
        "concat(parts[start] for start, _ in runs)",
        "concat(parts[start] for start, _ in sorted(runs))",
        "index/rolled|index/roll|cut/swap",
    ),
)

RULES = (
    Fault("rules.windows:grouped", "product((axis, inner))", "product((inner, axis))", "conv2d/"),
    Fault(
        "rules.windows:grouped",
        "call.unify(out, product((axis, call.fresh(out.size // groups))))",
        "pass",
        "conv2d/grouped|conv2d/depthwise|conv2d/inverted",
    ),
    Fault(
        "rules.windows:grouped",
        "product((axis, call.fresh(out.size // groups)))",
        "product((call.fresh(out.size // groups), axis))",
        "conv2d/grouped|conv2d/depthwise",
    ),
    Fault("rules.windows:_bias", 'call.unify(call.tensor("bias")[0], out)', "pass", "conv2d/|conv1d/"),
    Fault(
        "rules.windows:transposed",
        "product((groups, weight[1]))",
        "product((weight[1], groups))",
        "conv2d/transposed",
    ),
    Fault("rules.windows:repair_groups", "if repair.shrinks(groups):", "if False:", "conv2d/"),
    Fault("rules.linear:linear", "call.unify(axes[-1], inner)", "pass", "linear/"),
    Fault("rules.linear:contract", "call.unify(left, right)", "pass", "linear/|attention/"),
    Fault("rules.linear:contract", "call.crosses((left,))", "pass", "linear/|attention/"),
    Fault("rules.linear:attention", "contract(call, query[-1], key[-1])", "pass", "attention/fused|attention/module"),
    Fault("rules.linear:repair_attention", "width.size**-0.5", "repair.size(width)**-0.5", "attention/"),
    Fault("rules.linear:_grouped", "[key[-3].size, shares]", "[shares, key[-3].size]", "attention/grouped"),
    Fault("rules.normalization:_per_channel", "for name in _STATISTICS:", "for name in _STATISTICS[2:]:", "norm/Batch"),
    Fault("rules.normalization:layer_norm", "_normalize(call, axes[-count:])", "pass", "norm/LayerNorm|norm/RMSNorm"),
    Fault(
        "rules.normalization:repair_layer_norm",
        'repair.resize_all("normalized_shape", repair.call.notes["normalized"])',
        "pass",
        "norm/LayerNorm|norm/functional",
    ),
    Fault(
        "rules.normalization:group_norm",
        "[count, channel.size // count]",
        "[channel.size // count, count]",
        "norm/GroupNorm|norm/functional group",
    ),
    Fault(
        "rules.normalization:repair_group_norm",
        "if repair.shrinks(groups):",
        "if False:",
        "norm/GroupNorm|norm/functional group",
    ),
    Fault("rules.joining:part", "pieces[1 if start else 0]", "pieces[0]", _CUTS),
    Fault("rules.joining:repair_split", "if any(repair.shrinks(p) for p in pieces):", "if False:", "cut/"),
    Fault(
        "rules.joining:repair_split",
        "[repair.size(p) for p in pieces]",
        "[repair.size(p) for p in pieces][::-1]",
        "cut/",
    ),
    Fault("rules.joining:repair_narrow", 'repair.set("start", repair.size(before))', "pass", "cut/narrow"),
    Fault("rules.joining:kept_number", "int(mask[:number].sum())", "number", "cut/select|index/"),
    Fault(
        "rules.joining:select",
        'pin_taken(call, axes[dim], index % axes[dim].size, call.arguments["index"])',
        "pass",
        "cut/select",
    ),
    Fault("rules.joining:unbind", 'call.pin(axes[dim], "its elements are taken one by one")', "pass", "cut/unbind"),
    Fault("rules.joining:glu", "call.unify(left, right)", "pass", "cut/glu|cut/GLU"),
    Fault(
        "rules.padding:_padded",
        "(before if low > 0 else None, middle, after if high > 0 else None)",
        "(after if high > 0 else None, middle, before if low > 0 else None)",
        "pad",
    ),
    Fault("rules.padding:_resized", "repair.size(piece) if amount > 0", "repair.size(piece) + 1 if amount > 0", "pad"),
    Fault(
        "rules.joining:joined",
        "concat(axes[dim] for axes in pieces)",
        "concat(axes[dim] for axes in pieces[::-1])",
        "cut/|conv2d/plain",
    ),
    Fault("rules.joining:joined", "call.unify(first, other)", "pass", "cut/stack|cut/cat of batch|cut/hstack"),
    Fault("rules.reshaping:repair_view", 'repair.resize_all("size", repair.call.result)', "pass", "reshape|attention/"),
    Fault(
        "rules.reshaping:flatten",
        "product(axes[start : end + 1])",
        "product(axes[start : end + 1][::-1])",
        "reshape|linear/of a flattened",
    ),
    Fault("rules.reshaping:transpose", "axes[a], axes[b] = axes[b], axes[a]", "pass", "reshape|attention/"),
    Fault(
        "rules.reshaping:reshaped",
        "call.unify(product(inner_old), product(inner_new))",
        "call.unify(product(inner_old), product(inner_new[::-1]))",
        "reshape|attention/",
    ),
    Fault("rules.padding:repeat", "product(pair) for pair", "product(pair[::-1]) for pair", "repeat"),
    Fault("rules.padding:repeat_interleave", "product((axes[dim], copies))", "product((copies, axes[dim]))", "repeat"),
    Fault("rules.padding:repair_expand", 'repair.resize_all("size", repair.call.result)', "pass", "repeat|expand"),
    Fault("rules.padding:repair_roll", "axis.size - moved :", ": moved", "index/roll"),
    Fault("rules.padding:_reversed", "axis.size - 1, -1, -1", "axis.size", "index/flip"),
    Fault("rules.indexing:repair_getitem", "if not any(item_shrinks(repair, t) for t in taken):", "if True:", "index/"),
    Fault(
        "rules.indexing:_kept_slice",
        "slice(first, first + len(positions))",
        "slice(first, first + len(positions) - 1)",
        "index/slice|cut/slices",
    ),
    Fault("rules.indexing:items_and_picks", "picks[place] = positions", "picks[place] = positions[::-1]", "index/"),
    Fault(
        "rules.indexing:_slice",
        "np.arange(axis.size, dtype=np.int64)[concrete(item)]",
        "np.arange(axis.size, dtype=np.int64)[concrete(item)][::-1]",
        "index/",
    ),
    Fault("rules.windows:channel_shuffle", "product((inner, outer))", "product((outer, inner))", "reshape/|move/"),
    Fault(
        "rules.windows:pixel_shuffle",
        "[axes[-3].size // factor**2, factor**2]",
        "[factor**2, axes[-3].size // factor**2]",
        "window/",
    ),
    Fault(
        "rules.windows:unfold",
        "product((axes[-3], call.fixed(shape[-2] // axes[-3].size, _WINDOW)))",
        "product((call.fixed(shape[-2] // axes[-3].size, _WINDOW), axes[-3]))",
        "window/",
    ),
    Fault("rules.pointwise:broadcast", "call.unify(wide[0], other)", "pass", "binary/|buffer/"),
    Fault(
        "rules.reductions:_reduced", "ONE if i in dims else a", "ONE if i not in dims else a", "reduce|over channels"
    ),
    Fault("rules.reductions:_reduce", "call.crosses(axes[d] for d in dims)", "pass", "over channels|reduce"),
    Fault("rules.reductions:softmax", "call.crosses(", "tuple(", "over channels|attention/by hand"),
    Fault(
        "rules.recurrent:_layer",
        '(call.fixed(gates, "it numbers the gates"), hidden)',
        '(hidden, call.fixed(gates, "it numbers the gates"))',
        "recurrent|sequence|lstm|LSTM|GRU",
    ),
    Fault(
        "rules.recurrent:recurrent",
        "hidden_size=hidden",
        "hidden_size=axes[-1]",
        "recurrent|sequence|LSTM|GRU",
    ),
    Fault(
        "rules.repair:_moved",
        "change = new_offset - old_offset",
        "change = old_offset - new_offset",
        "number/|reshape|cut/concat with",
    ),
)

REWRITING = (
    Fault(
        "rewriting.slicing:kept_indices", "np.flatnonzero(mask)", "np.flatnonzero(mask)[::-1].copy()", "conv2d/plain"
    ),
    Fault("rewriting.slicing:kept_indices", "np.flatnonzero(mask)", "np.arange(int(mask.sum()))", "conv2d/plain"),
    Fault(
        "rewriting.slicing:sliced",
        "for dim, index in enumerate(indices):",
        "for dim, index in enumerate(list(indices)[:1]):",
        "conv2d/plain|linear/module",
    ),
    Fault(
        "rewriting.slicing:sliced",
        "value.index_select(dim, index.to(value.device))",
        "value.index_select(dim, index.to(value.device)).flip(dim)",
        "conv2d/plain|norm/BatchNorm2d",
    ),
    Fault("rewriting.slicing:sliced", "if value is given:", "if False:", "conv2d/plain"),
    Fault(
        "rewriting.slicing:rebuilt",
        "for name, value in attributes.items():",
        "for name, value in ():",
        "conv2d/grouped|norm/GroupNorm|conv2d/depthwise",
    ),
    Fault(
        "rewriting.rewriter:Rewriter._repaired",
        "if rule is not None and rule.repair is not None:",
        "if False:",
        "cut/|reshape|index/",
    ),
    Fault(
        "rewriting.rewriter:Rewriter._repaired",
        "return repair.select_kept(written, repair.full_width)",
        "return written",
        "made/",
    ),
    Fault("rewriting.rewriter:Rewriter._number", 'return node.meta["val"]', 'return node.meta["val"] + 1', "number/"),
    Fault("rewriting.rewriter:Rewriter._size", "if kept != axis.size and not has_fixed(axis):", "if False:", "number/"),
    Fault(
        "rewriting.rewriter:Rewriter._add_index",
        "index.to(device_of(self._model))",
        "index.flip(0).to(device_of(self._model))",
        "index/",
    ),
    Fault("rules.repair:Repair.positions", "- 1", "", "index/"),
    Fault(
        "rules.repair:Repair.resize",
        "return value\n",
        "return value\n    if isinstance(value, int): return new + 1\n",
        "reshape|norm/",
    ),
    Fault(
        "rules.repair:Repair.resize_all",
        "if not any(self.shrinks(a) for a in axes):",
        "if True:",
        "reshape|norm/LayerNorm|repeat",
    ),
)

PLANNING = (
    Fault(
        "planning.plan:_keep", "_indices(kept_mask(axis, masks))", "_indices(~kept_mask(axis, masks))", "conv2d/plain"
    ),
    Fault("planning.plan:_indices", "np.flatnonzero(mask)", "np.flatnonzero(mask)[:-1]", "conv2d/plain"),
    Fault("planning.plan:_mask", "group.keeping(kept)", "group.keeping([k - 1 for k in kept])", "conv2d/plain"),
    Fault("planning.plan:_check_activations", "kept_mask(axis, masks).any()", "True", "index/"),
    Fault(
        "planning.selecting:Staircase.masks",
        "g.without(o[:gone])",
        "g.without(o[gone:])",
        "conv2d/plain",
    ),
    Fault(
        "planning.selecting:StaircaseCost.at",
        "leaves[self._plain] -= removed[self._plain_group]",
        "leaves[self._plain] -= 2 * removed[self._plain_group]",
        "conv2d/plain",
    ),
    Fault("planning.allocating:descend", "< goal.need", "< goal.need / 2", "conv2d/plain"),
    Fault(
        "planning.allocating:descend", "sequence.levels(high, groups)", "sequence.levels(low, groups)", "conv2d/plain"
    ),
    Fault("planning.selecting:score_sequence", "np.argsort(keys", "np.argsort(-keys", "conv2d/plain"),
)

FAULTS = (*AXES, *RULES, *REWRITING, *PLANNING)
