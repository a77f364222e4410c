"""Plots: what networks are shown, what they scored, what a search found.

Every picture is drawn on a figure of its own, without pyplot's global state, so that any process and thread may draw.
"""

from twostream_ray.visualize.activation import activation_picture, png
from twostream_ray.visualize.motion import contact_sheet, flow_colour, thumbnail
from twostream_ray.visualize.parallel import parallel_coordinates_picture
from twostream_ray.visualize.report import class_accuracies_picture, reliability_picture
from twostream_ray.visualize.results import (
    accuracies_picture,
    confusion_picture,
    curves_picture,
    intervals_picture,
    weights_picture,
)
from twostream_ray.visualize.search import importance_picture, pareto_picture

__all__ = [
    "accuracies_picture",
    "activation_picture",
    "class_accuracies_picture",
    "confusion_picture",
    "contact_sheet",
    "curves_picture",
    "flow_colour",
    "importance_picture",
    "intervals_picture",
    "parallel_coordinates_picture",
    "pareto_picture",
    "png",
    "reliability_picture",
    "thumbnail",
    "weights_picture",
]
