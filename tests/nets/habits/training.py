"""Modes, state that training reads or writes, hooks and gradients, tensors over one storage."""

from __future__ import annotations

from tests.nets.habits.habit import LAYER, NORM, SECOND, Habit, per_channel

FROZEN = """
class Frozen1d(nn.BatchNorm1d):
    def train(self, mode=True):
        return super().train(False)


class Frozen2d(nn.BatchNorm2d):
    def train(self, mode=True):
        return super().train(False)
"""
HALF_FROZEN = """
class HalfFrozen(nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.norm, self.after = norm, nn.Dropout(0.2)

    def train(self, mode=True):
        super().train(mode)
        self.norm.eval()
        return self

    def forward(self, x):
        return self.after(self.norm(x))
"""
OWN_NORM = """
class OwnNorm(nn.Module):
    def __init__(self, channels):
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.ones(channels))

    def forward(self, x):
        scale = self.weight * (self.running_var + 1e-5).rsqrt()
        shift = self.bias - self.running_mean * scale
        shape = (1, -1, 1, 1) if x.dim() == 4 else (1,) * (x.dim() - 1) + (-1,)
        return x * scale.reshape(shape) + shift.reshape(shape)
"""
RAMP = """
class Ramp(nn.Module):
    def __init__(self):
        super().__init__()
        self.step = 0

    def forward(self, x):
        if self.training:
            self.step += 1
            return x * min(1.0, self.step / 10)
        return x
"""
HEAD = """
class Head(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        y = self.layer(x)
        if self.training:
            return {"maps": [y, y * 2]}
        return [y, y[y > 0].sum()]
"""
SORTING = """
class Sorting(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        y = self.layer(x)
        return y if self.training else y + y[y > 0].sum()
"""
MODES: dict[str, Habit] = {
    "head_of_another_structure": Habit(
        "made = self.$m($x)\n$y = made['maps'][1] if self.training else made[0] + made[1]",
        "self.$m = Head($layer)",
        above=HEAD,
        tensors=(("$m.layer.weight", "k"), ("$m.layer.bias", "o")),
    ),
    "head_that_only_eval_sorts": Habit(
        "$y = self.$m($x)",
        "self.$m = Sorting($layer)",
        above=SORTING,
        tensors=(("$m.layer.weight", "k"), ("$m.layer.bias", "o")),
    ),
    "frozen_by_the_model": Habit(
        "$y = self.$m($x)", "self.$m = $bn", train="self.$m.eval()", tensors=NORM, ranks=SECOND
    ),
    "frozen_by_class": Habit(
        "$y = self.$m($x)", "self.$m = Frozen${rank}d($c)", above=FROZEN, tensors=NORM, ranks=SECOND
    ),
    "frozen_by_a_part": Habit(
        "$y = self.$m($x)",
        "self.$m = HalfFrozen($bn)",
        above=HALF_FROZEN,
        tensors=per_channel(*(f"$m.norm.{kind}" for kind in ("weight", "bias", "running_mean", "running_var"))),
        ranks=SECOND,
    ),
    "frozen_by_a_walk": Habit(
        "$y = self.$m($x)",
        "self.$m = $bn",
        train="for part in self.modules():\n    if hasattr(part, 'running_var'):\n        part.eval()",
        tensors=NORM,
        ranks=SECOND,
    ),
    "norm_of_its_own": Habit("$y = self.$m($x)", "self.$m = OwnNorm($c)", above=OWN_NORM, tensors=NORM),
    "norm_that_trains": Habit("$y = self.$m($x)", "self.$m = $bn", tensors=NORM, ranks=SECOND),
    "norm_without_statistics": Habit(
        "$y = self.$m($x)",
        "self.$m = nn.BatchNorm${rank}d($c, track_running_stats=False)",
        tensors=NORM[:2],
        ranks=SECOND,
    ),
    "dropout_that_always_drops_none": Habit("$y = F.dropout($x, 0.0, True)"),
    "dropout_kept_off": Habit("$y = self.$m($x)", "self.$m = nn.Dropout(0.5)", train="self.$m.eval()"),
    "branch_on_training": Habit("$y = $x * 0.5 if self.training else $x"),
    "branch_on_a_part": Habit(
        "$y = $x * 0.5 if self.$m.training else self.$m($x)", "self.$m = nn.Dropout(0.2)", train="self.$m.eval()"
    ),
    "function_in_eval": Habit(
        "$y = self.$m($x) if self.training else $function($x, self.$m.weight, self.$m.bias)",
        "self.$m = $layer",
        tensors=LAYER,
    ),
    "function_in_training": Habit(
        "$y = $function($x, self.$m.weight, self.$m.bias) if self.training else self.$m($x)",
        "self.$m = $layer",
        tensors=LAYER,
    ),
    "norm_as_function_in_eval": Habit(
        """
        if self.training:
            $y = self.$m($x)
        else:
            $y = F.batch_norm($x, self.$m.running_mean, self.$m.running_var, self.$m.weight, self.$m.bias)
        """,
        "self.$m = $bn",
        tensors=NORM,
        ranks=SECOND,
    ),
}
STATE: dict[str, Habit] = {
    "counter": Habit(
        """
        if self.training:
            self.$m += 1
            $x = $x * min(1.0, self.$m / 10)
        $y = $x
        """,
        "self.$m = 0",
    ),
    "counter_that_eval_reads": Habit(
        "if self.training:\n    self.$m += 1\n$y = $x * (1 + self.$m * 0.1)",
        "self.$m = 0",
    ),
    "counter_in_a_dict": Habit(
        "if self.training:\n    self.$m['step'] += 1\n    $x = $x / self.$m['step']\n$y = $x",
        "self.$m = {'step': 0}",
    ),
    "counter_in_a_list": Habit(
        "if self.training:\n    self.$m.append(1)\n    $x = $x * (1 + 0.1 * len(self.$m))\n$y = $x",
        "self.$m = []",
    ),
    "counter_of_the_module": Habit(
        "if self.training:\n    COUNTED[0] += 1\n    $x = $x * min(1.0, COUNTED[0] / 10)\n$y = $x",
        above="COUNTED = [0]",
    ),
    "counter_of_a_part": Habit("$y = self.$m($x)", "self.$m = Ramp()", above=RAMP),
    "counter_as_a_buffer": Habit(
        "if self.training:\n    self.$m += 1\n$y = $x * (1 + 0.1 * self.$m)",
        "self.register_buffer('$m', torch.zeros(()))",
    ),
    "counter_as_an_integer_buffer": Habit(
        "if self.training:\n    self.$m.add_(1)\n$y = $x / (1 + self.$m)",
        "self.register_buffer('$m', torch.tensor(0))",
    ),
    "growing_dropout": Habit(
        "if self.training:\n    self.$m = min(0.5, self.$m + 0.1)\n$y = F.dropout($x, self.$m, self.training)",
        "self.$m = 0.0",
    ),
    "growing_dropout_of_a_layer": Habit(
        "if self.training:\n    self.$m.p = min(0.5, self.$m.p + 0.1)\n$y = self.$m($x)", "self.$m = nn.Dropout(0.0)"
    ),
    "noise_in_training": Habit("$y = $x + 0.1 * torch.randn_like($x) if self.training else $x"),
    "scale_noise_in_training": Habit("$y = $x * (1 + 0.1 * torch.rand(())).to($x.dtype) if self.training else $x"),
    "average_through_data": Habit(
        """
        if self.training:
            self.$m.data = 0.9 * self.$m.data + 0.1 * $x.detach().mean($others)
        $y = $x - self.$m$v
        """,
        "self.register_buffer('$m', torch.zeros($c))",
        tensors=per_channel("$m"),
    ),
    "average_through_data_in_place": Habit(
        """
        if self.training:
            self.$m.data.mul_(0.9).add_($x.detach().mean($others), alpha=0.1)
        $y = $x - self.$m$v
        """,
        "self.register_buffer('$m', torch.zeros($c))",
        tensors=per_channel("$m"),
    ),
    "average_without_gradients": Habit(
        """
        if self.training:
            with torch.no_grad():
                self.$m.lerp_($x.mean($others), 0.1)
        $y = $x - self.$m$v
        """,
        "self.register_buffer('$m', torch.zeros($c))",
        tensors=per_channel("$m"),
    ),
    "average_set_anew": Habit(
        """
        if self.training:
            self.$m = 0.9 * self.$m + 0.1 * $x.detach().mean($others)
        $y = $x - self.$m$v
        """,
        "self.register_buffer('$m', torch.zeros($c))",
        tensors=per_channel("$m"),
    ),
    "average_by_copy": Habit(
        """
        $y = $x - self.$m$v
        if self.training:
            self.$m.copy_(0.9 * self.$m + 0.1 * $x.detach().mean($others))
        """,
        "self.register_buffer('$m', torch.zeros($c))",
        tensors=per_channel("$m"),
    ),
    "parameter_kept_in_bounds": Habit(
        "if self.training:\n    self.$m.data.clamp_(-0.5, 0.5)\n$y = $x * self.$m$v",
        "self.$m = nn.Parameter(torch.ones($c))",
        tensors=per_channel("$m"),
    ),
    "filled_on_first_training": Habit(
        """
        if self.training and not self.${m}_known:
            self.$m.data.copy_($x.detach().std($others))
            self.${m}_known = True
        $y = $x * self.$m$v
        """,
        "self.$m, self.${m}_known = nn.Parameter(torch.ones($c)), False",
        tensors=per_channel("$m"),
    ),
    "remembered_activation": Habit("$y = $x.tanh()\nself.$m = $y.detach()", "self.$m = None"),
}
SCALED = """
class Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 0.1
"""
CLIPPED = """
class Clipped(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, bound):
        ctx.save_for_backward(x)
        ctx.bound = bound
        return x.clamp(-bound, bound)

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return gradient * (x.abs() < 2 * ctx.bound), None
"""
GRADIENTS: dict[str, Habit] = {
    "hook": Habit("$y = $x.tanh()\nif $y.requires_grad:\n    $y.register_hook(lambda gradient: gradient * 0.1)"),
    "hook_in_training": Habit(
        """
        $y = $x.tanh()
        if self.training and $y.requires_grad:
            $y.register_hook(lambda gradient: gradient.clamp(-1, 1))
        """
    ),
    "hook_on_the_value_read": Habit(
        "if $x.requires_grad:\n    $x.register_hook(lambda gradient: -gradient)\n$y = $x * 1"
    ),
    "hook_on_a_parameter": Habit(
        "$y = $x * self.$m$v",
        "self.$m = nn.Parameter(torch.ones($c))\nself.$m.register_hook(lambda gradient: gradient * 0.1)",
        tensors=per_channel("$m"),
    ),
    "retained_gradient": Habit("$y = $x.tanh()\nif $y.requires_grad:\n    $y.retain_grad()"),
    "forward_hook": Habit(
        "$y = self.$m($x)",
        "self.$m = nn.Tanh()\nself.$m.register_forward_hook(lambda module, given, made: made * 2)",
    ),
    "backward_hook": Habit(
        "$y = self.$m($x)",
        "self.$m = nn.Tanh()\nself.$m.register_full_backward_hook(lambda module, given, made: (given[0] * 0.1,))",
    ),
    "detached": Habit("$y = $x + (0.5 * $x).detach()"),
    "detached_in_training": Habit("$y = $x + (($x * $x).detach() if self.training else $x * $x)"),
    "straight_through": Habit("$y = $x + (torch.round($x) - $x).detach()"),
    "through_data": Habit("$y = $x + 0.5 * $x.data"),
    "without_gradients": Habit("with torch.no_grad():\n    gate = torch.sigmoid($x)\n$y = $x * gate"),
    "gradients_by_mode": Habit(
        "with torch.set_grad_enabled(self.training):\n    gate = torch.sigmoid($x)\n$y = $x * gate"
    ),
    "no_gradient_decorator": Habit(
        "$y = $x * gated($x)", above="@torch.no_grad()\ndef gated(x):\n    return torch.sigmoid(x)"
    ),
    "own_function": Habit("$y = Scaled.apply($x)", above=SCALED),
    "own_function_with_context": Habit("$y = Clipped.apply($x, 0.5)", above=CLIPPED),
    "checkpointed": Habit("$y = torch.utils.checkpoint.checkpoint(torch.tanh, $x, use_reentrant=False)"),
    "checkpointed_layer": Habit(
        "$y = torch.utils.checkpoint.checkpoint(self.$m, $x, use_reentrant=False) if self.training else self.$m($x)",
        "self.$m = $layer",
        tensors=LAYER,
    ),
    "frozen_parameter": Habit(
        "$y = $x * self.$m$v",
        "self.$m = nn.Parameter(torch.ones($c), requires_grad=False)",
        tensors=per_channel("$m"),
    ),
    "frozen_layer": Habit("$y = self.$m($x)", "self.$m = $layer\nself.$m.requires_grad_(False)", tensors=LAYER),
}
TIES: dict[str, Habit] = {
    "one_storage": Habit(
        "$y = $x * self.$m$v + self.${m}_b$v",
        "self.$m = nn.Parameter(torch.ones($c))\nself.${m}_b = nn.Parameter(self.$m.data)",
        tensors=per_channel("$m", "${m}_b"),
    ),
    "a_view_of_a_storage": Habit(
        "$y = $x * self.$m$v + self.${m}_b$v",
        "self.$m = nn.Parameter(torch.ones($c))\nself.${m}_b = nn.Parameter(self.$m.data.view(-1))",
        tensors=per_channel("$m", "${m}_b"),
    ),
    "a_buffer_over_a_parameter": Habit(
        "$y = $x * self.$m$v + self.${m}_b$v",
        "self.$m = nn.Parameter(torch.ones($c))\nself.register_buffer('${m}_b', self.$m.detach())",
        tensors=per_channel("$m", "${m}_b"),
    ),
    "two_names": Habit(
        "$y = $x * self.$m$v + self.${m}_b$v",
        "self.$m = nn.Parameter(torch.ones($c))\nself.${m}_b = self.$m",
        tensors=per_channel("$m", "${m}_b"),
    ),
    "one_storage_of_two_layers": Habit(
        "$y = self.$m($x) + 0.1 * self.${m}_b($x).tanh()",
        "self.$m, self.${m}_b = $layer, $layer\nself.${m}_b.weight = nn.Parameter(self.$m.weight.data)",
        tensors=(*LAYER, ("${m}_b.weight", "k"), ("${m}_b.bias", "o")),
    ),
    "one_module_twice": Habit("$y = self.${m}_b(self.$m($x))", "self.$m = nn.Dropout(0.1)\nself.${m}_b = self.$m"),
}
