"""Low-rank adapters of several runs on one base, chosen for each row of a batch.

y = x W + (x A[i]) B[i], where i is the row's adapter: the products with W are those of the whole batch, the
others gather the factors of each row. Number 0 stands for no adapter: its factors are 0.

Letters: N adapters with number 0, r rank (smaller ones are padded with zeros); the others as in adapters.py.

Sources: Punica (Chen et al. 2023, section 4: gathered products), S-LoRA (Sheng et al. 2023, section 4).
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from gpt_jax.model import layers
from gpt_jax.model.param_trees import is_param, named_params

CACHED = 64  # combinations of adapters whose models are kept; each holds an index of B integers


class Factors(NamedTuple):
  """The adapters of one weight, in the compute dtype."""

  a_NDr: Any  # N, inputs, r
  b_NrD: Any  # N, r, outputs; times the scale
  gain_ND: Any  # N, outputs: DoRA's factors; None where no adapter has them
  inputs: str
  outputs: str


class AdaptedRows(nnx.Module):
  """A weight with the adapters of each row, in the place of a parameter of the GPT."""

  def __init__(self, weight, factors, index_B):
    """index_B: Param of int32, the adapter of each row, or of [1] for one of all rows."""
    declare = lambda value, axes: nnx.Param(value, axes=axes, std=0.0, mean=0.0)
    self.weight, self.index_B, self.inputs, self.outputs = weight, index_B, factors.inputs, factors.outputs
    self.a = declare(factors.a_NDr, f'N{factors.inputs}r')
    self.b = declare(factors.b_NrD, f'Nr{factors.outputs}')
    self.gain = None if factors.gain_ND is None else declare(factors.gain_ND, f'N{factors.outputs}')

  def project(self, subscripts, x, **options):
    """einsum(subscripts, x, W' of each row), without W'."""
    left, out = subscripts.partition(',')[0], subscripts.partition('->')[2]
    index_B, row = self.index_B[...], 'B'
    if len(index_B) == 1:
      index_B, row = index_B[0], ''
    hidden = ''.join(letter for letter in left if letter not in self.inputs) + 'r'
    y = layers.linear(subscripts, x, self.weight, **options)
    h = jnp.einsum(f'{left},{row}{self.inputs}r->{hidden}', x, self.a[...][index_B])
    y = y + jnp.einsum(f'{hidden},{row}r{self.outputs}->{out}', h, self.b[...][index_B], **options)
    if self.gain is not None:
      gain = self.gain[...][index_B].astype(y.dtype)
      axes = [n for n, letter in enumerate(out) if letter not in f'{row}{self.outputs}']
      y = y * jnp.expand_dims(gain, axes)
    return y


class AdapterBank:
  """The adapters that a base can be read with.

  base: GPT with stacked layers. trees: {name: adapters, as of adapters.split}; numbers count from 1 in this
  order. Raises ValueError for an adapter of what is not a matrix of a dense block.
  """

  def __init__(self, base, trees):
    weights, dtype = dict(named_params(base)), jnp.dtype(base.cfg.dtype)
    self.factors = {}  # {path: Factors of each layer}
    for path in sorted(set().union(*trees.values())):
      entries = {name: tree[path] for name, tree in trees.items() if path in tree}
      for name, entry in entries.items():
        if is_param(entry) or 'E' in weights[path].axes or not path.startswith('blocks/'):
          raise ValueError(
            f'--adapters: {name} trains {path}, which is not a matrix of a dense block\n'
            'fix: serve its run alone, with --workdir'
          )
      self.factors[path] = stack(weights[path], [entries.get(name) for name in trees], dtype)
    self.attach = functools.lru_cache(CACHED)(self._attach)

  def _attach(self, model, index):
    """Return the GPT whose row b has the adapter index[b]; model: the base, its layers unstacked."""
    index_B = nnx.Param(jnp.array(index, jnp.int32), axes='B', std=0.0, mean=0.0)

    def replace(path, p):
      head, _, rest = path.partition('/')
      number, _, name = rest.partition('/')
      if head != 'blocks' or f'blocks/{name}' not in self.factors:
        return p
      return AdaptedRows(p, self.factors[f'blocks/{name}'][int(number)], index_B)

    treedef = jax.tree.structure(model, is_leaf=is_param)
    return jax.tree.unflatten(treedef, [replace(path, p) for path, p in named_params(model)])


def stack(weight, entries, dtype):
  """Return the Factors of each layer of a stacked weight; entries: its adapters, None where one has none."""
  some = [entry for entry in entries if entry is not None]
  rank = max(entry.a[...].shape[-1] for entry in some)
  inputs, outputs = some[0].inputs, some[0].outputs
  has_gain = any(entry.magnitude is not None for entry in some)
  (L, *_), first = weight[...].shape, some[0]
  zero_a = jnp.zeros((*first.a[...].shape[:-1], rank), jnp.float32)
  zero_b = jnp.zeros((L, rank, *first.b[...].shape[2:]), jnp.float32)
  one = jnp.ones((L, *first.b[...].shape[2:]), jnp.float32)

  def of(entry):
    if entry is None:
      return zero_a, zero_b, one
    r = entry.a[...].shape[-1]
    gain = one if entry.magnitude is None else jax.jit(lambda e, w: e.gain(w))(entry, weight[...])
    return zero_a.at[..., :r].set(entry.a[...]), zero_b.at[:, :r].set(entry.scale * entry.b[...]), gain

  a, b, gain = (jnp.stack(columns, 1) for columns in zip(*map(of, [None, *entries]), strict=True))
  a, b = a.astype(dtype), b.astype(dtype)
  return [Factors(a[l], b[l], gain[l] if has_gain else None, inputs, outputs) for l in range(L)]
