"""Tools that know nothing of pruning: lazy imports, copies, paths, progress, files.

A part of a network is found by its path, even if a module uses its name itself:

>>> import torch
>>> from fxprune.util.paths import attribute, hold
>>> net = torch.nn.Module()
>>> hold(net, "block.train", torch.nn.ReLU())
>>> attribute(net, "block.train")
ReLU()
>>> callable(net.block.train), net.block.train is attribute(net, "block.train")
(True, False)
"""
