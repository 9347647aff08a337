"""
PyTorch: several labels, some of them missing
=============================================

Each picture of a digit has five labels: even, prime, more than five, zero and seven. The last two
are rare, so each class gets the ``pos_weight`` that makes its positives count as much as its
negatives.

A third of the labels were never collected. They are NaN, and have weight 0: neither the loss nor
the gradient sees them.
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits

from logitloss import weighted_cross_entropy_with_logits

CLASSES = ("even", "prime", "more than five", "zero", "seven")
MISSING = 1 / 3
EPOCHS = 20
BATCH = 128


def load() -> tuple[torch.Tensor, torch.Tensor]:
    """Return pixels between 0 and 1, and the labels."""
    digits = load_digits()
    number = torch.from_numpy(digits.target)
    labels = torch.stack(
        [
            number % 2 == 0,
            torch.isin(number, torch.tensor([2, 3, 5, 7])),
            number > 5,
            number == 0,
            number == 7,
        ],
        dim=1,
    )
    return torch.from_numpy(digits.data).float() / 16, labels.float()


# %%
# The training loop
# -----------------
# ``"weighted_mean"`` divides by the sum of the weights, which is the number of labels that are
# known.


def train(pixels: torch.Tensor, labels: torch.Tensor) -> torch.nn.Module:
    """Fit a small network to labels of which some are NaN."""
    is_known = ~labels.isnan()
    positives = (labels == 1).sum(dim=0)
    pos_weight = (is_known.sum(dim=0) - positives) / positives
    model = torch.nn.Sequential(
        torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, len(CLASSES))
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(pixels)).split(BATCH):
            loss = weighted_cross_entropy_with_logits(
                labels[rows],
                model(pixels[rows]),
                pos_weight,
                weight=is_known[rows],
                reduction="weighted_mean",
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model


# %%
# The result
# ----------
# The rare classes are found as reliably as the others.


def recalls(model: torch.nn.Module, pixels: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the share of each class's positives that is found."""
    with torch.no_grad():
        found = (model(pixels) > 0) & (labels == 1)
    return found.sum(dim=0) / (labels == 1).sum(dim=0)


def main() -> dict[str, float]:
    torch.manual_seed(0)
    pixels, labels = load()
    order = torch.randperm(len(pixels))
    test, rest = order[:500], order[500:]
    collected = labels[rest].masked_fill(torch.rand(len(rest), len(CLASSES)) < MISSING, torch.nan)
    model = train(pixels[rest], collected)
    print("class           positives  recall")
    shares = labels.mean(dim=0).tolist()
    found = dict(zip(CLASSES, recalls(model, pixels[test], labels[test]).tolist(), strict=True))
    for (name, recall), share in zip(found.items(), shares, strict=True):
        print(f"{name:14}  {share:9.1%}  {recall:6.1%}")
    return found


def plot(found: dict[str, float]) -> None:
    axes = plt.figure(figsize=(5, 2.8)).subplots()
    bars = axes.barh(list(found), list(found.values()))
    axes.bar_label(bars, fmt=" {:.0%}")
    axes.xaxis.set_major_formatter("{x:.0%}")
    axes.invert_yaxis()
    axes.set(title="Recall")


if __name__ == "__main__":
    plot(main())
    plt.show()
