"""From noise and classes to images: latents, batch-norm modes, generation, sheets, files."""
