"""What the training loop can train: a GPT (next tokens, preferences, rewards, a teacher) and codecs."""
