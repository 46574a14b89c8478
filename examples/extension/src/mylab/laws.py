"""A law of size and tokens."""

from kleiber.studies.laws.law import Array, Exponent, Part


def one_exponent(N: Array, D: Array, *, E: Part, A: Part, B: Part, alpha: Exponent) -> Array:
    """Chinchilla's law with one exponent: L = E + A N^-alpha + B D^-alpha."""
    return E + A * N**-alpha + B * D**-alpha
