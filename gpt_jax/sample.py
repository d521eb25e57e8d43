"""Sampling: prefill a prompt, decode with a KV cache, all of it compiled.

`generate` is `prefill` (which calls gpt.init_cache), `repeat` and `decode`, each jitted. Rows are padded on
the right, so a row's cache slot is its position in the text, and prompts of different lengths share one
batch. A row's randomness depends on its own key and position alone: with the same key it samples the same
text alone, in any batch, in one call or in many. A grammar (tokenizers/grammar.py) says which ids are valid
next.

A model with a flow head samples the numbers of a patch with its id: model/flow.py.

With guidance the model runs 2 B rows: below the B conditional ones the same with an empty condition, fed the
same tokens. sampling/ has the host side: text, prompts, beams.

Letters: B rows, P prompt length, T buffer length (prompt and new tokens), V vocabulary.

Sources: Gumbel noise (Maddison et al. 2014); the verbs are gpt-fast's, the state in a while loop is Gemma's.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gpt_jax.model import flow, gpt
from gpt_jax.model.positions import POSITIONS
from gpt_jax.sampling import prompt_batch, samplers, validate
from gpt_jax.sampling.samplers import NEG_INF
from gpt_jax.tokenizers import grammar as grammars


@dataclasses.dataclass(frozen=True)
class SampleConfig:
  """How tokens are chosen. Each filter is off at its default."""

  max_new_tokens: int = 200  # tokens after the prompt
  num_samples: int = 1  # continuations of each prompt
  temperature: float = 1.0  # divides logits; 0 = greedy, always the likeliest token
  top_k: int = 0  # only the k likeliest; 0 = all
  top_p: float = 1.0  # only the likeliest that together have this probability
  min_p: float = 0.0  # only those at least this probable relative to the likeliest
  filters: str = ''  # other rows of FILTERS, from plugins, as in 'name=0.9,other=1'
  repetition_penalty: float = 1.0  # > 1 makes tokens that already occur in the row less likely
  beams: int = 0  # width of beam search; 0 = sampling
  length_penalty: float = 0.6  # beams: a of ((5 + new tokens) / 6)^a, by which scores are divided
  flow_steps: int = 12  # of the sampler of a patch, by a flow head
  guidance: float = 1.0  # classifier-free guidance scale; 1 = off
  seed: int = 0  # same seed, same text
  begin: str = ''  # special token before every prompt, such as bos for Llama models
  judge: str = ''  # RUN:LABEL|LABEL: judges finished texts and images, of which the first label is refused
  judge_threshold: float = 0.5  # least probability of the first label that is refused, 0 to 1
  judge_tries: int = 4  # samples until the refusal; greedy decoding and beams have one
  refusal: str = 'No suitable answer was found.'  # stands in the place of what the judge refuses
  block: tuple[str, ...] = ()  # texts that are never sampled: words, /patterns/, /patterns/i, @FILE of them

  def __post_init__(self):
    validate.check_sampling(self)

  check_effective = validate.check_effective


class SampleState(NamedTuple):
  """A generation in progress."""

  token_ids_BT: jax.Array  # int32; prompt and sampled tokens, then zeros
  lengths_B: jax.Array  # int32; tokens in each row so far
  limits_B: jax.Array  # int32; length at which a row ends
  done_B: jax.Array  # bool; the row has ended
  log_probs_BT: jax.Array  # float32; of each sampled token under the model, before any filter
  next_logits_BV: jax.Array  # float32; for the token at lengths_B
  null_logits_BV: jax.Array | None  # the same without the condition; None without guidance
  guidance_B: jax.Array | None  # float32
  span: grammars.GrammarState  # where each row stands in its text, image or sound
  cache: list  # see gpt.init_cache; B or 2 B rows
  keys_B: jax.Array  # one PRNG key per row
  patches: flow.Patches | None = None  # of a model with a flow head


def prefill(model, prompts, keys_B, slots, cache=None, start=0):
  """Run a prompt_batch.PromptBatch once; return a SampleState with room for `slots` tokens per row.

  cache: keys and values of the first `start` tokens, which input_ids_BP leaves out.
  """
  (B, P), rows, lengths_B = prompts.ids_BP.shape, len(prompts.input_ids_BP), prompts.lengths_B
  cache = cache or gpt.init_cache(model.cfg, rows, slots, model.embed_VD[...].dtype)
  start_B = jnp.full(rows, start, jnp.int32)
  x_BPD, cache, _ = model.trunk(prompts.input_ids_BP, cache=cache, start_B=start_B, **prompts.inputs)
  last_B = jnp.tile(lengths_B, rows // B) - 1 - start
  x_B1D = jnp.take_along_axis(x_BPD, last_B[:, None, None], 1)
  logits_BV = model.logits(x_B1D)[:, 0]
  return SampleState(
    token_ids_BT=jnp.pad(prompts.ids_BP, ((0, 0), (0, slots - P))),
    lengths_B=lengths_B,
    limits_B=lengths_B + prompts.span.room_B,
    done_B=jnp.zeros(B, bool),
    log_probs_BT=jnp.zeros((B, slots), jnp.float32),
    next_logits_BV=logits_BV[:B],
    null_logits_BV=None if rows == B else logits_BV[B:],
    guidance_B=prompts.guidance_B,
    span=prompts.span,
    cache=cache,
    keys_B=keys_B,
    patches=flow.begin(model, x_B1D, prompts.inputs, slots, B),
  )


def repeat(state, n, keys_B):
  """Repeat every row n times with its own keys: n continuations for one prefill."""
  state = jax.tree.map(lambda x: jnp.repeat(x, n, 0), state._replace(keys_B=None))
  return state._replace(keys_B=keys_B)


def decode(model, state, steps, cfg, grammar):
  """Sample up to `steps` more tokens; stop early when every row has ended.

  cfg: SampleConfig. grammar: Grammar of the ids that are valid next, and of those that end a row.
  """

  def more(carry):
    i, state = carry
    return (i < steps) & ~state.done_B.all()

  def step(carry):
    i, state = carry
    return i + 1, decode_step(model, state, cfg, grammar)

  return jax.lax.while_loop(more, step, (0, state))[1]


def decode_step(model, state, cfg, grammar, choose=None):
  """Sample one token for each row that has not ended (by `choose`), and run it through the model."""
  B, T = state.token_ids_BT.shape
  rows_B = jnp.arange(B)
  token_B = (choose or choose_token)(state, cfg, grammar)
  log_prob_B = jax.nn.log_softmax(state.next_logits_BV)[rows_B, token_B]
  slots_B = jnp.where(state.done_B, T, state.lengths_B)  # beyond the buffer = dropped
  lengths_B = state.lengths_B + (~state.done_B).astype(jnp.int32)
  inputs = next_positions(model.cfg, grammar, state.span, token_B) | {'start_B': state.lengths_B}
  inputs |= {'token_ids_BT': token_B[:, None]} | flow.sample_patches(model, state, token_B, cfg)
  if state.null_logits_BV is not None:
    inputs = jax.tree.map(lambda x: jnp.concatenate([x, x]), inputs)
  x_BTD, cache, _ = model.trunk(cache=state.cache, **inputs)
  logits_BTV = model.logits(x_BTD)
  return state._replace(
    token_ids_BT=state.token_ids_BT.at[rows_B, slots_B].set(token_B, mode='drop'),
    log_probs_BT=state.log_probs_BT.at[rows_B, slots_B].set(log_prob_B, mode='drop'),
    lengths_B=lengths_B,
    done_B=state.done_B | grammar.ends_V[token_B] | (lengths_B >= state.limits_B),
    next_logits_BV=logits_BTV[:B, 0],
    null_logits_BV=None if state.null_logits_BV is None else logits_BTV[B:, 0],
    span=grammars.advance(grammar, state.span, token_B),
    cache=cache,
    patches=flow.advance(state.patches, x_BTD, slots_B, inputs),
  )


def next_positions(cfg, grammar, span, token_B):
  """Return the model's positions argument for each row's next token; {} where that is its slot."""
  if POSITIONS[cfg.positions].axes == 1:
    return {}
  return {'positions_BT': grammars.position3(grammar, span, token_B)[:, None]}


def choose_token(state, cfg, grammar):
  """Return the next token of each row, token_B."""
  logits_BV, allowed_BV = state.next_logits_BV, grammars.allowed(grammar, state.span)
  if state.null_logits_BV is not None:
    logits_BV = samplers.apply_guidance(
      logits_BV, state.null_logits_BV, state.guidance_B, allowed_BV, grammar.paced_V
    )
  if cfg.repetition_penalty != 1.0:
    logits_BV = samplers.penalize_repetition(
      logits_BV, state.token_ids_BT, state.lengths_B, cfg.repetition_penalty
    )
  logits_BV = jnp.where(allowed_BV, logits_BV, NEG_INF)
  if cfg.temperature == 0.0:
    return logits_BV.argmax(-1).astype(jnp.int32)
  logits_BV = logits_BV / cfg.temperature
  for keep, value in samplers.active_filters(cfg):
    logits_BV = jnp.where(keep(logits_BV, value), logits_BV, NEG_INF)
  keys_B = jax.vmap(jax.random.fold_in)(state.keys_B, state.lengths_B)
  noise_BV = jax.vmap(lambda key: jax.random.gumbel(key, logits_BV.shape[1:]))(keys_B)
  return (logits_BV + noise_BV).argmax(-1).astype(jnp.int32)


def row_keys(seed, rows):
  """Return one key per row: row b's depends on (seed, b) alone."""
  return jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(seed)))(jnp.arange(rows))


