"""Questions about dtype, layout, gradients and autocast; caches; names that are no identifiers."""

from __future__ import annotations

from tests.nets.habits.habit import ANY, IMAGES, LAYER, Habit, per_channel


def _asked(question: str, ranks: tuple[int, ...] = ANY, above: str = "") -> Habit:
    """The value is bent where the answer is yes, and tripled where it is no."""
    return Habit(f"$y = $x.clamp(max=0.1) if {question} else $x * 3", above=above, ranks=ranks)


QUESTIONS: dict[str, Habit] = {
    "dtype_equal": _asked("$x.dtype == torch.bfloat16"),
    "dtype_is": _asked("$x.dtype is torch.float32"),
    "dtype_among": _asked("$x.dtype in (torch.float16, torch.bfloat16)"),
    "dtype_in_a_set": _asked("$x.dtype in {torch.float64, torch.float16}"),
    "dtype_as_text": _asked("'bfloat' in str($x.dtype)"),
    "dtype_in_a_table": Habit("$y = $x * {torch.float32: 1.0, torch.float64: 1.0}.get($x.dtype, 0.5)"),
    "dtype_floats": _asked("$x.dtype.itemsize < 4"),
    "dtype_of_a_helper": _asked(
        "is_half($x)", above="def is_half(x):\n    return x.dtype in (torch.float16, torch.bfloat16)"
    ),
    "element_size": _asked("$x.element_size() < 4"),
    "finfo": Habit("$y = $x.clamp(max=-torch.finfo($x.dtype).bits + 64.5)"),
    "finfo_eps": Habit("$y = $x + 100 * torch.finfo($x.dtype).eps"),
    "type_text": _asked("$x.type() == 'torch.BFloat16Tensor'"),
    "type_class": _asked("isinstance($x, torch.FloatTensor)"),
    "default_dtype": _asked("$x.dtype == torch.get_default_dtype()"),
    "buffer_element_size": Habit(
        "$y = $x.clamp(max=0.1) if self.$m.element_size() < 4 else $x * self.$m",
        "self.register_buffer('$m', torch.ones(()))",
    ),
    "buffer_dtype": Habit(
        "$y = $x.clamp(max=0.1) if self.$m.dtype == torch.bfloat16 else $x * self.$m$v",
        "self.register_buffer('$m', torch.ones($c))",
        tensors=per_channel("$m"),
    ),
    "weight_dtype": Habit("$y = self.$m($x.to(self.$m.weight.dtype)).to($x.dtype)", "self.$m = $layer", tensors=LAYER),
    "parameter_dtype": Habit("$y = $x + torch.ones(1, dtype=next(self.parameters()).dtype)"),
    "contiguous": _asked("$x.is_contiguous()"),
    "channels_last": _asked("$x.is_contiguous(memory_format=torch.channels_last)", ranks=IMAGES),
    "stride": _asked("$x.stride(-1) == 1"),
    "strides": _asked("$x.stride()[-1] == 1"),
    "leaf": _asked("$x.is_leaf"),
    "requires_grad": _asked("$x.requires_grad"),
    "has_grad_fn": _asked("$x.grad_fn is not None"),
    "grad_mode": _asked("torch.is_grad_enabled()"),
    "inference_mode": _asked("torch.is_inference_mode_enabled()"),
    "autocast": _asked("torch.is_autocast_enabled('cpu')"),
    "autocast_with_gradients": _asked("torch.is_autocast_enabled('cpu') and torch.is_grad_enabled()"),
    "autocast_without_gradients": _asked("torch.is_autocast_enabled('cpu') and not torch.is_grad_enabled()"),
    "device_type": _asked("$x.device.type == 'cuda'"),
    "is_cuda": _asked("$x.is_cuda"),
}
LIKE = "def like(t):\n    return {'dtype': t.dtype, 'device': t.device}"
PASSED: dict[str, Habit] = {
    "through_a_dict": Habit("$y = $x + torch.ones(1, **like($x))", above=LIKE),
    "through_arguments": Habit(
        "$y = $x + made(1, $x.dtype)", above="def made(*args):\n    return torch.ones(args[0], dtype=args[1])"
    ),
    "through_a_partial": Habit("$y = $x + functools.partial(torch.ones, dtype=$x.dtype)(1)"),
    "through_an_attribute": Habit(
        "self.$m = $x.dtype\n$y = $x + torch.ones(1, dtype=self.$m)", "self.$m = torch.float32"
    ),
    "through_a_variable": Habit("kind = $x.dtype\n$y = $x.float().tanh().to(kind)"),
    "through_a_tuple": Habit("kind, device = $x.dtype, $x.device\n$y = $x.to(torch.float64).tanh().to(device, kind)"),
    "through_a_closure": Habit("$y = (lambda kind: $x + torch.zeros(1, dtype=kind))($x.dtype)"),
    "up_and_down": Habit("$y = torch.sigmoid($x.float()).to($x.dtype) * $x"),
    "up_and_down_by_type": Habit("$y = torch.sigmoid($x.float()).type_as($x) * $x"),
    "new_ones": Habit("$y = $x + $x.new_ones(1)"),
    "of_a_parameter": Habit(
        "$y = $x * self.$m.to(like($x)['dtype'])$v",
        "self.$m = nn.Parameter(torch.ones($c))",
        above=LIKE,
        tensors=per_channel("$m"),
    ),
    "promoted": Habit("$y = torch.promote_types($x.dtype, torch.bfloat16)\n$y = $x.to($y)"),
    "under_its_own_autocast": Habit("with torch.autocast('cpu', enabled=False):\n    $y = $x.tanh() * 2"),
}
GRID = "return torch.arange(1, n + 1, dtype=dtype, device=device) / n"
CACHES: dict[str, Habit] = {
    "lru_cache": Habit(
        "$y = $x * grid($n, $x.device, $x.dtype)$w",
        above=f"@functools.lru_cache(8)\ndef grid(n, device, dtype):\n    {GRID}",
    ),
    "lru_cache_without_a_limit": Habit(
        "$y = $x * all_grids($n).to($x)$w",
        above="@functools.lru_cache(None)\ndef all_grids(n):\n    return torch.linspace(0, 1, n)",
    ),
    "dict_by_text": Habit(
        """
        key = (str($x.device), str($x.dtype), str($n))
        if key not in HELD:
            HELD[key] = torch.linspace(0, 1, $n, dtype=$x.dtype)
        $y = $x * HELD[key]$w
        """,
        above="HELD = {}",
    ),
    "dict_by_size": Habit(
        "$y = $x * KEPT.setdefault(($n, $x.dtype), torch.linspace(0, 1, $n, dtype=$x.dtype))$w", above="KEPT = {}"
    ),
    "list_of_grids": Habit(
        """
        while len(GRIDS) <= $n:
            GRIDS.append(torch.linspace(0, 1, max(1, len(GRIDS))))
        $y = $x * GRIDS[$n].to($x)$w
        """,
        above="GRIDS = []",
    ),
    "attribute": Habit(
        """
        if self.$m is None or self.$m.shape[0] != $n or self.$m.dtype != $x.dtype:
            self.$m = torch.linspace(0, 1, $n, dtype=$x.dtype, device=$x.device)
        $y = $x * self.$m$w
        """,
        "self.$m = None",
    ),
    "dict_attribute": Habit(
        """
        if ($n, $x.dtype) not in self.$m:
            self.$m[$n, $x.dtype] = torch.linspace(0, 1, $n, dtype=$x.dtype)
        $y = $x * self.$m[$n, $x.dtype]$w
        """,
        "self.$m = {}",
    ),
    "class_attribute": Habit(
        """
        if type(self).held is None or type(self).held.shape[0] < $n:
            type(self).held = torch.linspace(0, 1, 64)
        $y = $x * type(self).held[:$n].to($x)$w
        """,
        "type(self).held = getattr(type(self), 'held', None)",
    ),
    "global": Habit(
        "$y = $x * table()[:$n].to($x)$w",
        above="TABLE = None\ndef table():\n    global TABLE\n    if TABLE is None:\n"
        "        TABLE = torch.linspace(0, 1, 64)\n    return TABLE",
    ),
    "shape_recipe": Habit(
        "$y = $x.reshape(recipe(tuple($x.shape))).tanh().reshape($x.shape)",
        above="@functools.lru_cache(256)\ndef recipe(shape):\n    return (shape[0], *shape[1:], 1)",
    ),
    "batch_recipe": Habit(
        "$y = $x * weight_of($x.shape[0])",
        above="@functools.lru_cache(None)\ndef weight_of(n):\n    return 1.0 if n < 4 else 0.5",
    ),
    "default_argument": Habit(
        "$y = $x * remembered($n, $x.dtype)$w",
        above="def remembered(n, dtype, held={}):\n    if (n, dtype) not in held:\n"
        "        held[n, dtype] = torch.linspace(0, 1, n, dtype=dtype)\n    return held[n, dtype]",
    ),
    "non_persistent_buffer": Habit(
        """
        if self.$m.shape[0] != $n:
            self.$m = torch.linspace(0, 1, $n, dtype=self.$m.dtype)
        $y = $x * self.$m.to($x.dtype)$w
        """,
        "self.register_buffer('$m', torch.zeros(0), persistent=False)",
    ),
}
ODD_NAMES = (
    '1" pipe', "a'b", "a\nb", "class", "lambda", "__import__('os')", "x y", "{x}", "self", "0", "a\\", "# no", "a\tb",
    "None", "a;b", "%s", "é", "F", "torch", "input", "'''", '"""', "a-b", "import os", "True", "print(1)", "a[0]",
    "\u2028", "$", "x1", "_0", "output", "graph_", "a/b", " ", "\r", "\x00",
)  # fmt: skip


