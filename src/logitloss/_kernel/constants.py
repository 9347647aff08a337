"""Derive the constants of logistic.h, which are pasted there from this output.

The polynomials are weighted minimax approximations, found by the Remez exchange
algorithm in 60-digit arithmetic.  Coefficients are rounded to the type from the highest
down, and after each the lower ones are fitted again, which makes its rounding good.  The
bounds are those of the rounded polynomials.

Run ``python constants.py`` after changing a degree; it needs mpmath and numpy.  A test
compares the header with what it prints.
"""

import itertools
import re

import numpy as np
from mpmath import cos, exp, expm1, log, log1p, lu_solve, matrix, mp, mpf, nstr, pi, polyval

mp.dps = 60

# Half of ln 2, and what the rounding of -m / ln 2 may add to it.
EXP_INTERVAL = log(mpf(2)) / 2 * mpf("1.0005")
DEGREES = {("EXP", 32): 4, ("LOG", 32): 9, ("EXP", 64): 9, ("LOG", 64): 21}
DEGREES |= {("LOG1P", bits): DEGREES["LOG", bits] for bits in (32, 64)}
# log1p(e) / e falls from 1 to ln 2: what is left is below 1/4, and small for small e.
LOG_CENTRE = mpf(15) / 16


def exp_remainder(r):
    """(exp(r) - 1 - r) / r^2"""
    return (expm1(r) - r) / r**2 if abs(r) > mpf(10) ** -12 else mpf(1) / 2 + r / 6


def log_remainder(t):
    """log1p(e) / e - LOG_CENTRE at e = t + 1/2"""
    e = t + mpf(1) / 2
    return (log1p(e) / e if e > mpf(10) ** -12 else 1 - e / 2) - LOG_CENTRE


def log1p_remainder(t):
    """log1p(e) / e - 1 at e = t + 1/2, for the copy in _backends/jax.py"""
    return log_remainder(t) + LOG_CENTRE - 1


# What an error of the polynomial amounts to in exp(r) or log1p(e), relatively.
# The floor keeps the exchange away from the zero of the weight.
WEIGHTS = {
    "EXP": lambda r: max(r**2, mpf("1e-3")) / exp(r),
    "LOG": lambda t: 1 / (log_remainder(t) + LOG_CENTRE),
}
WEIGHTS["LOG1P"] = WEIGHTS["LOG"]
FUNCTIONS = {"EXP": exp_remainder, "LOG": log_remainder, "LOG1P": log1p_remainder}
HALF_WIDTH = {"EXP": EXP_INTERVAL, "LOG": mpf(1) / 2, "LOG1P": mpf(1) / 2}


def remez(function, weight, half_width, degree, points=1200, rounds=30):
    """Coefficients, lowest first, that minimise max |weight * (p - function)|."""
    count = degree + 2
    grid = [-half_width * cos(pi * (2 * i + 1) / (2 * points)) for i in range(points)]
    values = [function(t) for t in grid]
    weights = [weight(t) for t in grid]
    chosen = [round((i + 0.5) * points / count) for i in range(count)]
    for _ in range(rounds):
        system, right = matrix(count, count), matrix(count, 1)
        for row, index in enumerate(chosen):
            for power in range(degree + 1):
                system[row, power] = grid[index] ** power
            system[row, count - 1] = (-1) ** row / weights[index]
            right[row] = values[index]
        solution = lu_solve(system, right)
        coefficients = list(solution)[:-1]
        errors = [
            w * (polyval(coefficients[::-1], t) - v)
            for t, v, w in zip(grid, values, weights, strict=True)
        ]
        extrema = [0]
        for index, error in enumerate(errors):
            if (error > 0) != (errors[extrema[-1]] > 0):
                extrema.append(index)
            elif abs(error) > abs(errors[extrema[-1]]):
                extrema[-1] = index
        while len(extrema) > count:
            extrema.pop(0 if abs(errors[extrema[0]]) < abs(errors[extrema[-1]]) else -1)
        if len(extrema) < count or extrema == chosen:
            break
        chosen = extrema
    return coefficients


def round_to(value, bits):
    """`value` correctly rounded to the floating type of that width."""
    return mpf(float(np.dtype(f"f{bits // 8}").type(nstr(value, 40))))


