"""Plots (Matplotlib): network inputs, evaluation results, and the trials of a search.

Every plot uses its own Figure object instead of pyplot's global state, so that drawing is thread-safe.
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
