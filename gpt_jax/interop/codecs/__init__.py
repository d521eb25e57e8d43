"""Pretrained codecs of transformers' folders: sounds and pictures to codes and back."""
