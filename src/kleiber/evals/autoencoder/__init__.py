"""Sparse autoencoders: the residual stream of a layer as a sparse sum of learned directions."""
