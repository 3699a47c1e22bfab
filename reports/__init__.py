"""What people look at: what a model does, what it may have memorised, and what its runs have come to."""
