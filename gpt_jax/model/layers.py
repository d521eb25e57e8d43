"""What every layer is made of: declared parameters, initial values, norms, MLPs, dropout.

A parameter is declared once, by its letters: `param(cfg, 'DHK')` fixes shape, name and sharding.
Declaring makes no
array: a module is born abstract, and `initialize` fills it under jit with out_shardings, so that a
large model never exists unsharded. Its key is folded in from its path and its layer, so that adding
one weight leaves all others as they were.

Letters: B batch, T length, D width, F feed-forward width, L layers, V rows of a table.

Sources: RMSNorm (Zhang & Sennrich 2019), GLU variants (Shazeer 2020), squared ReLU (So et al. 2021,
section 3), layer stacking as in seqax.
"""

import functools
import zlib

import jax
import jax.numpy as jnp
from flax import nnx

from gpt_jax.cluster.meshes import platform


def param(cfg, axes, std=0.0, mean=0.0):
  """Declare a parameter with these letters, drawn from N(mean, std) by `initialize`."""
  shape = tuple(cfg.dims[a] for a in axes)
  abstract = jax.ShapeDtypeStruct(shape, jnp.dtype(cfg.param_dtype))
  return nnx.Param(abstract, axes=axes, std=std, mean=mean)


def is_param(x):
  """Whether a tree node is a declared parameter: the `is_leaf` of every walk over a model."""
  return isinstance(x, nnx.Variable)


def stack(module, layers):
  """Put a leading axis L on every parameter of an abstract module."""

  def add_axis(p):
    value = p.get_value()
    abstract = jax.ShapeDtypeStruct((layers, *value.shape), value.dtype)
    return nnx.Param(abstract, axes='L' + p.axes, std=p.std, mean=p.mean)

  return jax.tree.map(add_axis, module, is_leaf=is_param)


def unstack(module):
  """A stacked module -> a list with one module a layer; axis notes lose their L."""
  layers = jax.tree.leaves(module)[0].shape[0]

  def slices(p):
    # One split and not a slice a layer: its gradient is one concatenation, theirs a sum of as many
    # padded arrays as there are layers, which a GPU computes at each element.
    pieces = jax.lax.split(p.get_value(), (1,) * layers)
    return [nnx.Param(x.reshape(x.shape[1:]), axes=p.axes[1:], std=p.std, mean=p.mean) for x in pieces]

  params, treedef = jax.tree.flatten(module, is_leaf=is_param)
  return [jax.tree.unflatten(treedef, layer) for layer in zip(*map(slices, params), strict=True)]


def named_params(model):
  """List of (path such as 'blocks/attention/wq_DHK', parameter) in a fixed order."""
  leaves = jax.tree_util.tree_flatten_with_path(model, is_leaf=is_param)[0]
  return [(jax.tree_util.keystr(path, simple=True, separator='/'), p) for path, p in leaves]


def map_params(fn, model):
  """The model's tree with `fn(path, parameter)` in the place of each parameter's array."""
  treedef = jax.tree.structure(model)
  return jax.tree.unflatten(treedef, [fn(path, p) for path, p in named_params(model)])


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


def cast(model, dtype):
  """The model with its matrices in the compute dtype; norm scales and biases stay."""

  def maybe(path, p):
    is_matrix = 'D' in p.axes and len(p.axes.lstrip('L')) > 1 and not path.endswith('router_DE')
    return p.get_value().astype(dtype) if is_matrix else p.get_value()

  return map_params(maybe, model)


def over(p, x):
  """A parameter with leading axes of size 1 and x's dtype, ready to broadcast over x."""
  p = p[...]
  return p.reshape((1,) * (x.ndim - p.ndim) + p.shape).astype(x.dtype)


def dropout(x, rate, key):
  """Zero each entry with probability `rate` (a traced scalar) and rescale; no key, no dropout.

  Sixteen random bits an entry: threefry on a CPU costs as much as a matmul, and half the bits cost
  half; the rate is exact to 2**-16.
  """
  if key is None:
    return x
  threshold = jnp.round(rate * 65536).astype(jnp.uint32)
  keep = jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32) >= threshold
  scale = (65536 / (65536 - threshold.astype(jnp.float32))).astype(x.dtype)
  return jnp.where(keep, x * scale, jnp.zeros((), x.dtype))


class Norm(nnx.Module):
  """LayerNorm or RMSNorm over the last axis, computed in float32."""

  def __init__(self, cfg, axis='D'):
    self.kind, self.eps = cfg.norm, cfg.norm_eps
    self.scale = param(cfg, axis, mean=1.0)
    self.bias = param(cfg, axis) if cfg.norm == 'layernorm' and cfg.norm_bias else None

  def __call__(self, x):
    """x normalized, in x's dtype."""
    y = NORMS[self.kind](x, self.eps)
    y = y * over(self.scale, y)
    return (y if self.bias is None else y + over(self.bias, y)).astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def layernorm(x, eps):
  """(x - mean) / sqrt(variance + eps) over the last axis, float32.

  Its gradient, written down, needs two means that do not depend on each other, and so one pass, and
  keeps x in its own dtype.
  """
  return _layernorm_forward(x, eps)[0]


def _layernorm_forward(x, eps):
  wide = x.astype(jnp.float32)
  mean = wide.mean(-1, keepdims=True)
  scale = jax.lax.rsqrt(jnp.square(wide - mean).mean(-1, keepdims=True) + eps)
  # The barrier keeps both: XLA would compute them anew in a kernel of its own, which writes y times
  # the gradient out in float32.
  return (wide - mean) * scale, (x, *jax.lax.optimization_barrier((mean, scale)))


