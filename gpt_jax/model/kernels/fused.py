"""Faster forms of layers: hand-written gradients, recomputed activations, weight layouts for decoding.

Each computes what the plain formula computes; layers.py and gpt.py say where they stand.

Letters: B batch, T length, D width, F feed-forward width, V rows of a table.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from gpt_jax.cluster.meshes import platform

# -------------------------------------------------------------------------- hand-written gradients


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def layernorm(x, eps):
  """(x - mean) / sqrt(variance + eps) over the last axis, float32.

  The gradient needs two means that do not depend on each other, thus one pass, and saves x in its own
  dtype.
  """
  return _layernorm_forward(x, eps)[0]


def _layernorm_forward(x, eps):
  x32 = x.astype(jnp.float32)
  mean = x32.mean(-1, keepdims=True)
  scale = jax.lax.rsqrt(jnp.square(x32 - mean).mean(-1, keepdims=True) + eps)
  # The barrier saves both: XLA would recompute them in a kernel of its own, which writes y times the
  # gradient out in float32.
  return (x32 - mean) * scale, (x, *jax.lax.optimization_barrier((mean, scale)))


def _layernorm_backward(eps, residuals, dy):
  x, mean, scale = residuals
  y = (x.astype(jnp.float32) - mean) * scale
  projection = (dy * y).mean(-1, keepdims=True)
  return ((scale * (dy - dy.mean(-1, keepdims=True) - y * projection)).astype(x.dtype),)


layernorm.defvjp(_layernorm_forward, _layernorm_backward)


@jax.custom_vjp
def token_losses(logits_BTV, target_ids_BT):
  """Return (nats_BT, log_z_BT), float32: each target's cross-entropy, and its log-normalizer.

  The gradient, softmax minus one-hot, is written by hand: autodiff of the gather is a scatter into
  float32 zeros of the logits' size, three more passes over the largest array of all.
  """
  logits_BTV = logits_BTV.astype(jnp.float32)
  log_z_BT = jax.nn.logsumexp(logits_BTV, -1)
  target_logits_BT = jnp.take_along_axis(logits_BTV, target_ids_BT[..., None], -1)[..., 0]
  return log_z_BT - target_logits_BT, log_z_BT


def _token_losses_forward(logits_BTV, target_ids_BT):
  nats_BT, log_z_BT = token_losses(logits_BTV, target_ids_BT)
  return (nats_BT, log_z_BT), (logits_BTV, target_ids_BT, log_z_BT)


def _token_losses_backward(residuals, grads):
  logits_BTV, target_ids_BT, log_z_BT = residuals
  nats_grad_BT, log_z_grad_BT = grads
  is_target_BTV = target_ids_BT[..., None] == jnp.arange(logits_BTV.shape[-1])[None, None]
  probs_BTV = jnp.exp(logits_BTV.astype(jnp.float32) - log_z_BT[..., None])
  target_grad_BTV = jnp.where(is_target_BTV, nats_grad_BT[..., None], 0.0)
  grad_BTV = probs_BTV * (nats_grad_BT + log_z_grad_BT)[..., None] - target_grad_BTV
  return grad_BTV.astype(logits_BTV.dtype), None


token_losses.defvjp(_token_losses_forward, _token_losses_backward)


@jax.custom_vjp
def lookup(table_VD, ids):
  """Rows of a table, [*ids.shape, D].

  The gradient, summed in float32, is a one-hot product where the table is small: on a GPU thousands of
  atomic sums into few rows wait for each other (a fifth of a step at 65 characters).
  """
  return table_VD[ids]


def _lookup_backward(residuals, dy):
  table_VD, ids = residuals
  V, D = table_VD.shape
  # Batch and length stay apart: flattened, a mesh that spreads both would gather the whole gradient.
  if V <= ONE_HOT_ROWS and platform() != 'cpu':
    one_hot = jax.nn.one_hot(ids, V, dtype=dy.dtype)
    leading = tuple(range(ids.ndim))
    sum_VD = jnp.tensordot(
      one_hot, dy, (leading, leading), precision=jax.lax.Precision.HIGHEST, preferred_element_type=jnp.float32
    )
  else:
    sum_VD = jnp.zeros((V, D), jnp.float32).at[ids].add(dy.astype(jnp.float32))
  return sum_VD.astype(table_VD.dtype), None


lookup.defvjp(lambda table_VD, ids: (table_VD[ids], (table_VD, ids)), _lookup_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def expand(subscripts, x, w):
  """einsum of x with a matrix of few inputs, the second factor of an adapter: 'BTr,rF->BTF'.

  The product of autodiff's gradient of w begins with a copy of dy, transposed, and takes a CPU eight times as
  long (7.6 ms instead of 0.9 for 512 x 16 and 2,048 outputs). This one transposes x.
  """
  return jnp.einsum(subscripts, x, w)


def _expand_backward(subscripts, residuals, dy):
  x, w = residuals
  inputs, _, outputs = subscripts.partition('->')
  left, right = inputs.split(',')
  dx = jnp.einsum(f'{outputs},{right}->{left}', dy, w)
  return dx, jnp.einsum(f'{left},{outputs}->{right}', x, dy)


expand.defvjp(lambda subscripts, x, w: (expand(subscripts, x, w), (x, w)), _expand_backward)


@jax.custom_vjp
def large_head(x_BTD, table_VD):
  """einsum 'BTD,VD->BTV' of a large vocabulary on a CPU; the gradient of x is summed over chunks of the ids.

  One product that sums over 262,144 ids runs at half of a CPU's speed. Reverse mode alone.
  """
  return jnp.einsum('BTD,VD->BTV', x_BTD, table_VD)


def _large_head_backward(residuals, dy_BTV):
  x_BTD, table_VD = residuals

  def dx_of(start, size):
    dy_BTv = jax.lax.dynamic_slice_in_dim(dy_BTV, start, size, 2)
    table_vD = jax.lax.dynamic_slice_in_dim(table_VD, start, size, 0)
    return jnp.einsum('BTv,vD->BTD', dy_BTv, table_vD, preferred_element_type=jnp.float32)

  chunks, rest = divmod(len(table_VD), CHUNK)
  last_BTD = dx_of(chunks * CHUNK, rest) if rest else jnp.zeros(x_BTD.shape, jnp.float32)
  dx_BTD = jax.lax.fori_loop(0, chunks, lambda i, sum_BTD: sum_BTD + dx_of(i * CHUNK, CHUNK), last_BTD)
  return dx_BTD.astype(x_BTD.dtype), jnp.einsum('BTV,BTD->VD', dy_BTV, x_BTD)


large_head.defvjp(lambda x, w: (large_head(x, w), (x, w)), _large_head_backward)


# --------------------------------------------------------------------------- recomputed activations


def remat_hidden(fn):
  """An MLP's hidden layer that saves its matmul outputs only: activations are recomputed backward.

  The residuals of an activation function are as large as its output.
  """
  return jax.checkpoint(fn, policy=save_products(jax.checkpoint_policies.dots_saveable))


def save_products(dots, *names):
  """Return the remat policy that saves what `dots` says and arrays of these names.

  Of a sum of products, PRODUCT, it saves the sum: the terms, of a weight and its adapter, are not read again.
  """
  return jax.checkpoint_policies.save_from_both_policies(
    dots, jax.checkpoint_policies.save_only_these_names(PRODUCT, *names)
  )


# ------------------------------------------------------------------------ weight layouts for decoding


def outputs_first(p):
  """The parameter with the output axes of a matrix in front: 'DF' becomes 'FD'.

  For decoding, where products have few rows. A CPU packs the right operand anew in every call, which takes
  as long as the product: `linear` puts such weights left. A GPU sums along the weights' rows in one pass,
  where for columns XLA makes a product, written out, and a sum.
  """
  if p.axes not in OUTPUTS_FIRST:
    return p
  axes = OUTPUTS_FIRST[p.axes]
  value = jnp.transpose(p.get_value(), [p.axes.index(a) for a in axes])
  return nnx.Param(value, axes=axes, std=p.std, mean=p.mean)


def is_outputs_first(subscripts, w):
  """Whether the parameter of 'BTD,DF->BTF' has been transposed by `outputs_first`."""
  axes = subscripts.partition(',')[2].partition('->')[0]
  return axes in OUTPUTS_FIRST and w.axes == OUTPUTS_FIRST[axes]


def head_product(x_BTD, table_VD):
  """Return a CPU's faster product (subscripts, x_BTD, table_VD, **options of einsum) of the head, or None.

  With few rows it is `weights_left`; with many ids `large_head`, in training, which gives no options.
  """
  if platform() != 'cpu':
    return None
  if x_BTD.shape[0] * x_BTD.shape[1] <= FEW_ROWS:
    return weights_left
  is_whole = isinstance(table_VD, nnx.Param) and jax.sharding.get_abstract_mesh().size <= 1
  if is_whole and len(table_VD) >= LARGE_VOCAB:
    return lambda subscripts, x, w, **options: (
      jnp.einsum(subscripts, x, w[...], **options) if options else large_head(x, w[...])
    )
  return None


def weights_left(subscripts, x, w, **options):
  """The same einsum with the parameter as its left operand, whatever the order of its axes."""
  inputs, outputs = subscripts.partition(',')[0], subscripts.partition('->')[2]
  new = ''.join(a for a in outputs if a not in inputs)  # the axes that come from the parameter
  old = outputs.removesuffix(new)
  y = jnp.einsum(f'{w.axes},{inputs}->{new}{old}', w[...], x, **options)
  return jnp.moveaxis(y, range(len(new)), range(-len(new), 0))


OUTPUTS_FIRST = {'DHK': 'HKD', 'DGK': 'GKD', 'HKD': 'DHK', 'DF': 'FD', 'FD': 'DF'}
FEW_ROWS = 32
LARGE_VOCAB, CHUNK = 1 << 16, 1 << 10  # ids from which `large_head` pays, and of one of its chunks
PRODUCT = 'product'  # checkpoint_name of a sum of products
ONE_HOT_ROWS = 1024  # rows of a table whose one-hot product is cheap beside any layer's
