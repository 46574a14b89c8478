"""Inference with few seeds: shared variance, joint intervals, pairing, and the measure at the best rate.

Pure functions of numbers. They know no run, no study and no file, and import neither torch nor a package of kleiber.
"""
