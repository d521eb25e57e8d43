"""Token ids and parameters in, logits out."""
