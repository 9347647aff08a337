"""The public functions: what they mean, and their shortest way to the kernel."""

from __future__ import annotations

from typing import Any

import numpy as np

from logitloss._backends import compute
from logitloss._call import GRAD_AND_HESS, LOSS, VALUE_AND_GRAD
from logitloss._kernel import kernel
from logitloss._libraries import hidden_from_autograph

# Looked up once: in the shortest calls an attribute of a module is a tenth of the time.
ndarray = np.ndarray
kernel_loss = kernel.loss
kernel_compute = kernel.compute


@hidden_from_autograph
def weighted_cross_entropy_with_logits(
    labels: Any,
    logits: Any,
    pos_weight: Any,
    name: str | None = None,
    *,
    weight: Any = None,
    reduction: str = "none",
    out: Any = None,
) -> Any:
    r"""Binary cross-entropy from logits, with the cost of positives scaled by `pos_weight`.

    For ``x = logits``, ``z = labels`` and ``q = pos_weight``, each element is

    .. math:: q z \operatorname{softplus}(-x) + (1 - z) \operatorname{softplus}(x),
        \qquad \operatorname{softplus}(v) = \log(1 + e^v)

    A ``pos_weight > 1`` makes a missed positive cost more than a false alarm. This leads to fewer
    false negatives, and a higher recall. A ``pos_weight < 1`` leads to fewer false positives, and a
    higher precision.

    Parameters
    ----------
    labels : array or array-like
        Targets, usually in [0, 1]. Soft labels, between 0 and 1, are allowed. Integer and boolean
        labels take the dtype of `logits`.
    logits : array or array-like
        Log-odds of the positive class, any real numbers, with exactly the shape of `labels`.
        Integers are promoted to the default floating dtype.
    pos_weight : array, array-like or float
        Weight of the positive term, non-negative. A scalar, one value per class (the last axis),
        or any shape that broadcasts to that of `logits` without enlarging it. It is cast to the
        dtype of the result, which it never promotes.
    name : str, optional
        Name of the operation, where the library can show one (PyTorch profiler, JAX named scope,
        Dask layer, TensorFlow name scope). NumPy ignores it.
    weight : array, array-like or float, optional
        Weight of each element, broadcast and cast like `pos_weight`. An element of weight zero
        contributes exactly zero, whatever its label and logit hold, even NaN. Use it to mask
        padding.
    reduction : {"none", "sum", "mean", "weighted_mean"}
        ``"none"`` keeps the shape of `logits`. ``"sum"`` adds the weighted losses. ``"mean"``
        divides the sum by the number of elements, ``"weighted_mean"`` by the sum of the weights.
    out : array, optional
        Where to write the result, an array of its exact shape and dtype. It may be `labels` or
        `logits` itself. JAX, Dask and TensorFlow arrays cannot be written to.

    Returns
    -------
    array
        The loss, an array of the library and on the device of the inputs. It has the dtype to
        which the floating dtypes among `labels` and `logits` promote. NumPy input gives a plain
        array, or a scalar if the result has no dimensions.

    Raises
    ------
    TypeError
        If an argument is not real, is a masked array, or belongs to another library than the
        others.
    ValueError
        If the shapes of `labels` and `logits` differ, a weight does not broadcast, devices differ,
        `reduction` is unknown, or `out` does not fit. In this case nothing is written to `out`.

    See Also
    --------
    sigmoid_cross_entropy_with_logits : The same loss with ``pos_weight = 1``.
    value_and_grad : Loss and gradient in one pass.
    grad_and_hess : Gradient and Hessian in one pass.

    Notes
    -----
    Cross-entropy reads a logit as the probability ``p = 1 / (1 + exp(-x))``:

    .. math:: -q z \log p - (1 - z) \log(1 - p)

    Both logarithms fail where the sigmoid rounds to 0 or 1. Since ``1 - p = 1 / (1 + exp(x))``,
    they are softplus functions, ``-log p = softplus(-x)`` and ``-log(1 - p) = softplus(x)``. This
    gives the form at the top. With ``softplus(v) = max(v, 0) + log1p(exp(-|v|))``, which splits off
    the part that grows, and with the logarithms collected, it becomes

    .. math:: (1 - z) \max(x, 0) + q z \max(-x, 0) + l \log(1 + e^{-|x|}),
        \qquad l = (1 - z) + q z

    No exponential overflows. For labels in [0, 1] no term is negative, so nothing cancels. The
    shorter form that TensorFlow documents, ``(1 - z) x + l (log1p(exp(-|x|)) + max(-x, 0))`` with
    ``l = 1 + (q - 1) z``, is equal on paper. For confident negatives it subtracts nearly equal
    numbers, and it rounds a small ``q`` away.

    *Accuracy.* For NumPy float32 and float64 and labels in [0, 1], the loss is within 3 ulp of the
    exact value. For labels 0 and 1 with ``pos_weight = 1`` it is within 1 ulp, or 1.5 on a
    processor without fused multiply-add. Subnormal results are as accurate. float16 and bfloat16
    are computed in float32 and rounded once. Other libraries add the errors of their own ``exp``
    and ``log1p``. Sums are accumulated in float64, if the device has it.

    *Special values.* A term whose coefficient is zero is zero, even if the logit is infinite:
    ``logits = -inf`` with ``labels = 0`` costs 0. NaN in `labels`, `logits` or `pos_weight` gives
    NaN in that element. The mean of no elements is NaN, and so is the weighted mean of weights that
    sum to zero. None of this warns.

    *Threads.* Several threads compute large NumPy arrays (see `set_num_threads`). Their number
    never changes a bit of the result.

    References
    ----------
    .. [1] M. Mächler, "Accurately computing log(1 - exp(-\|a\|))", 2012,
       https://cran.r-project.org/package=Rmpfr/vignettes/log1mexp-note.pdf

    Examples
    --------
    >>> import numpy as np
    >>> from logitloss import weighted_cross_entropy_with_logits
    >>> labels = np.array([1.0, 0.0, 1.0, 0.0])
    >>> logits = np.array([1.5, -2.0, -0.5, -np.inf])
    >>> weighted_cross_entropy_with_logits(labels, logits, 3.0).round(4)
    array([0.6042, 0.1269, 2.9222, 0.    ])

    One weight per class, and a padded row left out of the mean:

    >>> labels = np.array([[1, 0], [0, 1], [0, 0]])
    >>> logits = np.array([[2.0, -1.0], [0.5, 0.0], [np.nan, np.nan]])
    >>> mask = np.array([[1], [1], [0]])
    >>> loss = weighted_cross_entropy_with_logits(
    ...     labels, logits, [1.0, 4.0], weight=mask, reduction="weighted_mean"
    ... )
    >>> round(float(loss), 4)
    1.0467
    """
    # The kernel does everything. It returns None if something has to be converted or refused.
    if type(logits) is ndarray:
        result = kernel_loss(labels, logits, pos_weight, weight, reduction, out, name)
        if result is not None:
            return result
    return compute(LOSS, labels, logits, pos_weight, weight, reduction, out, name)[0]


