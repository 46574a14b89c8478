"""What a fit of a law costs: processor time of one fit of 240 runs, and of 1,000 refits for intervals (goals: 0.5 s
and 30 s). One thread; run it on an idle machine:

    python benchmarks/fit.py
"""

from time import process_time

import numpy as np

from kleiber.studies.laws.fit import fit
from kleiber.studies.laws.noise_model import NoiseModel


def main() -> None:
    rng = np.random.default_rng(0)
    N, D = 10 ** rng.uniform(7.5, 10, 240), 10 ** rng.uniform(9, 11.5, 240)
    loss = (1.69 + 406.4 * N**-0.34 + 410.7 * D**-0.28) * np.exp(0.005 * rng.standard_normal(240))
    start = process_time()
    result = fit("chinchilla", {"N": N, "D": D}, loss)
    fitted = process_time()
    NoiseModel.of(result).draws(1000, 0)
    print(f"one fit {fitted - start:.2f} s, a thousand refits {process_time() - fitted:.1f} s")


if __name__ == "__main__":
    main()
