"""Look inside a model: its tokens, their losses and alternatives, attention maps, and the logit lens.

Letters: B batch (1), T tokens, S keys, V vocabulary, L layers, H heads, D width, N alternatives.

Sources: logit lens (nostalgebraist 2020): each layer's residual stream through the last norm and the head.
"""

import base64
import functools
import math

import numpy as np

from gpt_jax.model.continuous import KINDS
from gpt_jax.tokenizers.layout import patch_positions
from gpt_jax.workbench.lab import args, models, pieces

MAX_TOKENS, MAX_MEDIA = 192, 4
ALTERNATIVES = 5


def look(lab, body):
  """POST /api/inside {run, text, images, sounds, vectors, source, answer}: what a model computes on an input.

  text, images, sounds, vectors: as for a sample. answer: text after them, such as the right one.
  Returns {run, step, cut, tokens: [{id, kind, piece, given, nats, top: [{piece, kind, p}]}], next: top of the
  token after them, layers, heads, lens: [layer: [[piece, p, nats of the actual next token]]], attention,
  media: of pieces.media}. nats: of a token given those before it, None for the first. top: the likeliest
  tokens in its place. given: of a condition, which training never predicts. attention: base64 of uint16
  [L, H, T, T], weights times 65535.
  """
  import jax

  with lab.models.use(lab.index.run(args.text(body, 'run'))) as run:
    prompt = models.prompt_of(run, body)
    ids = [*map(int, prompt.ids), *run.tokenizers.encode_text(args.text(body, 'answer'))]
    most = min(MAX_TOKENS, run.model.cfg.context)
    batch = batch_of(run, prompt, ids[:most])
    outputs = jax.device_get(internals()(run.model, batch))
    facts = describe(run, ids[:most], outputs) | {'cut': max(0, len(ids) - most)}
    facts['media'] = pieces.media(run.tokenizers, ids[:most], MAX_MEDIA)
    for token, given in zip(facts['tokens'], condition(run, prompt, ids[:most]), strict=True):
      token['given'] = given
    return facts


def condition(run, prompt, ids):
  """Return for each id whether it is of a condition, which training never predicts."""
  ids_BW = np.array([ids], np.int32)
  given_W = run.tokenizers.layout.condition_mask(ids_BW, np.ones_like(ids_BW))[0]
  return (given_W | ((prompt.mask == 'prefix') & (np.arange(len(ids)) < len(prompt.ids)))).tolist()


def batch_of(run, prompt, ids):
  """Return the batch of one row, padded on the right: {name: array BT...}."""
  from gpt_jax.sampling import prompt_batch

  T = prompt_batch.round_up_prompt(len(ids), run.model.cfg.context)
  ids_BT, segments_BT = np.zeros((2, 1, T), np.int32)
  ids_BT[0, : len(ids)], segments_BT[0, : len(ids)] = ids, 1
  batch = {'token_ids_BT': ids_BT, 'positions_BT': np.arange(T, dtype=np.int32)[None]}
  layout = run.tokenizers.layout
  if layout.has_images:
    batch['positions_BT3'] = layout.positions3(ids_BT, segments_BT)
  if prompt.mask != 'causal':
    condition_BT = layout.condition_mask(ids_BT, segments_BT)
    batch['prefix_BT'] = prompt_batch.prefix_groups([prompt], ids_BT, condition_BT, layout)
  for name, kind in KINDS.items():
    if (features := getattr(prompt, name)) is not None:
      batch[kind.argument] = np.zeros((1, T, features.shape[1]), np.float32)
      count = min(len(features), len(ids))
      batch[kind.argument][0, :count] = features[:count]
  if layout.has_cells and 'patches_BTA' in batch:
    batch['positions_BT3'] = patch_positions(layout, ids_BT, segments_BT, batch)
  return batch


