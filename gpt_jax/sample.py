"""Sampling: prefill a prompt, decode with a cache, all of it compiled.

Four verbs: `init_cache` (model/gpt.py), `prefill`, `decode`, `generate`. Rows are padded on the
right, so a row's cache slot is its place in the text, and prompts of different lengths share one
batch. A row's randomness depends on its own key and place alone: it samples the same text alone, in
any batch, in one call or in many.

Letters: B rows, P prompt length, T buffer length (prompt and new tokens), V vocabulary.

Sources: nucleus (Holtzman et al. 2020), min-p (Nguyen et al. 2024), repetition penalty (CTRL,
Keskar et al. 2019, section 4.1), sampling by Gumbel noise (Maddison et al. 2014); the verbs are
gpt-fast's, the state in a while loop is Gemma's.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gpt_jax.losses import token_losses
from gpt_jax.model import gpt

NEVER = -1e30  # the logit of what must not be sampled


@dataclasses.dataclass(frozen=True)
class SampleConfig:
  """How to choose tokens. Each filter is off at its default."""

  max_new_tokens: int = 200  # tokens after the prompt
  num_samples: int = 1  # continuations of each prompt
  temperature: float = 1.0  # divides logits; 0 = always the likeliest token
  top_k: int = 0  # only the k likeliest; 0 = all
  top_p: float = 1.0  # only the likeliest that together have this probability
  min_p: float = 0.0  # only those at least this probable relative to the likeliest
  repetition_penalty: float = 1.0  # > 1 makes tokens that already occur in the row less likely
  beams: int = 0  # beam search with this many beams instead of sampling; 0 = sampling
  length_penalty: float = 0.6  # beams: exponent of the length by which scores are divided
  seed: int = 0  # same seed, same text
  begin: str = ''  # special put before every prompt, such as bos for Llama models

  def __post_init__(self):
    for key, (low, high) in LIMITS.items():
      if not low <= getattr(self, key) <= high:
        raise ValueError(
          f'sample.{key}={getattr(self, key)} is out of range\nfix: use {low} to {high}'
        )
    unused = [k for k in ('temperature', *FILTERS, 'repetition_penalty') if self.beams and
              getattr(self, k) != getattr(type(self), k)]  # fmt: skip
    if unused:
      raise ValueError(
        f'sample.beams={self.beams} searches and does not sample: {", ".join(unused)} has no use\n'
        'fix: leave it at its default, or set beams=0'
      )
    if self.beams and self.num_samples > self.beams:
      raise ValueError(
        f'sample.num_samples={self.num_samples} with only {self.beams} beams\nfix: use more beams'
      )


class SampleState(NamedTuple):
  """A generation under way."""

  token_ids_BT: jax.Array  # int32; prompt and what was sampled, then zeros
  lengths_B: jax.Array  # int32; tokens in each row so far
  limits_B: jax.Array  # int32; a row ends when it is this long
  done_B: jax.Array  # bool; the row has ended
  log_probs_BT: jax.Array  # float32; of each sampled token under the model, before any filter
  next_logits_BV: jax.Array  # float32; for the token at lengths_B
  cache: list  # see gpt.init_cache
  keys_B: jax.Array  # one PRNG key a row


def prefill(model, prompt_ids_BP, lengths_B, keys_B, slots, max_new_tokens):
  """Run the prompts once -> SampleState with room for `slots` tokens a row.

  prompt_ids_BP is padded on the right with anything; lengths_B >= 1 says where each prompt ends.
  """
  B, P = prompt_ids_BP.shape
  dtype = model.embed_VD[...].dtype
  cache = gpt.init_cache(model.cfg, B, slots, dtype)
  x_BPD, cache, _ = model.hidden(prompt_ids_BP, cache=cache, start_B=jnp.zeros(B, jnp.int32))
  last_B1D = jnp.take_along_axis(x_BPD, (lengths_B - 1)[:, None, None], 1)
  in_prompt_BP = jnp.arange(P)[None] < lengths_B[:, None]
  token_ids_BT = jnp.zeros((B, slots), jnp.int32)
  return SampleState(
    token_ids_BT=token_ids_BT.at[:, :P].set(jnp.where(in_prompt_BP, prompt_ids_BP, 0)),
    lengths_B=lengths_B,
    limits_B=jnp.minimum(lengths_B + max_new_tokens, slots),
    done_B=jnp.zeros(B, bool),
    log_probs_BT=jnp.zeros((B, slots), jnp.float32),
    next_logits_BV=model.logits(last_B1D)[:, 0],
    cache=cache,
    keys_B=keys_B,
  )


def repeat(state, n, keys_B):
  """Every row n times, with keys of their own: n continuations for one prefill."""
  state = jax.tree.map(lambda x: jnp.repeat(x, n, 0), state._replace(keys_B=None))
  return state._replace(keys_B=keys_B)


def decode(model, state, steps, cfg, allowed_V, stop_ids):
  """Up to `steps` tokens more, stopping early when every row has ended.

  cfg: SampleConfig. allowed_V: bool, what may be sampled. stop_ids: a row ends with any of these.
  """

  def more(carry):
    i, state = carry
    return (i < steps) & ~state.done_B.all()

  def step(carry):
    i, state = carry
    return i + 1, decode_one(model, state, cfg, allowed_V, stop_ids)

  return jax.lax.while_loop(more, step, (0, state))[1]


def decode_one(model, state, cfg, allowed_V, stop_ids):
  """Sample one token for each row that has not ended, and run it."""
  rows_B = jnp.arange(state.lengths_B.shape[0])
  token_B = choose(state, cfg, allowed_V)
  log_prob_B = jax.nn.log_softmax(state.next_logits_BV)[rows_B, token_B]
  at_B = jnp.where(state.done_B, state.token_ids_BT.shape[1], state.lengths_B)  # beyond = dropped
  lengths_B = state.lengths_B + (~state.done_B).astype(jnp.int32)
  stops_B = (token_B[:, None] == jnp.asarray(stop_ids, jnp.int32).reshape(1, -1)).any(-1)
  out = model(token_B[:, None], cache=state.cache, start_B=state.lengths_B)
  return state._replace(
    token_ids_BT=state.token_ids_BT.at[rows_B, at_B].set(token_B, mode='drop'),
    log_probs_BT=state.log_probs_BT.at[rows_B, at_B].set(log_prob_B, mode='drop'),
    lengths_B=lengths_B,
    done_B=state.done_B | stops_B | (lengths_B >= state.limits_B),
    next_logits_BV=out.logits_BTV[:, 0],
    cache=out.cache,
  )


def choose(state, cfg, allowed_V):
  """The next token of each row."""
  logits_BV = state.next_logits_BV
  if cfg.repetition_penalty != 1.0:
    logits_BV = penalise_repetition(logits_BV, state, cfg.repetition_penalty)
  logits_BV = jnp.where(allowed_V[None], logits_BV, NEVER)
  if cfg.temperature == 0.0:
    return logits_BV.argmax(-1).astype(jnp.int32)
  logits_BV = logits_BV / cfg.temperature
  for name, (off, keep) in FILTERS.items():
    value = getattr(cfg, name)
    if value != off:
      logits_BV = jnp.where(keep(logits_BV, value), logits_BV, NEVER)
  keys_B = jax.vmap(jax.random.fold_in)(state.keys_B, state.lengths_B)
  noise_BV = jax.vmap(lambda key: jax.random.gumbel(key, logits_BV.shape[1:]))(keys_B)
  return (logits_BV + noise_BV).argmax(-1).astype(jnp.int32)


def penalise_repetition(logits_BV, state, penalty):
  """Divide positive logits of tokens already in the row by the penalty, multiply negative ones."""
  B, T = state.token_ids_BT.shape
  there_BT = jnp.arange(T)[None] < state.lengths_B[:, None]
  seen_BV = jnp.zeros(logits_BV.shape, bool)
  seen_BV = seen_BV.at[jnp.arange(B)[:, None], state.token_ids_BT].max(there_BT)
  penalised_BV = jnp.where(logits_BV > 0, logits_BV / penalty, logits_BV * penalty)
  return jnp.where(seen_BV, penalised_BV, logits_BV)


def top_k(logits_BV, k):
  """True for the k likeliest (ties with the k-th included)."""
  kth_B1 = jax.lax.top_k(logits_BV, min(k, logits_BV.shape[-1]))[0][:, -1:]
  return logits_BV >= kth_B1


def top_p(logits_BV, p):
  """True for the smallest set of likeliest tokens with probability >= p, never empty."""
  sorted_BV = -jnp.sort(-logits_BV, -1)
  probs_BV = jax.nn.softmax(sorted_BV, -1)
  before_BV = jnp.cumsum(probs_BV, -1) - probs_BV
  last_BV = jnp.where(before_BV < p, sorted_BV, jnp.inf)
  return logits_BV >= last_BV.min(-1, keepdims=True)


def min_p(logits_BV, p):
  """True where probability >= p times that of the likeliest."""
  return logits_BV >= logits_BV.max(-1, keepdims=True) + jnp.log(p)


def row_keys(seed, rows):
  """One key a row: row b's depends on (seed, b) alone."""
  return jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(seed)))(jnp.arange(rows))


