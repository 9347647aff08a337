"""Train a Keras model on data with few positives, and see what pos_weight does to the recall.

    python examples/keras_imbalanced.py

One in twenty examples is positive. The same small network is trained with three values of
`pos_weight`; the last one makes both classes count the same in total.
"""

from __future__ import annotations

import keras
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


def train(pos_weight: float) -> keras.Model:
    keras.utils.set_random_seed(0)
    # The last layer has no activation: the loss takes logits.
    model = keras.Sequential(
        [keras.Input((8,)), keras.layers.Dense(16, activation="relu"), keras.layers.Dense(1)]
    )
    model.compile(keras.optimizers.Adam(0.01), WeightedBinaryCrossentropy(pos_weight))
    model.fit(*load(4000, seed=0), batch_size=100, epochs=EPOCHS, verbose=0)
    return model


def main() -> None:
    features, labels = load(4000, seed=1)
    positive = labels == 1
    print("pos_weight  recall  precision")
    for pos_weight in POS_WEIGHTS:
        flagged = train(pos_weight).predict(features, verbose=0) > 0
        hits = np.sum(flagged & positive)
        print(f"{pos_weight:10g}  {hits / positive.sum():6.1%}  {hits / flagged.sum():9.1%}")


if __name__ == "__main__":
    main()
