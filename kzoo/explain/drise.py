"""D-RISE: RISE for object detectors; a mask counts by the best detection that it leaves.

    w_i = max_j s(d_t, d_j(x * M_i)),   s(d_t, d_j) = IoU(L_t, L_j) cos(P_t, P_j) O_j   (equation 2)
    S(x) = 1 / (N E[M]) sum_i w_i M_i

"Black-box Explanation of Object Detectors via Saliency Maps", Petsiuk, Jain, Manjunatha, Morariu,
Mehra, Ordonez, Saenko, 2020, arXiv 2006.03204. L is the box, P the class probabilities, and O the
objectness of a detection.

Deviations: divided by N E[M], as RISE, which leaves the map the same but for its scale; masks as in
`RISE`, shared by the images of a batch. Detectors without an objectness have O = 1.
"""

import keras
import tensorflow as tf

from kzoo.explain.rise import RISE
from kzoo.explain.scores import class_score
from kzoo.papers import Example, Paper, component

PAPER = Paper(
    title="Black-box Explanation of Object Detectors via Saliency Maps",
    authors=(
        "Vitali Petsiuk", "Rajiv Jain", "Varun Manjunatha", "Vlad I. Morariu", "Ashutosh Mehra",
        "Vicente Ordonez", "Kate Saenko",
    ),
    year=2020,
    arxiv="2006.03204",
)  # fmt: skip


def read_detections(outputs):
    """The default `detections`: what a detector gives, as (boxes, probabilities, objectness).

    Args:
        outputs: dict with `boxes` and `probabilities`, and `objectness` if there is one, or a list
            of them in this order.
    """
    names = ("boxes", "probabilities", "objectness")
    if isinstance(outputs, dict) and outputs.keys() <= set(names) and len(outputs) > 1:
        return [outputs.get(name) for name in names]
    if isinstance(outputs, list | tuple) and len(outputs) in (2, 3):
        return [*outputs, None][:3]
    raise ValueError(
        "A detector gives `boxes`, `probabilities` and, if it has one, `objectness`, as a dict or "
        f"in this order. Received: {keras.tree.map_structure(lambda x: x.shape, outputs)}. Pass "
        "`detections`, a function of the model's outputs that returns these three."
    )


def intersection_over_union(a, b):
    """Intersection over union of boxes of corners (x0, y0, x1, y1), which broadcast: [..., 4]."""
    low, high = tf.maximum(a[..., :2], b[..., :2]), tf.minimum(a[..., 2:], b[..., 2:])
    overlap = tf.reduce_prod(tf.nn.relu(high - low), -1)
    areas = [tf.reduce_prod(tf.nn.relu(each[..., 2:] - each[..., :2]), -1) for each in (a, b)]
    return tf.math.divide_no_nan(overlap, areas[0] + areas[1] - overlap)


def detection_similarity(box, probabilities, boxes, all_probabilities, objectness):
    """How much each detection of an image is like one other (equation 2).

    Args:
        box: [batch, 4], corners.
        probabilities: [batch, classes].
        boxes: [batch, n, 4].
        all_probabilities: [batch, n, classes].
        objectness: [batch, n].

    Returns:
        [batch, n], in [0, objectness].
    """
    unit = tf.math.l2_normalize(probabilities, -1)
    cosine = tf.einsum("bc,bnc->bn", unit, tf.math.l2_normalize(all_probabilities, -1))
    return intersection_over_union(box[:, tf.newaxis], boxes) * cosine * objectness


def _whole_image(outputs):
    """A classifier as a detector of one thing of each class, as large as the image."""
    probabilities = tf.nn.softmax(tf.cast(outputs, tf.float32))
    boxes = tf.ones_like(probabilities[..., tf.newaxis]) * [0.0, 0.0, 1.0, 1.0]
    return boxes, tf.linalg.diag(probabilities), probabilities


@component(
    PAPER, example=Example(kwargs=lambda: {"samples": 8, "grid": 3, "detections": _whole_image})
)
class DRISE(RISE):
    """A map of what a detection depends on, its surroundings included, for any detector.

    Args:
        model: a detector: it maps images [batch, height, width, channels] to boxes, class
            probabilities and, if it has one, the objectness of n detections for each image, n
            being the same for all; those that are none have probabilities or objectness 0.
        samples: number N of masks. Defaults to 5000, as in the paper.
        grid: cells of a mask in each direction. Defaults to 16.
        probability, baseline, seed, rows: see `RISE`.
        detections: takes the model's outputs to (boxes [batch, n, 4] as two opposite corners,
            smaller coordinates first; probabilities [batch, n, classes]; objectness [batch, n] or
            None). Defaults to `read_detections`.
        request: "box" and "class_probabilities" where these come with each request, [batch, 4] and
            [batch, classes], and say which detection is meant, for example one that the detector
            has missed; `target` is then not used. Defaults to neither.

    `target` is the number of the detection in the model's answer to the whole image; -1 the one
    with the highest objectness times probability, -2 the next.

    Returns (when called): `attributions` [batch, height, width]; `score`, the similarity to the
    most similar detection in the whole image; `target`, `box` and `class_probabilities` of the
    detection explained; `predictions`.

    Reference:
        Petsiuk et al. (2020), section 3, arxiv.org/abs/2006.03204
    """

    def __init__(
        self,
        model,
        samples=5000,
        grid=16,
        probability=0.5,
        baseline=0.0,
        seed=0,
        detections=None,
        request=(),
        rows="auto",
    ):
        super().__init__(model, samples, grid, probability, baseline, seed, class_score, rows)
        self.detections = detections or read_detections
        if set(request) not in ({"box", "class_probabilities"}, set()):
            raise ValueError(
                f'`request` must be ["box", "class_probabilities"] or empty. Received: {request!r}'
            )
        self.request = tuple(request)

    def request_specs(self, spec):
        if not self.request:
            return {}
        return {
            "box": tf.TensorSpec([None, 4], tf.float32, "box"),
            "class_probabilities": tf.TensorSpec([None, None], tf.float32, "class_probabilities"),
        }

    def attribute(self, values, target, inputs, box=None, class_probabilities=None):
        outputs = self.predict(values)
        found = _with_objectness(self.detections(outputs))
        if box is None:
            confidence = found[2] * tf.reduce_max(found[1], -1)
            _, target = class_score(confidence, target)
            box, class_probabilities = (tf.gather(each, target, batch_dims=1) for each in found[:2])
        explained = {"box": box, "class_probabilities": class_probabilities}
        return {
            "attributions": self.average_masks(values, explained),
            "score": tf.reduce_max(detection_similarity(*explained.values(), *found), -1),
            "target": target,
            **explained,
            "predictions": outputs,
        }

    def mask_weights(self, images, box, class_probabilities):
        found = _with_objectness(self.detections(self.predict(images)))
        return tf.reduce_max(detection_similarity(box, class_probabilities, *found), -1)

    def get_config(self):
        return {**super().get_config(), "request": list(self.request)}


def _with_objectness(detections):
    boxes, probabilities, objectness = detections
    if objectness is None:
        objectness = tf.ones_like(probabilities[..., 0])
    return boxes, probabilities, objectness
