"""Data made by rule: keypad tones and short stories."""
