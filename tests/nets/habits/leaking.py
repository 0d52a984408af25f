"""Ways for a size to leave tracked numbers: what the number does then hangs on the batch, the length or the width."""

from __future__ import annotations

from tests.nets.habits.habit import Habit

# Each is a number made of the size ``n``; the value is multiplied by one plus a tenth of it.
EXPRESSIONS = """
n >> 1
n & 4
n | 1
n ^ 3
~n
n << 1
-n
+n
n // 2
n % 3
n ** 2 % 7
5 % n
7 // n
2 ** n % 5
divmod(n, 3)[1]
pow(n, 2, 7)
round(n / 2)
round(n, -1)
abs(n - 4)
float(n)
int(n * 0.4)
int(n)
bool(n - 1)
n == 5
n in (1, 5)
n in {2: 0}
n > 4 and 2
not n - 1
1 if n > 1 else 3
{1: 1, 5: 2}.get(n, 3)
[3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3][n]
(3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3)[n]
range(40)[n]
'3141592653589793238'[n] == '1'
len([1, 2, 3, 4, 5, 6][n:])
len([1, 2, 3, 4, 5, 6][:n])
len([1, 2, 3, 4, 5, 6][-n:])
len([0] * n)
len('ab' * n)
len(range(n))
len(range(0, 20, n))
len(list(range(n)))
sum(1 for _ in range(n))
sum([1] * n)
max(n, 3)
min([n, 3])
sorted([n, 3])[0]
len(str(n))
int(str(n)) // 2
len(repr(n))
len(f'{n:b}')
int('%d' % n) // 3
len('{}'.format(n))
len('x'.ljust(n))
len('x'.zfill(n))
hash(n) % 5
bin(n).count('1')
n.bit_length()
n.bit_count()
n.__index__() // 2
n.real // 2
n.numerator // 2
n.conjugate() // 2
n.as_integer_ratio()[0] // 2
n.to_bytes(2, 'big')[1] // 2
len(bytes(n))
len(bytearray(n))
complex(n).real
chr(n + 65) == 'F'
operator.index(n) // 2
operator.mul(n, 2)
operator.and_(n, 4)
operator.itemgetter(n)(range(40))
math.gcd(n, 4)
math.lcm(n, 2)
math.isqrt(n)
math.sqrt(n)
math.log2(n)
math.ceil(n / 3)
math.floor(n / 3)
math.comb(n, 1)
math.factorial(min(n, 4))
math.prod([n, 2])
math.fsum([n, 2])
math.hypot(n, 2)
math.fmod(n, 3)
math.isclose(n, 5)
math.copysign(1, n - 4)
math.trunc(n / 2)
int(np.maximum(n, 3)) // 2
int(np.array([n])[0] // 2)
int(np.arange(n).sum()) % 5
float(np.sqrt(n))
np.arange(20)[n].item()
int(np.int64(n)) // 2
np.ones(n).sum()
int(np.clip(n, 2, 6))
np.linspace(0, 1, n + 1)[1].item()
len(list(itertools.islice(range(99), n)))
len(list(itertools.repeat(1, n)))
len(list(itertools.combinations(range(min(n, 6)), 2)))
sum(itertools.islice(itertools.count(), n)) % 7
slice(n).indices(9)[1]
len(collections.deque(range(9), maxlen=n))
len(dict.fromkeys(range(n)))
len(set(range(n)))
len(list(zip(range(n), range(4))))
len(list(enumerate(range(n))))
float(fractions.Fraction(n, 3))
float(decimal.Decimal(int(n)))
float(decimal.Decimal(n))
random.Random(n).random()
json.dumps(n) == '5'
struct.pack('b', n)[0] // 2
array.array('i', [n])[0] // 2
copy.copy(n) // 2
copy.deepcopy([n])[0] // 2
statistics.mean([n, 2])
functools.reduce(lambda a, b: a * b, [n, 2])
heapq.nsmallest(n, range(9))[-1]
bisect.bisect([1, 4, 9], n)
next(i for i in range(99) if i * i >= n)
(lambda k: k // 2)(n)
torch.tensor(n).item() // 2
torch.ones(n).sum().item()
torch.arange(n).max().item()
int(torch.full((1,), n)) // 2
isinstance(n, int) + 0
type(n) is int
helped(n)
helped_loop(n)
helped_match(n)
helped_try(n)
helped_division(n)
helped_view(n)
helped_set(n)
""".strip().splitlines()
HELPERS = """
def helped(n):
    if n < 2:
        return 3
    return 1 if n < 4 else 2


def helped_loop(n):
    k = 0
    while n > 1:
        n, k = n // 2, k + 1
    return k


def helped_match(n):
    match n:
        case 1:
            return 3
        case 2 | 4:
            return 1
    return 2


def helped_try(n):
    try:
        return [1, 2, 3, 4][n]
    except IndexError:
        return 7


def helped_division(n):
    try:
        k = 6 // (n - 5)
    except ZeroDivisionError:
        k = 4
    return k


def helped_view(n):
    try:
        torch.ones(n).view(-1, 2)
    except RuntimeError:
        return 3
    return 1


def helped_set(n):
    return len({n, 2, 5})
"""
# Other ways to ask for the size of dim 0.
READINGS = """
$x.shape[0]
$x.size(0)
$x.size(dim=0)
$x.size()[0]
len($x)
int($x.shape[0])
tuple($x.shape)[0]
list($x.size())[0]
torch.Size($x.shape)[0]
next(iter($x.shape))
sum(1 for _ in $x)
$x.unbind(0).__len__()
$x.shape[-$x.dim()]
$x.shape[:1].numel()
$x.numel() // $x[0].numel()
$x.shape.numel() // $x[0].numel()
$x.nbytes // ($x[0].numel() * $x.element_size())
$x.stride(0) * $x.shape[0] // $x.stride(0)
""".strip().splitlines()
# A size that no channel decides: the batch, and the length of tokens or the width of an image.
SIZES: dict[str, Habit] = {
    **{
        f"batch: {text}": Habit(f"n = $x.shape[0]\n$y = $x * (1 + ({text}) / 10)", above=HELPERS)
        for text in EXPRESSIONS
    },
    **{
        f"length: {text}": Habit(f"n = $n\n$y = $x * (1 + ({text}) / 10)", above=HELPERS, ranks=(4, 3))
        for text in EXPRESSIONS
    },
    **{f"read as {text}": Habit(f"n = {text}\n$y = $x * (1 + (n // 2) / 10)") for text in READINGS},
}
BRANCHES: dict[str, Habit] = {
    "batch_of_one": Habit("$y = $x * 0.5 if $x.shape[0] == 1 else $x"),
    "batch_above_one": Habit("$y = $x.tanh() if $x.shape[0] > 1 else $x"),
    "large_batch": Habit("if $x.shape[0] > 4:\n    $x = $x.sigmoid()\n$y = $x"),
    "even_batch": Habit("$y = $x if $x.shape[0] % 2 == 0 else $x * 2"),
    "loop_over_rows": Habit("$y = torch.stack([row.tanh() for row in $x])"),
    "loop_over_the_batch": Habit("$y = torch.cat([$x[i : i + 1].tanh() for i in range($x.shape[0])])"),
    "chunks_of_four": Habit("$y = torch.cat([part.tanh() for part in $x.split(4)])"),
    "halves": Habit("$y = torch.cat([part.tanh() for part in $x.chunk(2)])"),
    "mean_of_batch": Habit("$y = $x - $x.mean(0, keepdim=True) / $x.shape[0]"),
    "expanded": Habit("$y = $x + torch.ones(1, dtype=$x.dtype).expand($x.shape[0], *[1] * ($x.dim() - 1))"),
    "asserted": Habit("assert $x.shape[0] < 9\n$y = $x * 2"),
    "raised": Habit("if $x.shape[0] > 9:\n    raise ValueError('too many')\n$y = $x * 2"),
    "drop_path": Habit(
        """
        $y = $x
        if self.training:
            keep = $x.new_empty(($x.shape[0],) + (1,) * ($x.dim() - 1)).bernoulli_(0.8)
            $y = $x / 0.8 * keep
        """
    ),
}
