"""Check for silent data corruption (SDC): run a step twice and compare the results bitwise.

The same program on the same inputs gives the same bits on sound CPUs and TPUs; on GPUs if no operation
of the step varies the order of its sums (XLA_FLAGS=--xla_gpu_deterministic_ops=true).
"""

import jax
import jax.numpy as jnp

from gpt_jax.runs.text_table import join_some
from gpt_jax.sharding import replicated
from gpt_jax.training import trees


class ResultsDiffer(RuntimeError):
  """Two results that should be equal are not."""


class ReplayedStep:
  """A compiled step that runs twice on a copy of its donated state and compares every bit.

  Costs a second step, and memory for a second state while it runs.
  """

  def __init__(self, step, mesh):
    self.step, self.mesh = step, mesh
    self.copy = self.compare = None  # compiled when the shardings are known

  def __call__(self, state, batch):
    """Return the (state, metrics) of `step`; raise ResultsDiffer if a second run differs."""
    if self.copy is None:
      shardings = jax.tree.map(lambda x: x.sharding, state)
      self.copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree), out_shardings=shardings)
      self.compare = jax.jit(compare_bits, out_shardings=replicated(self.mesh))
    state_copy = self.copy(state)
    first = self.step(state, batch)
    differs = jax.device_get(self.compare(first, self.step(state_copy, batch)))
    if paths := [path for path, any_bit in differs.items() if any_bit]:
      number = int(jax.device_get(first[0].step))
      raise ResultsDiffer(
        f'step {number} ran twice on the same inputs and differs in {len(paths)} of '
        f'{len(differs)} arrays: {join_some(paths, 5)}; both results are discarded\n'
        'fix: run the same command on another machine; on GPUs first set '
        'XLA_FLAGS=--xla_gpu_deterministic_ops=true'
      )
    return first


def compare_bits(one, other):
  """Return {path: whether any bit differs} of two results of a step."""
  one, other = (trees.flat(trees.to_tree(result)) for result in (one, other))
  return {path: (as_bits(one[path]) != as_bits(other[path])).any() for path in one}


def as_bits(x):
  """Return an array as integers: NaN equals itself, and 0 is not -0."""
  if not jnp.issubdtype(x.dtype, jnp.floating):
    return x
  return jax.lax.bitcast_convert_type(x, jnp.dtype(f'uint{8 * x.dtype.itemsize}'))
