"""Abstract arguments of the sampler, without a prompt: weights laid out for decoding, prompts, caches.

Letters: B rows, P prompt length, G key/value heads, S cache slots, K head width.
"""

import functools

import jax
import numpy as np

from gpt_jax import sample, sharding
from gpt_jax.model import gpt
from gpt_jax.sampling import decoding_layout, validate
from gpt_jax.sampling.prompt_batch import PromptBatch
from gpt_jax.tokenizers import grammar


def with_sharding(x, sharding):
  """A ShapeDtypeStruct with this sharding."""
  return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)


def abstract_weights(model, mesh):
  """The weights of a ModelConfig, laid out for decoding, with their shardings on the mesh."""
  abstract = jax.eval_shape(
    functools.partial(decoding_layout.for_sampling, dtype=model.dtype), gpt.GPT(model)
  )
  return jax.tree.map(with_sharding, abstract, gpt.shardings(abstract, mesh))


def lower_prefill(model, mesh, rows, length, slots):
  """Lower the prefill of text prompts -> (lowered, arguments)."""
  weights = abstract_weights(model, mesh)
  arguments = weights, prompts(rows, length), jax.eval_shape(lambda: sample.row_keys(0, rows))
  return sample.jit_prefill.lower(*arguments, slots), (weights,)


def lower_decode(model, mesh, rows, slots, cfg):
  """Lower a decode step of rows with caches of these slots -> (lowered, arguments); cfg: SampleConfig."""
  weights = abstract_weights(model, mesh)
  keys_B = jax.eval_shape(lambda: sample.row_keys(0, rows))
  state = jax.eval_shape(functools.partial(sample.prefill, slots=slots), weights, prompts(rows, 1), keys_B)
  letters = lambda x: 'BGSK' if x.ndim == 4 else 'B' + 'T' * (x.ndim - 1)
  activation_rules = sharding.ACTIVATION_RULES | {'T': None}
  spec = lambda x: sharding.spec(letters(x), activation_rules, mesh.shape)
  state = jax.tree.map(lambda x: with_sharding(x, jax.sharding.NamedSharding(mesh, spec(x))), state)
  choices, rules = validate.static_config(cfg), grammar.plain(np.ones(model.V, bool))
  decode = lambda weights, state, rules: sample.decode_step(weights, state, choices, rules)
  return jax.jit(decode, donate_argnums=1).lower(weights, state, rules), (weights, state)


def prompts(rows, length):
  """A PromptBatch of text."""
  zeros_B, ids_BP = np.zeros(rows, np.int32), np.zeros((rows, length), np.int32)
  return PromptBatch(ids_BP, zeros_B + 1, ids_BP, {}, None, grammar.GrammarState(*[zeros_B] * 4))