@functools.cache
def internals():
  """Return the compiled function of (model, batch) that `look` shows."""
  import jax
  import jax.numpy as jnp

  from gpt_jax.model import param_trees
  from gpt_jax.training import probes

  def measure(model, batch):
    cfg = model.cfg
    model = param_trees.cast(model, cfg.dtype)
    outputs = probes.activations(model, batch, with_weights=True)
    next_BT = jnp.roll(batch['token_ids_BT'], -1, 1)

    def predict(logits_BTV):
      log_probs_BTV = jax.nn.log_softmax(logits_BTV.astype(jnp.float32), -1)
      top_BTN, ids_BTN = jax.lax.top_k(log_probs_BTV, ALTERNATIVES)
      nats_BT = -jnp.take_along_axis(log_probs_BTV, next_BT[..., None], -1)[..., 0]
      return {'nats_T': nats_BT[0], 'top_TN': jnp.exp(top_BTN[0]), 'ids_TN': ids_BTN[0]}

    def lens(l):
      x_BTD = outputs[f'blocks/{l}']
      x_BTD = x_BTD if model.final_norm is None else model.final_norm(x_BTD)
      layer = predict(model.logits(x_BTD)[..., : cfg.vocab])
      return {'nats_T': layer['nats_T'], 'p_T': layer['top_TN'][:, 0], 'ids_T': layer['ids_TN'][:, 0]}

    weights_LHTS = jnp.stack([outputs[f'blocks/{l}/attention/weights'][0] for l in range(cfg.layers)])
    return {
      'last': predict(outputs['logits']),
      'lens': [lens(l) for l in range(cfg.layers)],
      'weights_LHTS': jnp.round(weights_LHTS * 65535).astype(jnp.uint16),
    }

  return jax.jit(measure)


def describe(run, ids, outputs):
  """Return the numbers of `internals` on ids as JSON."""
  T, last, label = len(ids), outputs['last'], functools.partial(pieces.describe, run.tokenizers)

  def likeliest(t):
    words = zip(label(last['ids_TN'][t]), last['top_TN'][t].tolist(), strict=True)
    return [word | {'p': p} for word, p in words]

  tokens = label(ids)
  for t, token in enumerate(tokens):
    token |= {'nats': float(last['nats_T'][t - 1]) if t else None, 'top': likeliest(t - 1) if t else []}
    tokens[t] = token
  lens = []
  for layer in outputs['lens']:
    words = [word['piece'] for word in label(layer['ids_T'][:T])]
    lens.append(
      [*map(list, zip(words, layer['p_T'][:T].tolist(), layer['nats_T'][:T].tolist(), strict=True))]
    )
  weights_LHTS = np.ascontiguousarray(outputs['weights_LHTS'][:, :, :T, :T], '<u2')
  facts = {'run': run.workdir.name, 'step': run.step, 'layers': len(lens), 'heads': weights_LHTS.shape[1]}
  facts |= {'tokens': tokens, 'next': likeliest(T - 1), 'lens': lens}
  return facts | {'attention': base64.b64encode(weights_LHTS).decode()}


# ----------------------------------------------------------------------------------- comparison


def difference(lab, body):
  """POST /api/difference {run: [a, b], text}: the nats of each character of a text under two models.

  Returns {runs, bytes, nats, bits_per_byte: of each, spans: [{text, nats}] that differ most, html}. The
  tokenizers may differ.
  """
  from gpt_jax.evaluation import likelihood
  from gpt_jax.losses import bits
  from gpt_jax.reports import compare, page, text_diff_part

  names, text = args.runs(body), args.text(body, 'text')
  if len(names) != 2 or not text.strip():
    raise ValueError('a difference is of two runs on a text\nfix: choose two runs, and give a text')
  nats = []
  for name in names:
    with lab.models.use(lab.index.run(name)) as run:
      nats += likelihood.byte_nats(run.subject(), [text])
  line = compare.describe_text(0, text, *nats, is_shown=True)
  facts = {'runs': names, 'bytes': line['bytes'], 'nats': line['nats'], 'spans': line['spans']}
  facts['bits_per_byte'] = [bits(x) / line['bytes'] for x in line['nats']]
  return facts | {'html': page.element('pre', *text_diff_part.color(line), kind='diff')}


def activations(lab, body):
  """POST /api/activations {run: [a, b]}: where the activations of two runs part, on validation rows of a.

  Returns {runs, source, rows, tokens: of a row, activations: [{path, largest, relative}] in the order of the
  computation}, as `report --against` does; None where one run lacks an activation.
  """
  from gpt_jax.evaluation import trained
  from gpt_jax.reports import compare

  names = args.runs(body)
  if len(names) != 2:
    raise ValueError('activations are compared of two runs\nfix: choose two runs')
  with lab.models.use(lab.index.run(names[0])) as run:
    source, batch, rows = compare.activations_apart(run, trained.load(lab.index.run(names[1])))
  count, tokens = batch['token_ids_BT'].shape
  known = lambda x: None if math.isnan(x) else x
  rows = [{'path': path, 'largest': known(a), 'relative': known(b)} for path, a, b in rows]
  return {'runs': names, 'source': source, 'rows': count, 'tokens': tokens, 'activations': rows}
