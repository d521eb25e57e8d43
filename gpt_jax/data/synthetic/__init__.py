"""Data made by rule: keypad tones, short stories and sums."""
