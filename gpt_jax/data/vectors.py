"""Read vectors: float arrays from .npy files, tables and JSON. Letters: N vectors, U numbers of one."""

import io

import numpy as np

from gpt_jax.data import media_io
from gpt_jax.data.decoders import name_record
from gpt_jax.runs.reading import reading

LARGEST = float(np.finfo(np.float16).max)  # token caches keep 16 bits


def read_vectors(value, width: int = 0, where: str = '') -> np.ndarray:
  """Read a path or the bytes of a .npy file, an array or lists of numbers -> float32 [N, U], N at least 1.

  A row of numbers is one vector. width: the U to expect; 0 = any. Raises ValueError or FileNotFoundError that
  begins with `where`.
  """
  with name_record(where):
    name = value if isinstance(value, str) else 'the array'
    if isinstance(value, (str, bytes)):
      content = media_io.open_bytes(value) if isinstance(value, str) else value
      with reading(name, 'a whole .npy file', 'write it with numpy.save'):
        value = np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
    try:
      vectors_NU = np.atleast_2d(np.asarray(value, np.float64))
    except (TypeError, ValueError):
      raise ValueError(f'{name} is not an array of numbers\nfix: give vectors of one length') from None
    if vectors_NU.ndim != 2 or not vectors_NU.size or vectors_NU.shape[1] != (width or vectors_NU.shape[1]):
      raise ValueError(
        f'{name} has shape {vectors_NU.shape}, not [vectors, {width or "numbers"}]\n'
        'fix: give at least one vector, each with as many numbers as in the first record'
      )
    if not np.abs(vectors_NU).max() <= LARGEST:
      raise ValueError(
        f'{name} has NaN, or a number beyond {LARGEST:,.0f}, which token caches cannot keep\n'
        'fix: leave the record out, or scale the vectors'
      )
    return vectors_NU.astype(np.float32)
