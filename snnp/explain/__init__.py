"""`snnp explain`: what a spline model learned, what its filters are worth, and how few of them suffice.

anatomy          the energy of each atom taken apart; what each filter contributes
material         the structures on which a model is explained
filter_curves    every filter with units, over the distances and angles that occur
pruning          filters taken out, the readout refitted, smaller models
elements         which filters each element uses, and how alike elements are
two_models       two models side by side
other_pictures   of parts, atoms, removal and elements
explanation      all of it as a report
"""

from snnp.explain.anatomy import Anatomy, Typical, spline_model
from snnp.explain.elements import Elements
from snnp.explain.explanation import PAGES, Explained, explain
from snnp.explain.filter_curves import FilterCurves
from snnp.explain.material import Material, material_for
from snnp.explain.pruning import Removal, Stage, eliminate, filter_name, pruned

__all__ = [
    "PAGES",
    "Anatomy",
    "Elements",
    "Explained",
    "FilterCurves",
    "Material",
    "Removal",
    "Stage",
    "Typical",
    "eliminate",
    "explain",
    "filter_name",
    "material_for",
    "pruned",
    "spline_model",
]