def bucket(n, most):
  """n rounded up to a power of two (at least 32), at most `most`: few shapes, few compilations."""
  return min(max(32, 1 << (n - 1).bit_length()), most)


_prefill = jax.jit(prefill, static_argnames=('slots', 'max_new_tokens'))
_repeat = jax.jit(repeat, static_argnames='n')
_decode = jax.jit(decode, static_argnames=('steps', 'cfg', 'stop_ids'), donate_argnames='state')


def start(model, prompts, cfg, keys_B=None):
  """Prompts (lists of ids) -> SampleState with cfg.num_samples rows a prompt, in order.

  `model` comes from gpt.for_sampling. Raises ValueError for an empty prompt, an id that the model
  does not have, or one that leaves no room in the context.
  """
  check_prompts(prompts, cfg.max_new_tokens, model.cfg)
  lengths_B = np.array([len(p) for p in prompts], np.int32)
  slots = bucket(int(lengths_B.max()) + cfg.max_new_tokens, model.cfg.context)
  P = bucket(int(lengths_B.max()), slots)
  prompt_BP = np.zeros((len(prompts), P), np.int32)
  for row, prompt in zip(prompt_BP, prompts, strict=True):
    row[: len(prompt)] = prompt
  n = cfg.num_samples
  keys_B = row_keys(cfg.seed, len(prompts) * n) if keys_B is None else keys_B
  state = _prefill(model, prompt_BP, lengths_B, keys_B[::n], slots, cfg.max_new_tokens)
  return _repeat(state, n, keys_B)