jit_prefill = jax.jit(prefill, static_argnames='slots')
jit_repeat = jax.jit(repeat, static_argnames='n')
jit_decode = jax.jit(decode, static_argnames='cfg', donate_argnames='state')


def start(model, prompts, cfg, grammar, keys_B=None):
  """Prefill prompts (Prompt or lists of ids); return a SampleState, cfg.num_samples rows per prompt in order.

  model: from decoding_layout.prepare_model. Raises ValueError for an empty prompt, an id that the model does
  not have, a context too short for prompt and completion, and guidance without a condition.
  """
  prompts = [prompt_batch.as_prompt(prompt) for prompt in prompts]
  prompt_batch.check_prompts([p.ids for p in prompts], cfg.max_new_tokens, model.cfg)
  longest = max(len(p.ids) for p in prompts)
  slots = prompt_batch.round_up_slots(longest + cfg.max_new_tokens, model.cfg.context)
  ready = prompt_batch.batch_prompts(
    model.cfg, prompts, cfg, grammar, prompt_batch.round_up_prompt(longest, slots)
  )
  n = cfg.num_samples
  keys_B = row_keys(cfg.seed, len(prompts) * n) if keys_B is None else keys_B
  state = jit_prefill(model, ready, keys_B[::n], slots)
  return jit_repeat(state, n, keys_B) if n > 1 else state


def generate(model, prompts, cfg, grammar, keys_B=None):
  """Continue prompts to the end, without a host sync per token; return a SampleState, rows as of `start`.

  Samples, or takes the likeliest token; beams are searched by sampling/beam.py.
  """
  state = start(model, prompts, cfg, grammar, keys_B)
  return jit_decode(model, state, cfg.max_new_tokens, validate.static_config(cfg), grammar)
