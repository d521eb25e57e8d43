"""What the training loop can train: a GPT (next tokens or preferences), image and audio tokenizers."""