@hidden_from_autograph
def sigmoid_cross_entropy_with_logits(
    labels: Any,
    logits: Any,
    name: str | None = None,
    *,
    weight: Any = None,
    reduction: str = "none",
    out: Any = None,
) -> Any:
    r"""Binary cross-entropy from logits.

    For ``x = logits`` and ``z = labels``, each element is

    .. math:: z \operatorname{softplus}(-x) + (1 - z) \operatorname{softplus}(x),
        \qquad \operatorname{softplus}(v) = \log(1 + e^v)

    Parameters
    ----------
    labels, logits : array or array-like
        Targets, usually in [0, 1], and log-odds of the positive class, of the same shape.
    name, weight, reduction, out
        As in `weighted_cross_entropy_with_logits`.

    Returns
    -------
    array
        The loss, with the same bits as that of `weighted_cross_entropy_with_logits` with
        ``pos_weight = 1``.

    Raises
    ------
    TypeError, ValueError
        As in `weighted_cross_entropy_with_logits`.

    See Also
    --------
    weighted_cross_entropy_with_logits : The same loss with a weight on positives. Its page has
        the derivation, the accuracy and the special values.

    Notes
    -----
    The loss is computed as ``(1 - z) max(x, 0) + z max(-x, 0) + log1p(exp(-|x|))``.

    Examples
    --------
    >>> import numpy as np
    >>> from logitloss import sigmoid_cross_entropy_with_logits
    >>> sigmoid_cross_entropy_with_logits(np.array([0.0, 1.0, 0.5]), np.array([1.0, 1.0, 0.0]))
    array([1.31326169, 0.31326169, 0.69314718])
    """
    return weighted_cross_entropy_with_logits(
        labels, logits, 1.0, name, weight=weight, reduction=reduction, out=out
    )


