"""Derive the constants of logistic.h, which are pasted there from this output.

The polynomials are weighted minimax approximations, found by the Remez exchange
algorithm in 60-digit arithmetic.  Coefficients are rounded to the type from the highest
down, and after each the lower ones are fitted again, which makes its rounding good.  The
bounds are those of the rounded polynomials.

Run ``python tools/constants.py`` after changing a degree; it needs mpmath and numpy.  A test
checks the bounds on the constants of the header.
"""

import itertools
import re

import mpmath
import numpy as np
from mpmath import atanh, cos, exp, expm1, log, log1p, mp, mpf, nstr, pi, polyval, sqrt

mp.dps = 60

# Half of ln 2, and what the rounding of -m / ln 2 may add to it.
EXP_INTERVAL = log(mpf(2)) / 2 * mpf("1.0005")
DEGREES = {("EXP", 32): 4, ("LOG", 32): 3, ("LOG1P", 32): 9}
DEGREES |= {("EXP", 64): 9, ("LOG", 64): 9, ("LOG1P", 64): 21}
# Units in the last place by which coefficients, by their power, were moved off the best fit: what
# a random search over such moves found to lower the largest error of all float32 losses
# (benchmarks/walk_float32.py), because it includes that of the evaluation.
MOVES = {("EXP", 32): {0: -1, 4: 1}}


def exp_remainder(r):
    """(exp(r) - 1 - r) / r^2"""
    return (expm1(r) - r) / r**2 if abs(r) > mpf(10) ** -12 else mpf(1) / 2 + r / 6


def log_remainder(t):
    """(2 atanh(s) - 2 s) / s^3 at s^2 = t + 1/18, where log1p(e) = 2 atanh(s)"""
    u = t + mpf(1) / 18
    s = sqrt(abs(u))
    return 2 * (atanh(s) - s) / s**3 if s > mpf(10) ** -12 else mpf(2) / 3 + 2 * u / 5


def log1p_remainder(t):
    """log1p(e) / e - 1 at e = t + 1/2"""
    e = t + mpf(1) / 2
    return log1p(e) / e - 1 if e > mpf(10) ** -12 else -e / 2


def log_weight(t):
    s = sqrt(max(t + mpf(1) / 18, mpf("1e-4")))
    return s**3 / (2 * atanh(s))


# What an error of the polynomial amounts to in exp(r) or log1p(e), relatively.
# The floors keep the exchange away from the zero of a weight.
WEIGHTS = {
    "EXP": lambda r: max(r**2, mpf("1e-3")) / exp(r),
    "LOG": log_weight,
    "LOG1P": lambda t: 1 / (1 + log1p_remainder(t)),
}
FUNCTIONS = {"EXP": exp_remainder, "LOG": log_remainder, "LOG1P": log1p_remainder}
# The middle of the interval is 0; the polynomial is in powers of what is that much greater.
ORIGINS = {"EXP": mpf(0), "LOG": mpf(1) / 18, "LOG1P": mpf(0)}
HALF_WIDTH = {"EXP": EXP_INTERVAL, "LOG": mpf(1) / 18, "LOG1P": mpf(1) / 2}


def remez(function, weight, half_width, degree, points=1200, rounds=30):
    """Coefficients, lowest first, that minimise max |weight * (p - function)|."""
    count = degree + 2
    grid = [-half_width * cos(pi * (2 * i + 1) / (2 * points)) for i in range(points)]
    values = [function(t) for t in grid]
    weights = [weight(t) for t in grid]
    chosen = [round((i + 0.5) * points / count) for i in range(count)]
    for _ in range(rounds):
        system, right = mpmath.matrix(count, count), mpmath.matrix(count, 1)
        for row, index in enumerate(chosen):
            for power in range(degree + 1):
                system[row, power] = grid[index] ** power
            system[row, count - 1] = (-1) ** row / weights[index]
            right[row] = values[index]
        solution = mpmath.lu_solve(system, right)
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
    function, weight, origin = FUNCTIONS[name], WEIGHTS[name], ORIGINS[name]
    half_width, degree = HALF_WIDTH[name], DEGREES[name, bits]
    rounded: list = []
    for power in range(degree, -1, -1):
        # What the coefficients rounded so far leave to the lower ones.
        rest = remez(
            lambda t: function(t) - (t + origin) ** (power + 1) * polyval(rounded, t + origin),  # noqa: B023
            weight,
            half_width,
            power,
        )
        rounded.append(round_to(rest[power], bits))
    coefficients = np.array([float(c) for c in reversed(rounded)], f"f{bits // 8}")
    for power, steps in MOVES.get((name, bits), {}).items():
        coefficients[power] += steps * np.spacing(abs(coefficients[power]))
    fixed = [mpf(float(c)) for c in coefficients]
    grid = [half_width * cos(pi * i / 4001) for i in range(4002)]
    bound = max(abs(weight(t) * (polyval(fixed[::-1], t + origin) - function(t))) for t in grid)
    return fixed, nstr(log(bound, 2), 4)


def estrin(literals, variable):
    """C text: pairs c[i] + c[i+1] v joined by Horner's rule in v^2."""
    pairs = [
        f"FMA({second}, {variable}, {first})" if second else first
        for first, second in itertools.zip_longest(literals[::2], literals[1::2])
    ]
    text = pairs[-1]
    for pair in reversed(pairs[:-1]):
        text = f"FMA({variable}2, {text}, \\\n        {pair})"
    return text


def exp_text(lowest, *literals):
    """The lowest is added last, alone, so that only one rounding is of the size of the result."""
    return f"    FMA(r, {estrin(literals, 'r')}, \\\n        {lowest})"


def log_text(*literals):
    return f"    {estrin(literals, 'u')}"


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
        for name, text in (("EXP", exp_text), ("LOG", log_text)):
            coefficients, bound = fit(name, bits)
            found[f"{name}_{bits}"] = text(*(literal(c, bits) for c in coefficients))
            found[f"{name}_BOUND_{bits}"] = bound
        coefficients, bound = fit("LOG1P", bits)
        found[f"LOG1P_{bits}"] = " ".join(literal(c, 64) for c in coefficients)
        found[f"LOG1P_BOUND_{bits}"] = bound
    return found


if __name__ == "__main__":
    for name, text in constants().items():
        print(f"{name}: {text}")