def choice_rules(cfg):
  """cfg without what `choose` does not read: another seed compiles nothing again."""
  return dataclasses.replace(cfg, max_new_tokens=1, num_samples=1, seed=0, begin='')


def generate(model, prompts, cfg, allowed_V, stop_ids=(), keys_B=None):
  """Continue prompts to the end in one compiled call -> SampleState, rows as of `start`."""
  state = start(model, prompts, cfg, keys_B)
  steps, rules = cfg.max_new_tokens, choice_rules(cfg)
  return _decode(model, state, steps, rules, np.asarray(allowed_V), tuple(stop_ids))


def stream(model, prompts, cfg, allowed_V, stop_ids=(), keys_B=None, every=16):
  """Like `generate`, but yields the state after every few tokens; stop consuming to stop."""
  state, rules = start(model, prompts, cfg, keys_B), choice_rules(cfg)
  for _ in range(0, cfg.max_new_tokens, every):
    state = _decode(model, state, every, rules, np.asarray(allowed_V), tuple(stop_ids))
    # A copy: the next call donates the state, and the caller may keep what it was given.
    yield jax.device_get(state._replace(cache=None, next_logits_BV=None, keys_B=None))
    if state.done_B.all():
      return


def new_tokens(state, prompts, num_samples):
  """-> list of (ids, log-probabilities), one a row: what was sampled after each prompt."""
  ids_BT, log_probs_BT, lengths_B = jax.device_get(
    (state.token_ids_BT, state.log_probs_BT, state.lengths_B)
  )
  begins = np.repeat([len(p) for p in prompts], num_samples)
  return [
    (ids_BT[b, begin : lengths_B[b]].tolist(), log_probs_BT[b, begin : lengths_B[b]].tolist())
    for b, begin in enumerate(begins)
  ]


def prompt_ids(tokenizers, prompt, begin=''):
  """Ids of a prompt, after the special `begin`; an empty one is the end of the text before."""
  first = [tokenizers.vocabulary.special(begin)] if begin else []
  return first + tokenizers.encode_text(prompt) or [tokenizers.vocabulary.special('eos')]


def text_rules(tokenizers, columns):
  """-> (bool mask of the columns that a text may hold, ids that end it)."""
  eos = [i for name, i in tokenizers.vocabulary.specials if name == 'eos']
  mask_V = np.zeros(columns, bool)
  allowed = tokenizers.vocabulary.allowed(('text', 'eos') if eos else ('text',))[:columns]
  mask_V[: len(allowed)] = allowed
  return mask_V, eos