def _layernorm_backward(eps, kept, grad):
  x, mean, scale = kept
  y = (x.astype(jnp.float32) - mean) * scale
  along = (grad * y).mean(-1, keepdims=True)
  return ((scale * (grad - grad.mean(-1, keepdims=True) - y * along)).astype(x.dtype),)


layernorm.defvjp(_layernorm_forward, _layernorm_backward)


def rmsnorm(x, eps):
  """x / sqrt(mean square + eps) over the last axis, float32."""
  x = x.astype(jnp.float32)
  return x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + eps)


class MLP(nnx.Module):
  """The feed-forward layer; a gated row of ACTIVATIONS adds a second matrix."""

  def __init__(self, cfg):
    self.kind, self.lean = cfg.mlp, cfg.remat == 'none' and cfg.unroll == 'on'
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
      gate_BTF = up_BTF
      if self.gate_DF is not None:
        gate_BTF = linear('BTD,DF->BTF', x_BTD, self.gate_DF, self.gate_bias_F)
      return ACTIVATIONS[self.kind](up_BTF, gate_BTF)

    if self.lean:  # a GPU's way: what an activation keeps for its gradient is as large as itself
      hidden = jax.checkpoint(hidden, policy=jax.checkpoint_policies.dots_saveable)
    h_BTF = hidden(x_BTD)
    return linear('BTF,FD->BTD', h_BTF, self.down_FD, self.down_bias_D)


@jax.custom_vjp
def lookup(table_VD, ids):
  """Rows of a table.

  Its gradient is a product with one-hot vectors where the table is small, as on a GPU thousands of
  sums into few rows wait for each other (a fifth of a step at 65 characters); summed in float32.
  """
  return table_VD[ids]


def _lookup_forward(table_VD, ids):
  return table_VD[ids], (table_VD, ids)


def _lookup_backward(kept, grad):
  table_VD, ids = kept
  V, D = table_VD.shape
  # Batch and length stay apart: flat, a mesh that spreads both would gather the whole gradient.
  if V <= FEW_IDS and platform() != 'cpu':
    one_hot = jax.nn.one_hot(ids, V, dtype=grad.dtype)
    leading = tuple(range(ids.ndim))
    summed_VD = jnp.tensordot(
      one_hot,
      grad,
      (leading, leading),
      precision=jax.lax.Precision.HIGHEST,
      preferred_element_type=jnp.float32,
    )
  else:
    summed_VD = jnp.zeros((V, D), jnp.float32).at[ids].add(grad.astype(jnp.float32))
  return summed_VD.astype(table_VD.dtype), None


lookup.defvjp(_lookup_forward, _lookup_backward)


def outputs_first(module):
  """The module with what it makes as the leading axes of its matrices: 'DF' becomes 'FD'.

  For decoding, whose products have few rows. A CPU packs the right operand anew in every call, as
  long as the product takes: `linear` puts such weights left. A GPU sums along the weights' rows
  in one pass, where of columns XLA makes a product, written out, and a sum.
  """

  def turn(p):
    if p.axes not in OUTPUTS_FIRST:
      return p
    axes = OUTPUTS_FIRST[p.axes]
    value = jnp.transpose(p.get_value(), [p.axes.index(a) for a in axes])
    return nnx.Param(value, axes=axes, std=p.std, mean=p.mean)

  return jax.tree.map(turn, module, is_leaf=is_param)


def linear(subscripts, x, w, bias=None, **options):
  """einsum with a parameter, plus an optional bias over the last axes; options of jnp.einsum.

  The parameter may be as of `outputs_first`; its axes say so.
  """
  turned = OUTPUTS_FIRST.get(subscripts.partition(',')[2].partition('->')[0])
  left = turned is not None and w.axes == turned
  if left:
    y = weights_left(subscripts, x, w, **options)
  else:
    y = jnp.einsum(subscripts, x, w[...], **options)
  return y if bias is None else y + over(bias, y)


def weights_left(subscripts, x, w, **options):
  """The same einsum with the weights as the left operand, whatever the order of their axes."""
  given, made = subscripts.partition(',')[0], subscripts.partition('->')[2]
  new = ''.join(a for a in made if a not in given)  # the axes that the product makes
  old = made.removesuffix(new)
  y = jnp.einsum(f'{w.axes},{given}->{new}{old}', w[...], x, **options)
  return jnp.moveaxis(y, range(len(new)), range(-len(new), 0))


OUTPUTS_FIRST = {'DHK': 'HKD', 'DGK': 'GKD', 'HKD': 'DHK', 'DF': 'FD', 'FD': 'DF'}
FEW_IDS = 1024  # rows of a table whose one-hot product is cheap beside any layer's
NORMS = {'layernorm': layernorm, 'rmsnorm': rmsnorm}

ACTIVATIONS = {
  'gelu': lambda up, gate: jax.nn.gelu(up, approximate=True),
  'gelu_exact': lambda up, gate: jax.nn.gelu(up, approximate=False),
  'relu2': lambda up, gate: jnp.square(jax.nn.relu(up)),
  'swiglu': lambda up, gate: up * jax.nn.silu(gate),
  'geglu': lambda up, gate: up * jax.nn.gelu(gate, approximate=True),
}
GATED = ('swiglu', 'geglu')