def _name_habits(name: str) -> dict[str, Habit]:
    key = repr(name.replace("$", "$$"))
    place = name.replace("$", "$$")
    return {
        f"module_dict {name!r}": Habit(f"$y = self.$m[{key}]($x)", f"self.$m = nn.ModuleDict({{{key}: nn.Tanh()}})"),
        f"layer_dict {name!r}": Habit(
            f"$y = self.$m[{key}]($x)",
            f"self.$m = nn.ModuleDict({{{key}: $layer}})",
            tensors=((f"$m.{place}.weight", "k"), (f"$m.{place}.bias", "o")),
        ),
        f"add_module {name!r}": Habit(
            f"$y = getattr(self.$m, {key})($x)", f"self.$m = nn.Module()\nself.$m.add_module({key}, nn.Tanh())"
        ),
        f"buffer {name!r}": Habit(
            f"$y = $x * getattr(self.$m, {key})$v",
            f"self.$m = nn.Module()\nself.$m.register_buffer({key}, torch.ones($c))",
            tensors=((f"$m.{place}", "c"),),
        ),
        f"parameter_dict {name!r}": Habit(
            f"$y = $x * self.$m[{key}]$v",
            f"self.$m = nn.ParameterDict({{{key}: torch.ones($c)}})",
            tensors=((f"$m.{place}", "c"),),
        ),
    }


NAMES: dict[str, Habit] = {key: habit for name in ODD_NAMES for key, habit in _name_habits(name).items()}
