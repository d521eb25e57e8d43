"""Audio codecs of transformers' folders: waves to codes and codes to waves."""
