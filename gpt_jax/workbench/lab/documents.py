"""The data of a run: its documents as tokens, the rows they are packed in, what carries loss, and search.

Read from the token caches that training wrote, so it also works where the sources are gone.
"""

import re
import time

import numpy as np

from gpt_jax.workbench.lab import args, pieces

CACHE = re.compile(r'(?P<source>[\w.-]+)-(?P<split>train|valid|test)-[0-9a-f]{16}\.json')
MAX_ROWS, MAX_TOKENS, MAX_MEDIA = 6, 1200, 8  # of an answer; tokens and media of a row or document
SEARCH_SECONDS, MAX_HITS, AROUND = 3.0, 20, 80  # of one request; characters around a hit


def overview(lab, query):
  """GET /api/data?run=NAME: {packing, length, caches: [{file, source, split, weight, template, documents,
  tokens, bytes, media, notes}], html: counts of filters}."""
  from gpt_jax.reports import page, run_report
  from gpt_jax.runs import history

  folder = lab.index.run(args.text(query, 'run'))
  config = lab.index.config(folder)
  data, rows = args.section(config, 'data'), []
  for path, source, split in list_caches(folder, data):
    cache = open_cache(lab, path)
    settings = args.section(args.section(data, 'mixture'), source)
    facts = {'file': path.name, 'source': source, 'split': split, 'tokens': len(cache.ids)}
    facts |= {
      'documents': len(cache.offsets),
      'bytes': cache.bytes,
      'media': cache.media,
      'notes': cache.notes,
    }
    rows.append(facts | {key: settings.get(key) for key in ('weight', 'template')})
  length = args.section(config, 'train').get('length') or args.section(config, 'model').get('context')
  cleaned = page.render_section(run_report.cleaned_data(history.read_history(folder)))
  return {'packing': data.get('packing', ''), 'length': length, 'caches': rows, 'html': cleaned}


def list_caches(folder, data):
  """Return [(path, source, split)] of the token caches of a run, those of training first."""
  place = folder / 'cache'
  if isinstance(data.get('cache'), str) and data['cache']:
    place = type(folder)(data['cache']).expanduser()
  caches = []
  for path in sorted(place.glob('*.json')) if place.is_dir() else ():
    match = CACHE.fullmatch(path.name)
    if match and match['source'] in args.section(data, 'mixture'):
      caches.append((path, match['source'], match['split']))
  return sorted(caches, key=lambda item: ('train', 'valid', 'test').index(item[2]))


def open_cache(lab, path):
  """Return a token cache; sizes are compared with its manifest, content was when training opened it."""
  from gpt_jax.data import cache

  status = path.stat()
  return lab.cached(
    ('cache', path), (status.st_mtime_ns, status.st_size), lambda: cache.read_cache(path, False)
  )


def chosen_cache(lab, query):
  """Return (config.Config, tokenizers, cache, source) of a request, of the caches that `overview` lists."""
  from gpt_jax import config
  from gpt_jax.tokenizers import Tokenizers

  folder, wanted = lab.index.run(args.text(query, 'run')), args.text(query, 'file')
  for path, source, _ in list_caches(folder, args.section(lab.index.config(folder), 'data')):
    if path.name == wanted:
      make = lambda: (config.of_run(folder), Tokenizers.load(folder / 'tokenizer'))
      cfg, tokenizers = lab.cached(('tokenizers', folder), str(folder), make)
      return cfg, tokenizers, open_cache(lab, path), source
  raise FileNotFoundError(f'there is no token cache {wanted[:200]!r}\nfix: choose one of the list')


def rows(lab, query):
  """GET /api/data/rows?run=NAME&file=CACHE&row=N: rows as training gathers them.

  Returns {count, rows: [{row, documents, trained, padding, tokens: [{id, kind, piece, segment, position,
  loss, target}], media}]}. loss: whether the prediction of the next token there is trained. segment 0:
  padding.
  """
  cfg, tokenizers, cache, source = chosen_cache(lab, query)
  packed = pack(cfg, tokenizers, cache, source)
  first = args.number(query, 'row', 0, 0, max(0, packed.count - 1))
  numbers = np.arange(first, min(first + MAX_ROWS, packed.count))
  batch = packed.gather(numbers)
  return {
    'count': packed.count,
    'rows': [describe_row(tokenizers, batch, b, n) for b, n in enumerate(numbers)],
  }


