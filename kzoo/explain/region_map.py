"""Region maps: another explainer's attributions, averaged over regions of the image.

The idea of "XRAI: Better Attributions Through Regions", Kapishnikov, Bolukbasi, Viegas, Terry,
2019, arXiv 1906.02825: regions are ranked by the mean of the attributions in them.

Deviations: one segmentation (SLIC superpixels, computed in the graph) instead of several of
Felzenszwalb at different scales, and no growing of a mask region by region. The base is integrated
gradients from 0, where XRAI takes the mean of those from black and from white.
"""

import tensorflow as tf

from kzoo.explain.composition import base_config, make_base
from kzoo.explain.explainer import Explainer
from kzoo.explain.integrated_gradients import IntegratedGradients
from kzoo.explain.regions import Regions
from kzoo.papers import Example, Paper, component

PAPER = Paper(
    title="XRAI: Better Attributions Through Regions",
    authors=("Andrei Kapishnikov", "Tolga Bolukbasi", "Fernanda Viegas", "Michael Terry"),
    year=2019,
    arxiv="1906.02825",
)


@component(PAPER, example=Example(kwargs={"regions": 2}))
class RegionMap(Explainer):
    """The regions of the image that another explainer's attributions speak for.

    Args:
        model: a model of one input; see `Explainer`, as are `score` and `tap`.
        base: the explainer to average, see `make_base`. Defaults to `IntegratedGradients`.
        regions: see `Regions`. Defaults to superpixels, "slic".

    Returns (when called): `attributions` [batch, ...] without the channels, at each place the mean
    over its region of the base's, summed over the channels; and what the base gives besides.

    Reference:
        Kapishnikov et al. (2019), section 3, arxiv.org/abs/1906.02825
    """

    def __init__(self, model, base=None, regions="slic", score=None, tap=None):
        self.base = make_base(model, base or IntegratedGradients, score, tap)
        super().__init__(model, score=self.base.score, tap=self.base.tap)
        self.differentiates_inputs = self.base.differentiates_inputs
        self.regions = Regions(regions)

    def attribute(self, values, target, inputs):
        result = self.base.attribute(values, target, inputs)
        ids, attributions = self.regions.ids(values), result["attributions"]
        if attributions.shape.rank > ids.shape.rank:
            attributions = tf.reduce_sum(attributions, -1)
        if attributions.shape.rank != ids.shape.rank:
            raise ValueError(
                f"Regions of {ids.shape} do not divide attributions of {attributions.shape}."
            )
        batch, count = tf.shape(attributions)[0], self.regions.count(values.shape)
        ids = tf.broadcast_to(ids, tf.shape(attributions))
        first = count * tf.reshape(tf.range(batch), [-1] + [1] * (ids.shape.rank - 1))
        flat = tf.reshape(ids + first, [-1])
        means = tf.math.unsorted_segment_mean(tf.reshape(attributions, [-1]), flat, batch * count)
        spread = tf.reshape(tf.gather(means, flat), tf.shape(attributions))
        return {**result, "attributions": spread}

    def get_config(self):
        return {"base": base_config(self.base), "regions": self.regions.to_config()}
