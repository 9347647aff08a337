"""
JAX: one training step, several weights
=======================================

A logistic regression is fitted to scikit-learn's breast-cancer data for three values of
``pos_weight``. The training step is compiled by ``jax.jit``, and ``jax.vmap`` runs it for the three
values side by side.

The loss brings its own derivative. At the first step every logit is exactly 0, and positives get
their gradient there, too.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_breast_cancer
from sklearn.preprocessing import StandardScaler

from logitloss import weighted_cross_entropy_with_logits

POS_WEIGHTS = (0.1, 1.0, 10.0)
STEPS = 300
LEARNING_RATE = 0.3
L2_PENALTY = 0.03


# %%
# The step
# --------


class Model(NamedTuple):
    slopes: Any
    intercept: Any

    def logits(self, features: jax.Array) -> jax.Array:
        return features @ self.slopes + self.intercept


def load() -> tuple[jax.Array, jax.Array]:
    """Return standardized features, and labels (1 is malignant)."""
    features, is_benign = load_breast_cancer(return_X_y=True)
    features = StandardScaler().fit_transform(features)
    return jnp.asarray(features, dtype=jnp.float32), jnp.asarray(is_benign == 0)


def objective(
    model: Model, features: jax.Array, labels: jax.Array, pos_weight: jax.Array
) -> jax.Array:
    loss = weighted_cross_entropy_with_logits(
        labels, model.logits(features), pos_weight, reduction="mean"
    )
    return loss + L2_PENALTY / 2 * (model.slopes @ model.slopes)


@jax.jit
def step(
    model: Model, features: jax.Array, labels: jax.Array, pos_weight: jax.Array
) -> tuple[Model, jax.Array]:
    """Return the model after one step of gradient descent, and the loss before."""
    value, gradient = jax.value_and_grad(objective)(model, features, labels, pos_weight)
    # A large pos_weight makes the loss steeper.
    rate = LEARNING_RATE / jnp.maximum(pos_weight, 1.0)
    return jax.tree.map(lambda old, slope: old - rate * slope, model, gradient), value


# %%
# The training
# ------------


def main() -> np.ndarray:
    """Print recall and precision, and return the loss of each model before each step."""
    features, labels = load()
    pos_weights = jnp.asarray(POS_WEIGHTS)
    models = Model(jnp.zeros((len(POS_WEIGHTS), features.shape[1])), jnp.zeros(len(POS_WEIGHTS)))
    steps = jax.vmap(step, in_axes=(0, None, None, 0))
    losses = []
    for _ in range(STEPS):
        models, values = steps(models, features, labels, pos_weights)
        losses.append(values)
    print("pos_weight  loss    recall  precision")
    for index, pos_weight in enumerate(POS_WEIGHTS):
        model = Model(models.slopes[index], models.intercept[index])
        flagged = model.logits(features) > 0
        hits = jnp.sum(flagged & labels)
        print(
            f"{pos_weight:10g}  {values[index]:.4f}  {hits / jnp.sum(labels):6.1%}"
            f"  {hits / jnp.sum(flagged):9.1%}"
        )
    return np.asarray(losses)


def plot(losses: np.ndarray) -> None:
    axes = plt.figure(figsize=(5, 3.2)).subplots()
    axes.loglog(range(1, STEPS + 1), losses, label=[f"pos_weight {q:g}" for q in POS_WEIGHTS])
    axes.set(xlabel="step", ylabel="loss", title="Mean loss before each step")
    axes.legend()


if __name__ == "__main__":
    plot(main())
    plt.show()
