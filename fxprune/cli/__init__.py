"""The command line: turns words into calls of the functions of :mod:`fxprune`.

The options of ``fxprune compile`` come from the table in :mod:`fxprune.options`, and so does the way each is read:

>>> from fxprune.cli.options import plan_options, plan_parameters
>>> [parameter.name for parameter in plan_parameters()][:3]
['ratio', 'budget', 'criterion']
>>> plan_options({"ratio": ["layer1.*=0.2", "layer2.*=0.5"], "round_to": ["8"], "exclude": []})
{'ratio': {'layer1.*': 0.2, 'layer2.*': 0.5}, 'round_to': 8}
"""

from fxprune.cli.application import app, main

__all__ = ["app", "main"]
