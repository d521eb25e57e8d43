"""A trained autoencoder as two functions on numpy arrays: items to codes, and codes to items."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from gpt_jax.model import param_trees
from gpt_jax.tokenizers.learned import autoencoder


class Coder:
  """Run an autoencoder in batches of one size: it compiles once, and no item depends on others."""

  def __init__(self, cfg, params: dict[str, np.ndarray], batch_size: int, is_pixels: bool = False):
    """cfg: AutoencoderConfig. is_pixels: items are uint8 images, else float32."""
    self._cfg, self._batch_size = cfg, batch_size
    self._encode, self._decode = _compile(cfg, is_pixels)
    self._params = jax.device_put(params)

  def encode(self, items: np.ndarray) -> np.ndarray:
    """Return codes int32 [N, P] of items [N, ...]."""
    return self._run(self._encode, items)

  def decode(self, codes_NP: np.ndarray) -> np.ndarray:
    """Return items [N, ...] of codes [N, P]."""
    return self._run(self._decode, codes_NP.astype(np.int32))

  def _run(self, function, items):
    batches = []
    for start in range(0, max(1, len(items)), self._batch_size):
      batch = items[start : start + self._batch_size]
      padding = np.zeros((self._batch_size - len(batch), *batch.shape[1:]), batch.dtype)
      padded = jax.device_put(np.concatenate([batch, padding]))
      # Without it a GPU multiplies in TF32, and codes near the edge of a bin differ from a CPU's.
      with jax.default_matmul_precision('float32'):
        batches.append(jax.device_get(function(self._params, padded))[: len(batch)])
    return np.concatenate(batches)


@functools.lru_cache(maxsize=16)
def _compile(cfg, is_pixels):
  """Return (encode, decode) of one batch by parameters, compiled once for all with this config."""
  abstract = autoencoder.Autoencoder(cfg)
  fill = lambda params: param_trees.map_params(lambda path, _: params[path], abstract)

  @jax.jit
  def encode(params, x):
    model = fill(params)
    x = x.astype(jnp.float32) / 127.5 - 1 if is_pixels else x
    return model.quantize(model.encode(x))[1]

  @jax.jit
  def decode(params, codes_BP):
    model = fill(params)
    x = model.decode(model.lookup(codes_BP))
    return jnp.clip(jnp.round((x + 1) * 127.5), 0, 255).astype(jnp.uint8) if is_pixels else x

  return encode, decode
