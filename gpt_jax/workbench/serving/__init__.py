"""A trained run in, the endpoints of OpenAI out: continuous batching, limits and metrics."""
