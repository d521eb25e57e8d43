"""Pretrained encoders of pictures and sounds: our layers, the weights of transformers' folders."""
