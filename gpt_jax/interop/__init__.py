"""Models to and from other systems. Nothing here imports torch or transformers."""
