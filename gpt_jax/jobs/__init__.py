"""What the training loop can train: a GPT (next tokens, preferences, rewards), image and audio tokenizers."""
