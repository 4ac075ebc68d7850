"""Causal information flow from latent factors to the outputs of a classifier, by Monte Carlo.

    I(alpha; Y) = E_alpha sum_y p(y | do(alpha)) log( p(y | do(alpha)) / p(y) )
    p(y | do(alpha_i)) = 1/N_beta sum_j p(y | g(alpha_i, beta_ij))
    p(y) = 1/N_alpha sum_i p(y | do(alpha_i))

The factors are independent, so that an intervention and an observation have the same effect, and
the information flow of Ay and Polani (2008) is the mutual information.

"Generative causal explanations of black-box classifiers", O'Shaughnessy, Canal, Connor, Rozell,
Davenport, 2020, arXiv 2006.13913; equations 1 and 2, and the appendix on the sampled estimate.

Open choice: each alpha_i meets draws of beta of its own, as in the authors' code.
"""

import tensorflow as tf

# The exponential of it is 0 in float64 as well.
_LOG_ZERO = -1e4


def information_flow(log_probabilities):
    """The information flow of equation 2, estimated from samples; differentiable.

    It is exact on a grid of equally likely values, and 0 where p(y | do(alpha)) is the same for all
    alpha. Where few draws of beta stand for many it is too large, by up to about
    (classes - 1) / (2 N_beta).

    Args:
        log_probabilities: [N_alpha, N_beta, classes], log p(y | alpha_i, beta_ij); -inf for 0.

    Returns:
        Scalar in nats, between 0 and log(classes) but for rounding; float32, or float64 where the
        argument is.

    Reference:
        O'Shaughnessy et al. (2020), equation 2, arxiv.org/abs/2006.13913
    """
    log_p = tf.convert_to_tensor(log_probabilities)
    if log_p.shape.rank != 3:
        raise ValueError(
            "`log_probabilities` must have the shape [N_alpha, N_beta, classes]. "
            f"Received: {log_p.shape}"
        )
    log_p = _mean_probability(tf.maximum(_at_least_float32(log_p), _LOG_ZERO), axis=1)
    log_marginal = _mean_probability(log_p, axis=0)
    divergences = tf.reduce_sum(tf.exp(log_p) * (log_p - log_marginal), axis=-1)
    return tf.reduce_mean(divergences)


def class_log_probabilities(outputs, from_logits=False):
    """The logarithms of a classifier's probabilities.

    Args:
        outputs: [..., classes] probabilities, or [..., 1], the probability of the second of two
            classes.
        from_logits: whether they are the logits of a softmax, or of a sigmoid. Defaults to False.

    Returns:
        [..., classes], of at least two classes; in float32, or in float64 where the argument is.
    """
    outputs = _at_least_float32(tf.convert_to_tensor(outputs))
    if outputs.shape[-1] == 1:
        if from_logits:
            return tf.math.log_sigmoid(tf.concat([-outputs, outputs], axis=-1))
        return _finite_log(tf.concat([1 - outputs, outputs], axis=-1))
    return tf.nn.log_softmax(outputs) if from_logits else _finite_log(outputs)


def sample_interventions(intervened, num_alpha, num_beta, seed, dtype="float32"):
    """Draws latent vectors from a standard normal prior, some factors of which are held.

    Args:
        intervened: one bool for each of the d factors: whether it belongs to alpha.
        num_alpha: N_alpha, the number of draws of alpha.
        num_beta: N_beta, the number of draws of the other factors for each of them.
        seed: int32 [2], on which alone the draws depend.
        dtype: floating.

    Returns:
        [N_alpha, N_beta, d], equal along the second axis in the factors that are intervened on.
    """
    intervened = tf.convert_to_tensor(intervened, tf.bool)
    (factors,) = intervened.shape
    seeds = tf.random.split(seed, alg="philox")
    kind = {"dtype": dtype, "alg": "philox"}
    alpha = tf.random.stateless_normal([num_alpha, 1, factors], seeds[0], **kind)
    beta = tf.random.stateless_normal([num_alpha, num_beta, factors], seeds[1], **kind)
    return tf.where(intervened, alpha, beta)


def _mean_probability(log_p, axis):
    """log of the mean of exp(log_p)"""
    count = tf.cast(tf.shape(log_p)[axis], log_p.dtype)
    return tf.reduce_logsumexp(log_p, axis=axis) - tf.math.log(count)


def _finite_log(p):
    # A probability of 0 has the gradient 0 with this floor, and not NaN.
    return tf.math.log(tf.maximum(p, p.dtype.as_numpy_dtype(1e-37)))


def _at_least_float32(x):
    return x if x.dtype == tf.float64 else tf.cast(x, tf.float32)
