"""The pruned network as a copy of the user's model, of the same class: the result of ``keep_class=True``.

>>> import torch, fxprune
>>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)).eval()
>>> fxprune.compile(net, torch.randn(1, 4), 0.5, keep_class=True)[0]
Linear(in_features=4, out_features=4, bias=True)
"""

from fxprune.keeping.configuring import ConfigEdit, configure, fieldless, find_config_edit, without_fieldless
from fxprune.keeping.fitting import Held, Rules, fitted, in_words
from fxprune.keeping.running import check_lossless, give_values

__all__ = [
    "ConfigEdit",
    "Held",
    "Rules",
    "check_lossless",
    "configure",
    "fieldless",
    "find_config_edit",
    "fitted",
    "give_values",
    "in_words",
    "without_fieldless",
]  # fmt: skip
