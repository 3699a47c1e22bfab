"""What only train.py needs: batches, losses, steps, optimizers, the run folder and its logs."""
