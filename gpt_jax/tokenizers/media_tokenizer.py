"""The interface that image and audio tokenizers share: an item becomes codes [P, Q].

Letters: P positions of one item, in reading order or in time; Q codebooks.
"""

from gpt_jax.tokenizers import base

MODALITIES = ('image', 'audio')


class MediaTokenizer(base.SavedTokenizer):
  """The interface of an image or audio tokenizer."""

  codebooks: tuple[int, ...] = ()  # number of codes of each of the Q codebooks

  @property
  def ranges(self) -> tuple[tuple[str, int], ...]:
    """The id ranges that a vocabulary needs for it: (kind, count) of each codebook."""
    return tuple((f'{self.modality}{q}', count) for q, count in enumerate(self.codebooks))


def pack_arrays(arrays) -> bytes:
  """Return arrays as the bytes of a safetensors file: equal arrays give equal bytes."""
  import numpy as np
  from safetensors.numpy import save

  return save({name: np.ascontiguousarray(array) for name, array in sorted(arrays.items())})


def unpack_arrays(content: bytes) -> dict:
  """Invert `pack_arrays`."""
  from safetensors.numpy import load

  return load(content)
