"""From image files to training batches: finding, decoding, writing, reading and examining data sets."""
