"""gpt_jax: the laboratory for multimodal GPTs in JAX."""
