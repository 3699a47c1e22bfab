"""Plumbing that knows no GAN: processes, precision, checkpoint files, images as pixels and pictures."""