def fit(name, bits):
    """The rounded coefficients, and log2 of the bound on their contribution."""
    function, weight, half_width = FUNCTIONS[name], WEIGHTS[name], HALF_WIDTH[name]
    degree = DEGREES[name, bits]
    rounded: list = []
    for power in range(degree, -1, -1):
        # What the coefficients rounded so far leave to the lower ones.
        rest = remez(
            lambda t: function(t) - t ** (power + 1) * polyval(rounded, t),  # noqa: B023
            weight,
            half_width,
            power,
        )
        rounded.append(round_to(rest[power], bits))
    coefficients = np.array([float(c) for c in reversed(rounded)], f"f{bits // 8}")
    if (name, bits) == ("LOG", 32):
        coefficients = polish(coefficients, function, weight, half_width)
    if (name, bits) == ("LOG", 64):
        # One ulp off the best fit, for which the loss at logit 0 is ln 2 correctly rounded.
        coefficients[0] = np.nextafter(coefficients[0], -np.inf)
    fixed = [mpf(float(c)) for c in coefficients]
    grid = [half_width * cos(pi * i / 4001) for i in range(4002)]
    bound = max(abs(weight(t) * (polyval(fixed[::-1], t) - function(t))) for t in grid)
    return fixed, nstr(log(bound, 2), 4)


def polish(coefficients, function, weight, half_width):
    """Move triples of coefficients by up to 2 ulp while that lowers the greatest error.

    In float32 the roundings of the low coefficients are larger than the error of the fit.
    """
    grid = [half_width * cos(pi * i / 600) for i in range(601)]
    values = np.array([float(function(t)) for t in grid])
    weights = np.array([float(weight(t)) for t in grid])
    powers = np.vander([float(t) for t in grid], len(coefficients), increasing=True)

    def error(candidate):
        return np.max(np.abs((powers @ candidate.astype(float) - values) * weights))

    best, improved = error(coefficients), True
    while improved:
        improved = False
        for triple in itertools.combinations(range(8), 3):
            for steps in itertools.product(range(-2, 3), repeat=3):
                candidate = coefficients.copy()
                for index, step in zip(triple, steps, strict=True):
                    candidate[index] += step * np.spacing(abs(coefficients[index]))
                if error(candidate) < best * (1 - 1e-8):
                    best, coefficients, improved = error(candidate), candidate, True
    return coefficients


def estrin(coefficients, variable, bits):
    """C text: c[0] + t Q(t), Q in pairs c[i] + c[i+1] t joined by Horner's rule in t^2.

    The lowest coefficient is added last, alone, so that only one rounding is of the size
    of the result.
    """
    lowest, *literals = [literal(c, bits) for c in coefficients]
    pairs = [
        f"FMA({second}, {variable}, {first})" if second else first
        for first, second in itertools.zip_longest(literals[::2], literals[1::2])
    ]
    text = pairs[-1]
    for pair in reversed(pairs[:-1]):
        text = f"FMA({variable}2, {text}, \\\n        {pair})"
    return f"    FMA({variable}, {text}, \\\n        {lowest})"


def literal(value, bits):
    text = re.sub(r"\.?0*p", "p", float(value).hex())
    return text + ("f" if bits == 32 else "")


def constants():
    """The text of every derived constant, by name and width."""
    ln2 = log(mpf(2))
    found = {}
    for bits, ln2_hi_bits in ((32, 15), (64, 40)):
        found[f"LN2_{bits}"] = literal(round_to(ln2, bits), bits)
        found[f"LOG2_E_{bits}"] = literal(round_to(1 / ln2, bits), bits)
        # Short enough for its product with any exponent to be exact.
        high = mp.floor(ln2 * 2**ln2_hi_bits) / 2**ln2_hi_bits
        found[f"LN2_HI_{bits}"] = literal(high, bits)
        found[f"LN2_LO_{bits}"] = literal(round_to(ln2 - high, bits), bits)
        for name, variable in (("EXP", "r"), ("LOG", "t")):
            coefficients, bound = fit(name, bits)
            found[f"{name}_{bits}"] = estrin(coefficients, variable, bits)
            found[f"{name}_BOUND_{bits}"] = bound
        coefficients, bound = fit("LOG1P", bits)
        found[f"LOG1P_{bits}"] = " ".join(literal(c, 64) for c in coefficients)
        found[f"LOG1P_BOUND_{bits}"] = bound
    return found


if __name__ == "__main__":
    for name, text in constants().items():
        print(f"{name}: {text}")
