"""Read vectors and codes: arrays from .npy files, tables and JSON.

Letters: N vectors, U numbers of one, P positions, Q codebooks.
"""

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
    value, name = _load(value)
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


def read_codes(value, codebooks: tuple[int, ...], most: int, where: str = '') -> np.ndarray:
  """Read a path or the bytes of a .npy file, an array or lists of integers -> int32 [P, Q], P at least 1.

  A row of numbers is one codebook. codebooks: how many codes each of the Q has. most: P. Errors: see
  read_vectors.
  """
  with name_record(where):
    value, name = _load(value)
    try:
      codes = np.asarray(value)
    except (TypeError, ValueError):
      raise ValueError(f'{name} is not an array\nfix: give ids of one length in each position') from None
    codes_PQ = codes[:, None] if codes.ndim == 1 else codes
    if codes_PQ.ndim != 2 or not codes_PQ.size or codes_PQ.shape[1] != len(codebooks):
      raise ValueError(
        f'{name} has shape {codes.shape}, not [positions, {len(codebooks)}]\n'
        f'fix: set audio.books to the number of codebooks, or give ids with positions first'
      )
    if not np.issubdtype(codes.dtype, np.integer):
      raise ValueError(f'{name} is {codes.dtype}, not integers\nfix: give the ids of the codec')
    wrong = (codes_PQ < 0) | (codes_PQ >= np.array(codebooks))
    if wrong.any():
      raise ValueError(
        f'{name} has the id {codes_PQ[wrong][0]}, outside of codebooks of {codebooks} codes\n'
        'fix: set audio.codes to the size of a codebook, or leave the record out'
      )
    if len(codes_PQ) > most:
      raise ValueError(
        f'{name} has {len(codes_PQ)} positions, more than {most}\n'
        'fix: raise audio.longest, of a codec audio.seconds, or cut or drop the record'
      )
    return codes_PQ.astype(np.int32)


def _load(value):
  """Return (array or lists, name for errors) of a path or the bytes of a .npy file; other values stay."""
  name = value if isinstance(value, str) else 'the array'
  if isinstance(value, (str, bytes)):
    content = media_io.open_bytes(value) if isinstance(value, str) else value
    with reading(name, 'a whole .npy file', 'write it with numpy.save'):
      value = np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
  return value, name