def pack(cfg, tokenizers, cache, source):
  """Return the packing.Rows of a source; a plan that training did not write is made, in memory only."""
  from gpt_jax import data
  from gpt_jax.data import loader, packing
  from gpt_jax.runs import digests

  length = cfg.train.length or cfg.model.context
  fields = data.RowFields.of(cfg.data, tokenizers).of_template(cfg.data.mixture[source].template)
  seed = loader.seed_of(cfg.train.seed, 'crop', source)
  rows = packing.PACKING[cfg.data.packing](cache, length, seed, cfg.data.mask_documents, fields)
  if cfg.data.packing == 'first_fit':
    try:
      digests.verify_file(packing.plan_path(cache, length))
    except (OSError, digests.Corrupt):  # reading it would write it again
      starts = packing.has_start(cache)
      vars(rows)['plan'] = packing.make_plan(cache.offsets, len(cache.ids), length, starts)
  return rows


def describe_row(tokenizers, batch, b, number):
  """Return one row of a batch as JSON."""
  inputs, targets = (batch[name][b][:MAX_TOKENS] for name in ('token_ids_BT', 'target_ids_BT'))
  loss = batch['loss_mask_BT'][b] > 0
  T = len(batch['token_ids_BT'][b])
  segments = batch['segment_ids_BT'][b] if 'segment_ids_BT' in batch else np.ones(T, int)
  positions = batch['positions_BT'][b] if 'positions_BT' in batch else np.arange(T)
  tokens = pieces.describe(tokenizers, inputs)
  following = pieces.describe(tokenizers, targets)
  for t, token in enumerate(tokens):
    token |= {'segment': int(segments[t]), 'position': int(positions[t]), 'loss': bool(loss[t])}
    tokens[t] = token | {'target': following[t]['piece']}
  facts = {'row': int(number), 'documents': len(set(segments.tolist()) - {0}), 'trained': int(loss.sum())}
  facts |= {'padding': int((segments == 0).sum()), 'tokens': tokens, 'cut': max(0, T - MAX_TOKENS)}
  return facts | {'media': pieces.media(tokenizers, inputs, MAX_MEDIA)}


# --------------------------------------------------------------------------------------- search


def search(lab, query):
  """GET /api/data/search?run=NAME&file=CACHE&text=T&start=N: documents with a text, in their order.

  Returns {count, next: the document from which to go on, or None, hits: [{document, tokens, before, hit,
  after}]}. Letters match in any case.
  """
  _, tokenizers, cache, _ = chosen_cache(lab, query)
  wanted, number = args.text(query, 'text').casefold(), args.number(query, 'start', 0, 0, len(cache.offsets))
  ends, hits, until = np.append(cache.offsets[1:], len(cache.ids)), [], time.monotonic() + SEARCH_SECONDS
  while number < len(cache.offsets) and len(hits) < MAX_HITS and time.monotonic() < until:
    ids = np.asarray(cache.ids[cache.offsets[number] : ends[number]])
    text = text_of(tokenizers, ids)
    place = text.casefold().find(wanted)
    if place >= 0:
      end = place + len(wanted)
      parts = (text[max(0, place - AROUND) : place], text[place:end], text[end : end + AROUND])
      hits.append(
        {'document': number, 'tokens': len(ids)} | dict(zip(('before', 'hit', 'after'), parts, strict=True))
      )
    number += 1
  more = number if number < len(cache.offsets) else None
  return {'count': len(cache.offsets), 'next': more, 'hits': hits}


def text_of(tokenizers, ids):
  """Return the text of ids, an arrow after a condition, other modalities left out."""
  parts = np.split(ids, np.flatnonzero(ids == tokenizers.layout.sep))
  is_text = lambda part: part < tokenizers.vocabulary.count('text')
  return ' \u2192 '.join(tokenizers.decode_text(part[is_text(part)]) for part in parts)


def document(lab, query):
  """GET /api/data/document?run=NAME&file=CACHE&document=N: {document, count, tokens, cut, text, media}."""
  _, tokenizers, cache, _ = chosen_cache(lab, query)
  count = len(cache.offsets)
  number = args.number(query, 'document', 0, 0, count - 1)
  end = cache.offsets[number + 1] if number + 1 < count else len(cache.ids)
  ids = np.asarray(cache.ids[cache.offsets[number] : end])
  facts = {'document': number, 'count': count, 'cut': max(0, len(ids) - MAX_TOKENS)}
  facts |= {
    'tokens': pieces.describe(tokenizers, ids[:MAX_TOKENS]),
    'media': pieces.media(tokenizers, ids[:MAX_TOKENS], MAX_MEDIA),
  }
  return facts