@hidden_from_autograph
def value_and_grad(
    labels: Any,
    logits: Any,
    pos_weight: Any = 1.0,
    *,
    weight: Any = None,
    reduction: str = "none",
    out: Any = None,
) -> tuple[Any, Any]:
    r"""Loss and its gradient with respect to the logits, in one pass.

    The loss is that of `weighted_cross_entropy_with_logits`; for ``x = logits``, ``z = labels``,
    ``q = pos_weight`` and the logistic function ``s(v) = 1 / (1 + exp(-v))``, its gradient is

    .. math:: (1 - z) \, s(x) - q z \, s(-x)

    Parameters
    ----------
    labels, logits, pos_weight, weight
        As in `weighted_cross_entropy_with_logits`.
    reduction : {"none", "sum", "mean", "weighted_mean"}
        How the loss is reduced. The gradient is that of the reduced loss. It has the shape of
        `logits` for every reduction.
    out : pair of arrays, optional
        Where to write the loss and the gradient. The two must not share memory.

    Returns
    -------
    loss : array
    gradient : array
        In the library, on the device and in the dtype that the loss alone would have.

    Raises
    ------
    TypeError, ValueError
        As in `weighted_cross_entropy_with_logits`.

    See Also
    --------
    grad_and_hess : Gradient and Hessian in one pass.

    Notes
    -----
    ``s(-x)`` is computed directly, and not as ``1 - s(x)``, which is zero for confident positives.
    For NumPy float32 and float64 the gradient is within 3 ulp, in units of the sum of the
    magnitudes of its two terms. At ``x = 0`` it is exactly ``(1 - z) / 2 - q z / 2``, and at
    infinite logits it is 0, 1 or ``-q``. Elements of weight zero have a gradient of exactly zero,
    even in a weighted mean whose weights are all zero.

    Examples
    --------
    >>> import numpy as np
    >>> from logitloss import value_and_grad
    >>> loss, gradient = value_and_grad(np.array([1.0, 0.0]), np.array([0.0, 0.0]), 3.0)
    >>> gradient
    array([-1.5,  0.5])
    >>> loss, gradient = value_and_grad([1, 0], [0.0, 0.0], 3.0, reduction="mean")
    >>> round(float(loss), 4), gradient.tolist()
    (1.3863, [-0.75, 0.25])
    """
    if type(logits) is ndarray:
        results = kernel_compute(VALUE_AND_GRAD, labels, logits, pos_weight, weight, reduction, out)
        if results is not None:
            return results
    return compute(VALUE_AND_GRAD, labels, logits, pos_weight, weight, reduction, out)


@hidden_from_autograph
def grad_and_hess(
    labels: Any,
    logits: Any,
    pos_weight: Any = 1.0,
    *,
    weight: Any = None,
    out: Any = None,
) -> tuple[Any, Any]:
    r"""Gradient and diagonal Hessian with respect to the logits, in one pass.

    For ``x = logits``, ``z = labels``, ``q = pos_weight`` and the logistic function
    ``s(v) = 1 / (1 + exp(-v))``, these are

    .. math:: (1 - z) \, s(x) - q z \, s(-x), \qquad
        ((1 - z) + q z) \, s(x) \, s(-x)

    each multiplied by `weight`. Gradient boosting asks a custom objective for these two.

    Parameters
    ----------
    labels, logits, pos_weight, weight
        As in `weighted_cross_entropy_with_logits`.
    out : pair of arrays, optional
        Where to write the gradient and the Hessian. The two must not share memory.

    Returns
    -------
    gradient, hessian : array
        With the shape of `logits`, in the library, on the device and in the dtype that the loss
        would have.

    Raises
    ------
    TypeError, ValueError
        As in `weighted_cross_entropy_with_logits`.

    See Also
    --------
    value_and_grad : Loss and gradient in one pass.

    Notes
    -----
    The loss of an element depends on its own logit alone, so the Hessian is diagonal. For labels in
    [0, 1] it is never negative, and at infinite logits it is zero. For NumPy float32 and float64 it
    is within 3 ulp.

    Examples
    --------
    >>> import numpy as np
    >>> from logitloss import grad_and_hess
    >>> gradient, hessian = grad_and_hess(np.array([1.0, 0.0]), np.array([0.0, -np.inf]), 3.0)
    >>> gradient, hessian
    (array([-1.5,  0. ]), array([0.75, 0.  ]))
    """
    if type(logits) is ndarray:
        results = kernel_compute(GRAD_AND_HESS, labels, logits, pos_weight, weight, "none", out)
        if results is not None:
            return results
    return compute(GRAD_AND_HESS, labels, logits, pos_weight, weight, "none", out)
