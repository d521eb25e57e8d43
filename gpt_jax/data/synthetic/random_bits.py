"""Pseudo-random bits as a pure function of counters, equal with every version of numpy (SplitMix64)."""

import hashlib

import numpy as np


def scramble(seed: int, index: np.ndarray) -> np.ndarray:
  """Return 64 pseudo-random bits for each index, uint64, a pure function of the arguments."""
  start = int.from_bytes(hashlib.sha256(b'%d' % seed).digest()[:8], 'little')
  return mix(index.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(start))


def mix(x: np.ndarray) -> np.ndarray:
  """Apply the finalizer of SplitMix64 to uint64 numbers: flipping one bit changes half of them."""
  x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return x ^ (x >> np.uint64(31))
