"""A weight whose product measures the norm of each unit's gradient without its being computed.

The probe is a zero that nothing reads; its cotangent is |x^T dy|^2, the squared norm of the weight's gradient
from the inputs x and the outputs' gradient dy of one unit. Under vmap over units the weight stays one array.

Letters: N tokens of a unit, I inputs, O outputs of a weight, L layers.

Sources: norms from activations and their gradients (Goodfellow 2015, arXiv:1510.01799), as a product of
Gram matrices where tokens are few (Li et al. 2021, arXiv:2110.05679, section 4).
"""

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx

from gpt_jax.model import layers, param_trees

AXES = ('DHK', 'DGK', 'HKD', 'DF', 'FD')  # of weights that `layers.linear` alone reads, once a pass


class Tapped(nnx.Module):
  """A weight and its probe, in the place of a parameter of the GPT; `layers.linear` calls `project`."""

  def __init__(self, weight, probe):
    """weight, probe: Param, the probe float32 without axes but for the L of the weight."""
    self.weight, self.probe = weight, probe

  def project(self, subscripts, x, **options):
    """einsum(subscripts, x, weight)."""
    y = layers.linear(subscripts, x, self.weight, **options)
    left, _, out = subscripts.partition('->')
    inputs = [letter for letter in left.partition(',')[0] if letter not in out]
    return tap(len(inputs), x, y, self.probe[...])


def is_tapped(p):
  """Whether a parameter can be a Tapped weight: a matrix of the blocks, but of experts."""
  return p.axes.startswith('L') and p.axes[1:] in AXES


def attach(model, probes, values):
  """Return the trained tree with Tapped weights; probes: {path: array [L]}, values: {path: array} of all."""

  def leaf(path, p):
    return Tapped(p, nnx.Param(probes[path], axes='L', std=0.0, mean=0.0)) if path in probes else p

  model = param_trees.map_params(lambda path, p: values[path], model)
  treedef = jax.tree.structure(model, is_leaf=param_trees.is_param)
  return jax.tree.unflatten(treedef, [leaf(path, p) for path, p in param_trees.named_params(model)])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def tap(inputs, x, y, probe):
  """Return y, the product of a weight with the last `inputs` axes of x."""
  return y


def _tap_backward(inputs, x, dy):
  tokens = math.prod(x.shape[:-inputs])
  return None, dy, squared_norm(x.reshape(tokens, -1), dy.reshape(tokens, -1))


tap.defvjp(lambda inputs, x, y, probe: (y, x), _tap_backward)


def squared_norm(x_NI, dy_NO):
  """Return |x^T dy|^2, float32, by the cheaper of two products: of the two Gram matrices, or of x and dy."""
  # A norm that rounding makes too small would break the guarantee; accelerators round float32 products.
  exact = dict(preferred_element_type=jnp.float32, precision=jax.lax.Precision.HIGHEST)
  dot = functools.partial(jnp.einsum, **exact)
  (N, I), O = x_NI.shape, dy_NO.shape[1]
  if N * (I + O) < I * O:
    return (dot('NI,MI->NM', x_NI, x_NI) * dot('NO,MO->NM', dy_NO, dy_NO)).sum()
  return jnp.square(dot('NI,NO->IO', x_NI, dy_NO)).sum()
