"""What a trained model is asked to do, one task a file."""
