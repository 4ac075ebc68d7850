"""Is an explanation true of the model: measures that compare it with what the model does.

`compare` runs a set of them on a set of explainers. By what they ask:

    curves           does the score fall when what matters most is taken away?
    infidelity       are changes of the score predicted, are maps stable?
    sensitivity_n    do sums of attributions predict what it does to take features away?
    localisation     is the map on the object?
    randomization    does the map change when the weights are random?
    class_sensitivity    does it change with the class?
    retraining       does a model that is trained again do without what matters?
    ground_truth     is the attribution right, where the truth is known?
    impossibility    what can no complete and linear attribution tell?
"""

from kzoo.explain.faithfulness.class_sensitivity import class_sensitivity
from kzoo.explain.faithfulness.compare import compare, default_measures
from kzoo.explain.faithfulness.comparison import Comparison, Measure
from kzoo.explain.faithfulness.curves import (
    PerturbationCurve,
    deletion,
    insertion,
    perturbation_accuracy,
    perturbation_curve,
    pixel_perturbation,
)
from kzoo.explain.faithfulness.ground_truth import (
    box_iou,
    functional_precision,
    top_k_precision,
    uniform_score,
)
from kzoo.explain.faithfulness.impossibility import (
    equal_attribution_pairs,
    impossibility_benchmark,
    model_query_test,
    sensitivity_specificity,
)
from kzoo.explain.faithfulness.infidelity import infidelity, max_sensitivity
from kzoo.explain.faithfulness.localisation import (
    attribution_localisation,
    box_mask,
    energy_pointing_game,
    pointing_game,
    top_k_overlap,
)
from kzoo.explain.faithfulness.randomization import (
    RandomizationReport,
    map_similarity,
    model_randomization,
)
from kzoo.explain.faithfulness.retraining import attribution_leakage, diff_roar, roar
from kzoo.explain.faithfulness.sensitivity_n import sensitivity_n

__all__ = [
    "Comparison",
    "Measure",
    "PerturbationCurve",
    "RandomizationReport",
    "attribution_leakage",
    "attribution_localisation",
    "box_iou",
    "box_mask",
    "class_sensitivity",
    "compare",
    "default_measures",
    "deletion",
    "diff_roar",
    "energy_pointing_game",
    "equal_attribution_pairs",
    "functional_precision",
    "impossibility_benchmark",
    "infidelity",
    "insertion",
    "map_similarity",
    "max_sensitivity",
    "model_query_test",
    "model_randomization",
    "perturbation_accuracy",
    "perturbation_curve",
    "pixel_perturbation",
    "pointing_game",
    "roar",
    "sensitivity_n",
    "sensitivity_specificity",
    "top_k_overlap",
    "top_k_precision",
    "uniform_score",
]
