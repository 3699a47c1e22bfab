"""From images to numbers: feature networks, reference statistics, metrics as functions of features, tables."""
