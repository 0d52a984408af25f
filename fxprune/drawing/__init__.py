"""Pictures of a network: its operations in order, coloured by channel group, with pins marked."""

from fxprune.drawing.drawing import DrawnNode, draw_network
from fxprune.drawing.svg import as_svg

__all__ = ["DrawnNode", "as_svg", "draw_network"]
