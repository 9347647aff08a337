"""
Keras: few positives
====================

One in twenty rows is positive. The same small network is trained with three values of
``pos_weight``. The last value, 19, makes both classes count the same in total.
"""

from __future__ import annotations

import keras
import matplotlib.pyplot as plt
import numpy as np

from logitloss.compat.keras import WeightedBinaryCrossentropy

POS_WEIGHTS = (1.0, 5.0, 19.0)
EPOCHS = 5


def load(size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return features, and labels of which 5 % are positive."""
    generator = np.random.default_rng(seed)
    labels = (generator.random((size, 1)) < 0.05).astype("float32")
    features = generator.normal(0.7 * labels, 1.0, (size, 8)).astype("float32")
    return features, labels


# %%
# The model
# ---------
# The last layer has no activation, because the loss takes logits.


def train(pos_weight: float) -> keras.Model:
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((8,)), keras.layers.Dense(16, activation="relu"), keras.layers.Dense(1)]
    )
    model.compile(keras.optimizers.Adam(0.01), WeightedBinaryCrossentropy(pos_weight))
    model.fit(*load(4000, seed=0), batch_size=100, epochs=EPOCHS, verbose=0)
    return model


# %%
# The result
# ----------


def main() -> list[tuple[float, float]]:
    features, labels = load(4000, seed=1)
    positive = labels == 1
    shares = []
    print("pos_weight  recall  precision")
    for pos_weight in POS_WEIGHTS:
        flagged = train(pos_weight).predict(features, verbose=0) > 0
        hits = np.sum(flagged & positive)
        recall, precision = hits / positive.sum(), hits / flagged.sum()
        print(f"{pos_weight:10g}  {recall:6.1%}  {precision:9.1%}")
        shares.append((recall, precision))
    return shares


def plot(shares: list[tuple[float, float]]) -> None:
    axes = plt.figure(figsize=(5, 3.2)).subplots()
    axes.plot(POS_WEIGHTS, shares, "o-", label=["recall", "precision"])
    axes.set(xlabel="pos_weight", ylim=(0, 1), title="Rows that training has not seen")
    axes.yaxis.set_major_formatter("{x:.0%}")
    axes.legend()


if __name__ == "__main__":
    plot(main())
    plt.show()
