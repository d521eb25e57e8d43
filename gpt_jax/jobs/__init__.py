"""What the training loop can train: a GPT, or a learned tokenizer."""
