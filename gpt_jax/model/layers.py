"""Building blocks of every module: declared parameters, initial values, norms, MLPs, dropout.

A parameter is declared once, by its letters: `param(cfg, 'DHK')` fixes shape and sharding rules. Modules
are abstract until `initialize` fills them under jit with out_shardings: a large model never exists unsharded.
The PRNG key of a parameter is folded from its path and layer, so that adding one leaves all others unchanged.
nnx modules are used as plain pytrees: jax.jit, grad, scan and vmap take them directly. The tests set
jax_numpy_rank_promotion=raise and jax_numpy_dtype_promotion=strict: hence every [None] and astype.

Letters: B batch, T length, D width, F feed-forward width, H heads, K head width, L layers.

Sources: RMSNorm (Zhang & Sennrich 2019), GLU variants (Shazeer 2020), squared ReLU (So et al. 2021, sec. 3).
"""

import zlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from gpt_jax.model.kernels import fused
from gpt_jax.model.param_trees import map_params


def param(cfg, axes, std=0.0, mean=0.0):
  """Declare a parameter with these letters, drawn from N(mean, std) by `initialize`."""
  shape = tuple(cfg.dims[a] for a in axes)
  abstract = jax.ShapeDtypeStruct(shape, jnp.dtype(cfg.param_dtype))
  return nnx.Param(abstract, axes=axes, std=std, mean=mean)


def initialize(abstract, key):
  """Fill an abstract model with initial values that depend only on (key, path, layer)."""

  def draw(path, p):
    value = p.get_value()
    shape, dtype = value.shape, value.dtype
    if p.std == 0.0:
      return jnp.full(shape, p.mean, dtype)
    path_key = jax.random.fold_in(key, zlib.crc32(path.encode()))
    if p.axes[0] != 'L':
      return p.mean + p.std * jax.random.normal(path_key, shape, dtype)
    keys = jax.vmap(lambda l: jax.random.fold_in(path_key, l))(jnp.arange(shape[0]))
    values = jax.vmap(lambda k: jax.random.normal(k, shape[1:], dtype))(keys)
    return p.mean + p.std * values

  return map_params(draw, abstract)


def linear(subscripts, x, w, bias=None, **options):
  """einsum with a parameter, plus an optional bias over the last axes; options of jnp.einsum."""
  if hasattr(w, 'project'):  # an adapters.Adapted
    y = w.project(subscripts, x, **options)
  elif fused.is_outputs_first(subscripts, w):  # transposed for decoding by sampling/decoding_layout.py
    y = fused.weights_left(subscripts, x, w, **options)
  else:
    y = jnp.einsum(subscripts, x, w[...], **options)
  return y if bias is None else y + broadcast_like(bias, y)


def broadcast_like(p, x):
  """A parameter with leading axes of size 1 and x's dtype, ready to broadcast over x."""
  p = p[...]
  return p.reshape((1,) * (x.ndim - p.ndim) + p.shape).astype(x.dtype)


def dropout(x, rate, key):
  """Zero each entry with probability `rate` (a traced scalar) and rescale; without a key, return x.

  16 random bits per entry: threefry costs a CPU as much as a matmul. The rate is exact to 2**-16.
  """
  if key is None:
    return x
  threshold = jnp.round(rate * 65536).astype(jnp.uint32)
  keep = jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32) >= threshold
  scale = (65536 / (65536 - threshold.astype(jnp.float32))).astype(x.dtype)
  return jnp.where(keep, x * scale, jnp.zeros((), x.dtype))


def rmsnorm(x, eps):
  """x / sqrt(mean square + eps) over the last axis, float32."""
  x = x.astype(jnp.float32)
  return x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + eps)


class Norm(nnx.Module):
  """LayerNorm or RMSNorm over the last axes, those of its scale, computed in float32."""

  def __init__(self, cfg, axes='D'):
    self.kind, self.eps = cfg.norm, cfg.norm_eps
    self.scale = param(cfg, axes, mean=1.0 - OFFSETS.get(cfg.norm, 0.0))
    self.bias = param(cfg, axes) if cfg.norm == 'layernorm' and cfg.norm_bias else None

  def __call__(self, x):
    """x normalized, in x's dtype."""
    flat_shape = x.shape[: x.ndim - self.scale[...].ndim] + (-1,)
    y = NORMS[self.kind](x.reshape(flat_shape), self.eps).reshape(x.shape)
    scale = broadcast_like(self.scale, y)
    y = y * (scale + OFFSETS[self.kind] if self.kind in OFFSETS else scale)
    return (y if self.bias is None else y + broadcast_like(self.bias, y)).astype(x.dtype)


class MLP(nnx.Module):
  """The feed-forward layer; gated activations have a second input matrix."""

  def __init__(self, cfg):
    self.activation, self.remat_hidden = cfg.mlp, cfg.remat == 'mlp_activations'
    self.up_DF = param(cfg, 'DF', cfg.matrix_std)
    self.gate_DF = param(cfg, 'DF', cfg.matrix_std) if cfg.gated else None
    self.down_FD = param(cfg, 'FD', cfg.projection_std)
    self.up_bias_F = param(cfg, 'F') if cfg.mlp_bias else None
    self.gate_bias_F = param(cfg, 'F') if cfg.mlp_bias and cfg.gated else None
    self.down_bias_D = param(cfg, 'D') if cfg.mlp_bias else None

  def __call__(self, x_BTD):
    """The branch of the residual stream, BTD."""

    def hidden(x_BTD):
      up_BTF = linear('BTD,DF->BTF', x_BTD, self.up_DF, self.up_bias_F)
      gate_BTF = None
      if self.gate_DF is not None:
        gate_BTF = linear('BTD,DF->BTF', x_BTD, self.gate_DF, self.gate_bias_F)
      return ACTIVATIONS[self.activation](up_BTF, gate_BTF)

    h_BTF = (fused.remat_hidden(hidden) if self.remat_hidden else hidden)(x_BTD)
    return linear('BTF,FD->BTD', h_BTF, self.down_FD, self.down_bias_D)


NORMS: dict[str, Callable] = {
  'layernorm': fused.layernorm,
  'rmsnorm': rmsnorm,
  'zero_centered_rmsnorm': rmsnorm,
}
OFFSETS = {'zero_centered_rmsnorm': 1.0}  # the norm multiplies by 1 + scale (Gemma)
GATED = {
  'swiglu': lambda up, gate: up * jax.nn.silu(gate),
  'geglu': lambda up, gate: up * jax.nn.gelu(gate, approximate=True),
}
ACTIVATIONS = {
  'gelu': lambda up, gate: jax.nn.gelu(up, approximate=True),
  'gelu_exact': lambda up, gate: jax.nn.gelu(up, approximate=False),
  'relu': lambda up, gate: jax.nn.relu(up),
  'relu2': lambda up, gate: jnp.square(jax.nn.relu(up)),
  'silu': lambda up, gate: jax.nn.silu(up),
  'tanh': lambda up, gate: jnp.tanh(up),
} | GATED
INITS = {  # std of the matrices that write to the residual stream
  'scaled': lambda cfg: cfg.init_std / (2 * cfg.layers) ** 0.5,  # GPT-2, section 2.3
  'same': lambda cfg: cfg.init_std,
  'zero': lambda cfg: 0.0,
}
