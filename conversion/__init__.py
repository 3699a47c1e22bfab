"""Checkpoints of other codebases: their names and conventions, and their conversion to ours."""
