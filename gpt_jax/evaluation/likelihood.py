"""Log-likelihoods of texts after contexts: what multiple choice, cloze tests and the harness ask of a model.

Letters: N requests, B rows, T tokens of a row, C targets at the end of a row, M last tokens of a row that
differ only there, D width, V vocabulary.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gpt_jax.cluster.batches import data_shard, to_devices
from gpt_jax.cluster.processes import fetch
from gpt_jax.losses import token_losses
from gpt_jax.model import gpt, param_trees
from gpt_jax.runs.progress import Progress
from gpt_jax.sampling import completions
from gpt_jax.sampling.prompt_batch import round_up_slots

CHUNK = 64  # targets of a row whose logits are in memory at once


class Request(NamedTuple):
  """Tokens to score, after others; at least one of each."""

  context: list  # ids
  targets: list  # ids


class Scores(NamedTuple):
  """The score of each request."""

  nats: np.ndarray  # float64 [N], minus the log-likelihood
  greedy: np.ndarray  # bool [N], whether greedy decoding gives exactly these targets
  truncated: int  # requests whose first tokens did not fit the context


def start_ids(subject):
  """The ids before a text that nothing precedes: as in training."""
  begin = completions.begin_special(subject.cfg, subject.tokenizers) or subject.tokenizers.start
  return [subject.tokenizers.vocabulary.special(begin)]


def encode_pair(subject, context, continuation):
  """Encode a text and its continuation -> Request.

  Both are encoded as one text. White space at the end of the context counts as the continuation's, since a
  subword begins with its space.
  """
  stripped = context.rstrip()
  continuation = context[len(stripped) :] + continuation
  encode = subject.tokenizers.encode_text
  before = encode(stripped) if stripped else []
  begin = completions.begin_special(subject.cfg, subject.tokenizers)
  first = start_ids(subject) if begin or not before else []
  targets = encode(stripped + continuation)[len(before) :]
  if not targets:
    raise ValueError(
      f'the continuation {continuation!r:.60} has no token of its own\nfix: give it at least one character'
    )
  return Request([*first, *before], targets)


def count_bytes(context, continuation):
  """Return the UTF-8 bytes that the targets of `encode_pair` spell: with the white space before them."""
  return len((context[len(context.rstrip()) :] + continuation).encode())


def windows(subject, text, length=0):
  """Cut a text of any length into Requests that score each of its tokens once.

  length: most tokens of a window, default: the model's context. Every window but the first has a full one.
  """
  length = length or subject.model.cfg.context
  ids = subject.tokenizers.encode_text(text)
  requests = [Request(start_ids(subject), ids[:length])] if ids else []
  for start in range(length, len(ids), length):
    end = min(start + length, len(ids))
    requests.append(Request(ids[end - length - 1 : start], ids[start:end]))
  return requests


def score_requests(subject, requests):
  """Score Requests of any lengths on the subject's mesh -> Scores.

  Longest rows first: of similar lengths, so that little is padding, and memory runs out at once or never.
  Requests that differ in their last token alone share a row. Contexts lose their first tokens where a
  request exceeds the model's context. ValueError for targets that exceed it alone.
  """
  limit = subject.model.cfg.context + 1
  if (longest := max((len(request.targets) for request in requests), default=0)) >= limit:
    raise ValueError(
      f'a continuation has {longest} tokens, and the context of the model is {limit - 1}\n'
      'fix: score a shorter one, or a text without a context before it'
    )
  fitting = [_fit(request, limit) for request in requests]
  unique = list(dict.fromkeys((tuple(context), tuple(targets)) for context, targets in fitting))
  groups = {}
  for context, targets in unique:
    groups.setdefault((context, targets[:-1]), []).append((context, targets))
  order = sorted(groups.values(), key=lambda group: -sum(map(len, group[0])))
  M = 1 << (max(map(len, order), default=1) - 1).bit_length()
  part, parts = data_shard(subject.mesh)
  size, scores = subject.batch_size, {}
  own = slice(part * size // parts, (part + 1) * size // parts)
  progress = Progress('likelihood', 'rows', len(order))
  for first in range(0, len(order), size):
    progress.report(first)
    some = order[first : first + size]
    batch, C = _rows(some, size, M, subject.model.cfg.context)
    arrays = to_devices({name: rows[own] for name, rows in batch.items()}, subject.mesh)
    sums = fetch(score_ends(subject.model, arrays, C=C))
    for b, group in enumerate(some):
      for m, request in enumerate(group):
        scores[request] = sums['nats_BM'][b, m], sums['greedy_BM'][b, m]
    subject.raise_if_preempted()
  pairs = [scores[tuple(context), tuple(targets)] for context, targets in fitting]
  nats_N, greedy_N = np.array(pairs, np.float64).reshape(len(pairs), 2).T
  cut = sum(len(k.context) < len(r.context) for k, r in zip(fitting, requests, strict=True))
  return Scores(nats_N, greedy_N.astype(bool), cut)


def score_tokens(subject, requests):
  """Score each target of Requests that fit the context -> list of float64 nats, one array a request."""
  order = sorted(range(len(requests)), key=lambda n: -sum(map(len, requests[n])))
  part, parts = data_shard(subject.mesh)
  size, nats = subject.batch_size, {}
  own = slice(part * size // parts, (part + 1) * size // parts)
  for first in range(0, len(order), size):
    some = order[first : first + size]
    batch, _ = _rows([[requests[n]] for n in some], size, 1, subject.model.cfg.context)
    arrays = to_devices({name: rows[own] for name, rows in batch.items()}, subject.mesh)
    nats_BT = fetch(score_places(subject.model, arrays))
    for nats_T, n in zip(nats_BT, some, strict=False):
      start = len(requests[n].context) - 1
      nats[n] = nats_T[start : start + len(requests[n].targets)].astype(np.float64)
    subject.raise_if_preempted()
  return [nats[n] for n in range(len(requests))]


def byte_nats(subject, texts):
  """Nats of each UTF-8 byte of texts of any length -> list of float64 arrays, one a text.

  A token's nats are spread evenly over its bytes; tokens that end within a character share it. The sums are
  those of the whole texts, so that models with different tokenizers can be compared byte by byte. ValueError
  for a tokenizer that does not give a text back.
  """
  requests = [windows(subject, text) for text in texts]
  scores = iter(score_tokens(subject, [request for group in requests for request in group]))
  arrays = []
  for number, (text, group) in enumerate(zip(texts, requests, strict=True)):
    nats_T = np.concatenate([np.zeros(0), *(next(scores) for _ in group)])
    decoder, pieces, first = subject.tokenizers.stream_decoder(), [], 0
    ids = [index for request in group for index in request.targets]
    for end, index in enumerate(ids, 1):
      if piece := decoder.push(index) + (decoder.flush() if end == len(ids) else ''):
        pieces.append((piece, nats_T[first:end].sum()))
        first = end
    if ''.join(piece for piece, _ in pieces) != text or first != len(ids):
      raise ValueError(
        f'document {number} is not what its tokens give back, so that its bytes have no nats of their own\n'
        'fix: leave it out, or compare models whose tokenizers keep every character'
      )
    sizes = [len(piece.encode()) for piece, _ in pieces]
    arrays.append(np.repeat([nats / n for (_, nats), n in zip(pieces, sizes, strict=True)], sizes))
  return arrays


def _fit(request, limit):
  """The last `limit` tokens of a request; one of them at least is context."""
  return Request(request.context[max(0, sum(map(len, request)) - limit) :], request.targets)


def _rows(groups, size, M, limit):
  """Pad one row a group to a batch -> (arrays by name, C)."""
  lengths = [len(context) + len(targets) - 1 for [(context, targets), *_] in groups]
  T = round_up_slots(max(lengths), limit)
  longest = max(len(targets) for [(_, targets), *_] in groups)
  C = min(T, 4 ** math.ceil(math.log(max(longest, 4), 4)))
  ids_BT, targets_BT, segments_BT = np.zeros((3, size, T), np.int32)
  mask_BT, last_BM = np.zeros((size, T), np.float32), np.zeros((size, M), np.int32)
  for b, (group, length) in enumerate(zip(groups, lengths, strict=True)):
    context, targets = group[0]
    row = [*context, *targets]
    ids_BT[b, :length], targets_BT[b, :length], segments_BT[b, :length] = row[:-1], row[1:], 1
    mask_BT[b, len(context) - 1 : length] = 1
    last_BM[b, : len(group)] = [targets[-1] for _, targets in group]
  return {
    'token_ids_BT': ids_BT,
    'target_ids_BT': targets_BT,
    'loss_mask_BT': mask_BT,
    'segment_ids_BT': segments_BT,
    'last_ids_BM': last_BM,
  }, C


@jax.jit
def score_places(model, batch):
  """Nats of each masked target [B, T], 0 elsewhere; the logits of CHUNK places are in memory at once."""
  model = param_trees.cast(model, model.cfg.dtype)
  names = ('token_ids_BT', 'segment_ids_BT')
  x_BTD, _, _ = model.trunk(batch['token_ids_BT'], **gpt.inputs(model.cfg, {n: batch[n] for n in names}))
  T = x_BTD.shape[1]
  count = T // CHUNK if T % CHUNK == 0 else 1
  chunks = lambda a_BT: jnp.stack(jnp.split(a_BT, count, 1))
  score = lambda chunk: token_losses(model.logits(chunk[0]), chunk[1])[0]
  nats_NBc = jax.lax.map(score, (chunks(x_BTD), chunks(batch['target_ids_BT'])))
  return jnp.concatenate(list(nats_NBc), 1) * batch['loss_mask_BT']


@functools.partial(jax.jit, static_argnames='C')
def score_ends(model, batch, *, C):
  """Score the masked targets among the last C of each row -> {nats_BM, greedy_BM}.

  The last target is each of last_ids_BM in turn. Only these targets get logits: the head of a large
  vocabulary costs more than the layers of a small model.
  """
  model = param_trees.cast(model, model.cfg.dtype)
  names = ('token_ids_BT', 'segment_ids_BT')
  x_BTD, _, _ = model.trunk(batch['token_ids_BT'], **gpt.inputs(model.cfg, {n: batch[n] for n in names}))
  lengths_B = (batch['segment_ids_BT'] > 0).sum(1)
  places_BC = lengths_B[:, None] - C + jnp.arange(C)[None]
  index_BC = jnp.maximum(places_BC, 0)
  mask_BC = jnp.where(places_BC >= 0, jnp.take_along_axis(batch['loss_mask_BT'], index_BC, 1), 0.0)
  targets_BC = jnp.take_along_axis(batch['target_ids_BT'], index_BC, 1)
  x_BCD = jnp.take_along_axis(x_BTD, index_BC[..., None], 1)

  def score(chunk):
    x_BcD, targets_Bc = chunk
    logits_BcV = model.logits(x_BcD)
    return token_losses(logits_BcV, targets_Bc)[0], logits_BcV.argmax(-1) == targets_Bc

  chunks = lambda a_BC: jnp.stack(jnp.split(a_BC, max(1, C // CHUNK), 1))
  whole = C <= CHUNK or C % CHUNK  # few targets, or a context that chunks do not divide
  if whole:
    nats_BC, greedy_BC = score((x_BCD, targets_BC))
  else:
    scores = jax.lax.map(score, (chunks(x_BCD), chunks(targets_BC)))
    nats_BC, greedy_BC = (jnp.concatenate(list(a_NBc), 1) for a_NBc in scores)
  before_BC = mask_BC.at[:, -1].set(0.0)
  nats_B1 = (nats_BC * before_BC).sum(1, keepdims=True)
  greedy_B1 = (greedy_BC | (before_BC == 0)).all(1, keepdims=True)
  logits_BV = model.logits(x_BCD[:, -1:])[:, 0]
  log_z_B1 = jax.nn.logsumexp(logits_BV, -1, keepdims=True)
  last_BM = batch['last_ids_BM']
  nats_BM = log_z_B1 - jnp.take_along_axis(logits_BV, last_BM, 1)
  greedy_BM = logits_BV.argmax(-1, keepdims=True) == last_BM
  return {'nats_BM': nats_B1 + nats_BM, 'greedy_BM': greedy_B1 & greedy_BM}
