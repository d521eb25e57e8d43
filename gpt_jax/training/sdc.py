"""A step made twice: hardware that computes wrongly now and then is found, and nothing of it kept.

The same program on the same inputs gives the same bits on sound CPUs and TPUs; on GPUs where the
step has no operation whose order of sums varies (XLA_FLAGS=--xla_gpu_deterministic_ops=true).
"""

import jax
import jax.numpy as jnp

from gpt_jax.sharding import replicated
from gpt_jax.training import trees


class ResultsDiffer(RuntimeError):
  """Two results that should be equal are not."""


class ReplayedStep:
  """A compiled step that donates its state, as one that runs twice and compares every bit.

  Costs a second step, and memory for a second state while it runs.
  """

  def __init__(self, step, mesh):
    self.step, self.mesh = step, mesh
    self.copy = None  # compiled when the shardings are known

  def __call__(self, state, batch):
    """-> (state, metrics) as `step` gives them; ResultsDiffer if the two results do."""
    if self.copy is None:
      shardings = jax.tree.map(lambda x: x.sharding, state)
      self.copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree), out_shardings=shardings)
      self.compare = jax.jit(differing, out_shardings=replicated(self.mesh))
    again = self.copy(state)
    first = self.step(state, batch)
    wrong = jax.device_get(self.compare(first, self.step(again, batch)))
    if names := [name for name, differs in wrong.items() if differs]:
      number = int(jax.device_get(first[0].step))
      raise ResultsDiffer(
        f'step {number} was made twice on the same inputs and differs in {len(names)} of '
        f'{len(wrong)} arrays: {trees.shortened(names, 5)}; neither was kept\n'
        'fix: run the same command on another machine; on GPUs first set '
        'XLA_FLAGS=--xla_gpu_deterministic_ops=true'
      )
    return first


def differing(one, other):
  """{path: whether any bit differs} of two results of a step."""
  one, other = (trees.flat(trees.to_tree(result)) for result in (one, other))
  return {path: (bits(one[path]) != bits(other[path])).any() for path in one}


def bits(x):
  """An array as integers: NaN equals itself, and 0 is not -0."""
  if not jnp.issubdtype(x.dtype, jnp.floating):
    return x
  return jax.lax.bitcast_convert_type(x, jnp.dtype(f'uint{8 * x.dtype.itemsize}'))