def complete(model, tokenizers, prompts, cfg, stop=()):
  """Continue prompts (lists of ids) as text.

  model: parameters as trained. stop: strings; a text ends before the first of them.
  -> for each prompt a list of (text, log-probability of each token); with cfg.beams the
  length-penalised score of the whole text stands in the place of log-probabilities.
  """
  from gpt_jax import beam  # beam builds on this file

  model = _for_sampling(model)
  allowed_V, eos = text_rules(tokenizers, model.cfg.V)
  if cfg.beams:
    found = beam.beam_search(model, prompts, cfg, allowed_V, eos)
  else:
    state = generate(model, prompts, cfg, allowed_V, eos)
    rows, n = new_tokens(state, prompts, cfg.num_samples), cfg.num_samples
    found = [rows[i * n : (i + 1) * n] for i in range(len(prompts))]
  return [
    [(cut(continuation(tokenizers, prompt, ids), stop), p) for ids, p in group]
    for prompt, group in zip(prompts, found, strict=True)
  ]


def stream_text(model, tokenizers, prompt, cfg, stop=()):
  """Continue one prompt (ids) and yield its text in pieces, as soon as each is certain."""
  model = _for_sampling(model)
  allowed_V, eos = text_rules(tokenizers, model.cfg.V)
  decoder, text, shown = tokenizers.stream_decoder(), '', 0
  hold = max(map(len, stop), default=1) - 1  # characters that a stop string may still begin with
  done = len(prompt)
  for i in prompt:  # shown already; see `continuation`
    decoder.push(i)
  for state in stream(model, [prompt], cfg, allowed_V, eos):
    ids = state.token_ids_BT[0, done : state.lengths_B[0]]
    text, done = text + ''.join(map(decoder.push, ids)), int(state.lengths_B[0])
    ended = cut(text, stop) != text
    certain = len(cut(text, stop)) if ended else max(shown, len(text) - hold)
    yield text[shown:certain]
    shown = certain
    if ended:
      return
  yield cut(text + decoder.flush(), stop)[shown:]


def continuation(tokenizers, prompt, ids):
  """The text of ids after a prompt: some tokenizers drop the space of a word that stands first."""
  return tokenizers.decode_text([*prompt, *ids])[len(tokenizers.decode_text(prompt)) :]


def cut(text, stop):
  """The text up to the first of the stop strings."""
  return text[: min((text.find(s) for s in stop if s in text), default=len(text))]


@jax.jit
def _for_sampling(model):
  return gpt.for_sampling(model, model.cfg.dtype)


def check_prompts(prompts, max_new_tokens, cfg):
  """Raise ValueError for a prompt that this model cannot continue."""
  for prompt in prompts:
    if not prompt:
      raise ValueError('the prompt is empty\nfix: give at least one token')
    wrong = [i for i in prompt if not 0 <= i < cfg.vocab]
    if wrong:
      raise ValueError(
        f'token id {wrong[0]} is out of range: the model has {cfg.vocab} ids\n'
        'fix: use the tokeniser that the model was trained with'
      )
    room = cfg.context - len(prompt)
    if room < 1:
      raise ValueError(
        f'the prompt has {len(prompt)} tokens and the context is {cfg.context}\n'
        f'fix: give at most {cfg.context - 1} tokens'
      )
    if max_new_tokens > room:
      raise ValueError(
        f'max_new_tokens={max_new_tokens} after {len(prompt)} prompt tokens exceeds the context of '
        f'{cfg.context}\nfix: use --max_new_tokens={room} or less'
      )


def score(model, batch):
  """Sums over a batch with target_ids_BT and loss_mask_BT -> (nats, weight), float32 scalars."""
  out = model(
    batch['token_ids_BT'],
    positions_BT=batch.get('positions_BT'),
    segment_ids_BT=batch.get('segment_ids_BT'),
    prefix_BT=batch.get('prefix_BT'),
  )
  nats_BT, _ = token_losses(out.logits_BTV, batch['target_ids_BT'])
  mask_BT = batch['loss_mask_BT']
  return (nats_BT * mask_BT).sum(), mask_BT.sum()


FILTERS = {'top_k': (0, top_k), 'top_p': (1.0, top_p), 'min_p': (0.0, min_p)}

LIMITS = {
  'max_new_tokens': (1, 2**31),
  'num_samples': (1, 2**20),
  'temperature': (0, 1e6),
  'top_k': (0, 2**31),
  'top_p': (1e-6, 1),
  'min_p': (0, 1),
  'repetition_penalty': (1e-6, 1e6),
  'beams': (0, 1024),
  'length_penalty': (0, 10),
}
