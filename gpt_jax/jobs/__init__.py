"""What the training loop can train: a GPT, an image tokenizer or an audio tokenizer."""
