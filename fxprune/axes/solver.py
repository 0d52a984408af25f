"""Unification of axes: the solver that turns the relations between axes, stated by ops, into channel groups.

``unify`` refines axes as type inference refines types. It never guesses: axes that cannot be aligned are pinned, and
the pin names the op that asked. Every request is recorded in ``dependencies``; the channel graph is built from them
later. Worked examples, from simple to hard:

>>> from fxprune.axes.expressions import Channels, Fixed, Origin, concat, gather, product
>>> solver, why = Solver(), Cause("n", "example")
>>> def channels(name, size):
...     return Channels(size, Origin(name, 0))

**A residual add.** Two variables become one; both resolve to the same representative from then on.

>>> a, b = channels("a", 6), channels("b", 6)
>>> solver.unify(a, b, why)
>>> solver.resolve(a) is solver.resolve(b)
True

**A flatten in front of a linear layer.** A variable that meets an expression is bound to it: the layer's 24 columns are
4 pixels of each of 6 channels.

>>> columns = channels("fc", 24)
>>> solver.unify(columns, product([a, Fixed(4)]), why)
>>> solver.resolve(columns)
(a:6*4)

**A channel shuffle.** 12 channels are viewed as 3 groups of 4, transposed, and viewed as 12 again. Both variables
become products of the same two factors, in the opposite order.

>>> c, d = channels("c", 12), channels("d", 12)
>>> three, four = solver.factor(c, [3, 4], why)
>>> solver.unify(d, product([four, three]), why)
>>> solver.resolve(c), solver.resolve(d)
((n:3*n:4), (n:4*n:3))

**A ragged concatenation.** [e f] and [g h] have the same 10 elements, but are cut at 4 and at 7. Cutting both at both
offsets gives three pieces: ``e`` is the first 4 channels of ``g``, and ``f`` starts with the other 3.

>>> e, f, g, h = channels("e", 4), channels("f", 6), channels("g", 7), channels("h", 3)
>>> solver.unify(concat([e, f]), concat([g, h]), why)
>>> [solver.resolve(axis) for axis in (e, f, g, h)]
[e:4, [n:3 n:3], [e:4 n:3], n:3]

**Factors of different sizes.** 4 x 4 elements are also 8 x 2 elements: the inner 4 is 2 x 2, so the 8 is 4 x 2.

>>> p, q, x, y = channels("p", 4), channels("q", 4), channels("x", 8), channels("y", 2)
>>> solver.unify(product([p, q]), product([x, y]), why)
>>> solver.resolve(q), solver.resolve(x)
((n:2*n:2), (p:4*n:2))

**Factors that cross are pinned.** 2 x 3 elements against 3 x 2: neither stride (3 or 2) divides the other.

>>> r, s, t, u = channels("r", 2), channels("s", 3), channels("t", 3), channels("u", 2)
>>> solver.unify(product([r, s]), product([t, u]), why)
>>> solver.resolve(r), solver.pins[-1].reason
(2, 'sizes 6 against 6 cut across one another and cannot be aligned')
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np

from fxprune.axes.elements import (
    as_gather,
    between,
    couple_elements,
    ends_of,
    has_gather,
    is_elementwise,
    regroup,
    runs,
    strides_of,
)
from fxprune.axes.expressions import (
    PART,
    Axis,
    Cause,
    Channels,
    Concat,
    Dependency,
    Fixed,
    Gather,
    Origin,
    Pin,
    Product,
    concat,
    gather,
    product,
    resolved,
    variables,
)
from fxprune.errors import AnalysisError

# A gather of more runs than this stays a gather: each run would become a variable of its own.
_MOST_RUNS = 8


class Solver:
    """Holds the dependencies and pins of one analysis, and solves the variables as each request comes in."""

    def __init__(self) -> None:
        self.dependencies: list[Dependency] = []
        self.pins: list[Pin] = []
        self._cause = Cause("", "")
        self._inner = Origin("", PART)

    def fresh(self, size: int, origin: Origin) -> Axis:
        """A new variable of ``size`` channels (a size of one has nothing to remove and is fixed)."""
        if size > 1:
            return Channels(size, origin)
        single = "single channels of it are used apart" if origin.dim == PART else "it has a single channel"
        return Fixed(size, single if size else "it has no channel")

    resolve = staticmethod(resolved)

    def unify(self, left: Axis, right: Axis, cause: Cause) -> None:
        """Make the two axes the same channels. Raises AnalysisError: their sizes differ."""
        if left is right or (isinstance(left, Fixed) and isinstance(right, Fixed) and left.size == right.size):
            return
        if left.size != right.size:
            raise AnalysisError(f"{cause}: axes of {left.size} and {right.size} elements cannot be the same")
        self.dependencies.append(Dependency(left, right, cause))
        self._blame(cause)
        self._unify(self.resolve(left), self.resolve(right))

    def pin(self, axis: Axis, reason: str, cause: Cause) -> None:
        """Keep every channel of the axis."""
        if isinstance(axis, Fixed):
            return
        self.pins.append(Pin(axis, reason, cause))
        self._blame(cause)
        self._pin(axis, reason)

    def _pin(self, axis: Axis, reason: str) -> None:
        axis = self.resolve(axis)
        if isinstance(axis, Channels):
            axis.binding = Fixed(axis.size, reason)
        elif isinstance(axis, (Product, Concat)):
            for inner in axis.factors if isinstance(axis, Product) else axis.parts:
                self._pin(inner, reason)
        elif isinstance(axis, Gather) and is_elementwise(axis) and len(np.unique(axis.index)) < axis.base.size:
            self._unify_elements(axis, Fixed(axis.size, reason))
        elif isinstance(axis, Gather):
            self._pin(axis.base, reason)

    def split(self, axis: Axis, sizes: Sequence[int], cause: Cause) -> list[Axis]:
        """Cut the axis into consecutive parts of the given sizes."""
        self._blame(cause)
        parts = self._split(self.resolve(axis), sizes)
        self.dependencies.append(Dependency(axis, concat(parts), cause))
        return parts

    def factor(self, axis: Axis, sizes: Sequence[int], cause: Cause) -> list[Axis]:
        """Write the axis as a row-major product of the given sizes."""
        self._blame(cause)
        factors: list[Axis] = [self.fresh(s, self._inner) for s in sizes]
        self.unify(axis, product(factors), cause)
        return factors

    def _blame(self, cause: Cause) -> None:
        """Attribute all pins and variables made from now on to ``cause``."""
        self._cause = cause
        self._inner = Origin(cause.node, PART)

    def _unify(self, a: Axis, b: Axis) -> None:
        a, b = self.resolve(a), self.resolve(b)
        if a is b:
            return
        if isinstance(b, Channels) and not isinstance(a, Channels):
            a, b = b, a
        if isinstance(a, Fixed) or isinstance(b, Fixed):
            self._fix(a, b)
        elif isinstance(a, Channels):
            self._bind(a, b)
        elif isinstance(a, Gather) or isinstance(b, Gather):
            self._unify_elements(a, b)
        elif isinstance(a, Product) and isinstance(b, Product):
            self._unify_products(a, b)
        elif isinstance(a, Concat) and isinstance(b, Concat):
            self._unify_concats(a, b)
        elif isinstance(a, Product) and isinstance(b, Concat):
            self._unify_product_concat(a, b)
        else:
            assert isinstance(a, Concat)
            assert isinstance(b, Product)
            self._unify_product_concat(b, a)

    def _fix(self, a: Axis, b: Axis) -> None:
        for side, other in ((a, b), (b, a)):
            if isinstance(other, Fixed):
                self.pin(side, other.why, self._cause)

    def _bind(self, variable: Channels, value: Axis) -> None:
        if isinstance(value, Channels):
            value.parent = variable
        elif any(v is variable for v in variables(value)):
            self._unify_elements(variable, value)
        else:
            variable.binding = value

    def _unify_products(self, a: Product, b: Product) -> None:
        for left, right in runs(a.factors, b.factors, math.prod):
            if len(left) == 1 or len(right) == 1:
                self._unify(product(left), product(right))
            else:
                self._unify_ragged_products(left, right)

    def _unify_ragged_products(self, left: list[Axis], right: list[Axis]) -> None:
        whole = product(left), product(right)
        if any(map(has_gather, whole)) and all(map(is_elementwise, whole)):
            self._unify_elements(*whole)  # a gather has no factors
            return
        strides = sorted({*strides_of(left), *strides_of(right)})
        if any(high % low for low, high in itertools.pairwise(strides)):
            self._unify_without_common_outer(left, right)
            return
        for x, y in zip(self._refine(left, strides), self._refine(right, strides), strict=True):
            self._unify(x, y)

    def _unify_without_common_outer(self, left: list[Axis], right: list[Axis]) -> None:
        """Strides that cross: split the common divisor off both outermost factors, and tie the rest by elements."""
        common = math.gcd(left[0].size, right[0].size)
        if common > 1 and left[0].size != common != right[0].size:
            firsts = (left[0], right[0])
            (outer, rest), (other, other_rest) = (self._factor(x, [common, x.size // common]) for x in firsts)
            self._unify(outer, other)
            left, right = [rest, *left[1:]], [other_rest, *right[1:]]
        self._unify_elements(product(left), product(right))

    def _refine(self, factors: list[Axis], strides: list[int]) -> list[Axis]:
        """The factors cut at every stride, outermost factor first. ``strides`` are sorted, and start with 1."""
        refined: list[Axis] = []
        stride = math.prod(f.size for f in factors)
        for factor in factors:
            low = stride // factor.size
            inside = [s for s in strides if low <= s < stride]
            sizes = [high // lower for lower, high in itertools.pairwise([*inside, stride])][::-1]
            refined.extend([factor] if len(sizes) == 1 else self._factor(factor, sizes))
            stride = low
        return refined

    def _factor(self, axis: Axis, sizes: Sequence[int]) -> list[Axis]:
        factors: list[Axis] = [self.fresh(s, self._inner) for s in sizes]
        self._unify_parts(axis, product(factors))
        return factors

    def _unify_parts(self, axis: Axis, made_here: Axis) -> None:
        """Unify with an axis of variables made here, and record the dependency, so that the channel graph has it."""
        self.dependencies.append(Dependency(axis, made_here, self._cause))
        self._unify(axis, made_here)

    def _unify_concats(self, a: Concat, b: Concat) -> None:
        for left, right in runs(a.parts, b.parts, sum):
            if len(left) == 1 or len(right) == 1:
                self._unify(concat(left), concat(right))
                continue
            ends = sorted({*ends_of(left), *ends_of(right)})
            for x, y in zip(self._cut(left, ends), self._cut(right, ends), strict=True):
                self._unify(x, y)

    def _cut(self, parts: list[Axis], offsets: list[int]) -> list[Axis]:
        """The parts cut at each of the sorted ``offsets``."""
        cut: list[Axis] = []
        start = 0
        for part in parts:
            stop = start + part.size
            sizes = between(offsets, start, stop)
            cut.extend([part] if len(sizes) == 1 else self._split(self.resolve(part), sizes))
            start = stop
        return cut

    def _unify_product_concat(self, a: Product, b: Concat) -> None:
        """Write each part as a multiple of the inner size; ``outer`` is then the concatenation of the multiples."""
        for cut in range(1, len(a.factors)):
            outer, inner = product(a.factors[:cut]), product(a.factors[cut:])
            if all(part.size % inner.size == 0 for part in b.parts):
                multiples: list[Axis] = []
                for part in b.parts:
                    multiples.append(self.fresh(part.size // inner.size, self._inner))
                    self._unify_parts(part, product((multiples[-1], inner)))
                self._unify(outer, concat(multiples))
                return
        self._unify_periodic(a, b)

    def _unify_periodic(self, a: Product, b: Concat) -> None:
        """Parts that cut through the inner factors: make the same cuts at every step of the outer factor.

        A piece of one element would become a fixed size. So if a cut would make one, the inner factors are not cut, and
        the two axes are tied element by element instead.
        """
        outer, inner = a.factors[0], product(a.factors[1:])
        if isinstance(inner, Fixed):
            self._unify_elements(a, b)
            return
        self.pin(outer, "pieces of other sizes run across it", self._cause)
        cuts = sorted({end % inner.size for end in ends_of(b.parts)} | {0, inner.size})
        repeated = self.resolve(a)
        if 1 in np.diff(cuts) and is_elementwise(repeated) and is_elementwise(b):
            self._unify_elements(repeated, b)
            return
        steps = range(inner.size, a.size + 1, inner.size)
        periods = regroup(self._cut(list(b.parts), sorted({*ends_of(b.parts), *steps})), [inner.size] * outer.size)
        for period in periods:
            self._unify(period, inner)

    def _unify_elements(self, a: Axis, b: Axis) -> None:
        """Tie two axes element by element: exact if each element needs at most one channel."""
        a, b = self.resolve(a), self.resolve(b)
        if not (is_elementwise(a) and is_elementwise(b)):
            pieces = [self._in_runs(side) for side in (a, b)]
            if pieces[0] is a and pieces[1] is b:
                self._cross(a, b)
            else:
                self._unify(*pieces)
            return
        labels = couple_elements(a, b)
        channels = self.fresh(labels.free, self._inner) if labels.free else Fixed(0)
        base = concat((channels, Fixed(1, "an element of it is tied to one that stays")))
        for variable, label in labels.of.items():
            used = base if bool((label == labels.free).any()) else channels
            variable.binding = gather(used, label)
            self.dependencies.append(Dependency(variable, variable.binding, self._cause))

    def _in_runs(self, axis: Axis) -> Axis:
        """Write a gather of a few runs of neighbours as the concatenation of those runs; any other axis stays."""
        if not isinstance(axis, Gather):
            return axis
        starts = [0, *(np.flatnonzero(np.diff(axis.index) != 1) + 1).tolist(), len(axis.index)]
        runs = [(int(axis.index[low]), high - low) for low, high in itertools.pairwise(starts)]
        ends = sorted({axis.base.size, *(s for s, _ in runs), *(s + n for s, n in runs)} - {0})
        if (
            len(runs) > _MOST_RUNS
            or len({s for s, _ in runs}) != len(runs)
            or any(start < end < start + size for start, size in runs for end in ends)
        ):
            return axis
        sizes = [high - low for low, high in itertools.pairwise([0, *ends])]
        parts = dict(zip([0, *ends], self._split(self.resolve(axis.base), sizes), strict=False))
        return concat(parts[start] for start, _ in runs)

    def _cross(self, *axes: Axis) -> None:
        sizes = " against ".join(str(a.size) for a in axes)
        for axis in axes:
            self.pin(axis, f"sizes {sizes} cut across one another and cannot be aligned", self._cause)

    def _split(self, axis: Axis, sizes: Sequence[int]) -> list[Axis]:
        if len(sizes) == 1:
            return [axis]
        if isinstance(axis, Fixed):
            return [Fixed(s, axis.why) for s in sizes]
        if isinstance(axis, Channels):
            parts: list[Axis] = [self.fresh(s, self._inner) for s in sizes]
            axis.binding = concat(parts)
            self.dependencies.append(Dependency(axis, axis.binding, self._cause))
            return parts
        if isinstance(axis, Gather):
            bounds = np.cumsum([0, *sizes])
            return [gather(axis.base, axis.index[lo:hi]) for lo, hi in itertools.pairwise(bounds.tolist())]
        if isinstance(axis, Concat):
            ends = sorted({*ends_of(axis.parts), *itertools.accumulate(sizes)})
            return regroup(self._cut(list(axis.parts), ends), sizes)
        return self._split_product(axis, sizes)

    def _split_product(self, axis: Product, sizes: Sequence[int]) -> list[Axis]:
        for cut in range(1, len(axis.factors)):
            outer, inner = product(axis.factors[:cut]), product(axis.factors[cut:])
            if all(s % inner.size == 0 for s in sizes):
                pieces = self._split(self.resolve(outer), [s // inner.size for s in sizes])
                return [product((piece, inner)) for piece in pieces]
        spread = as_gather(axis)
        if spread is not None:
            return self._split(spread, sizes)
        outer, inner = axis.factors[0], product(axis.factors[1:])
        self.pin(outer, "a cut inside its inner factors repeats at every step of it", self._cause)
        ends = sorted({*(e % inner.size for e in itertools.accumulate(sizes))} - {0}) + [inner.size]
        steps = [high - low for low, high in itertools.pairwise([0, *ends])]
        pieces = self._split(self.resolve(inner), steps)
        return regroup(pieces * outer.size, sizes)
