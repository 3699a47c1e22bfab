"""Which images of a data set are kept: densities, their stored scores, the selection (DeVries et al. 2020)."""
