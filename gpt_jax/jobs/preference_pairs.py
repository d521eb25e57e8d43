"""Pairs of answers, one of them preferred, from records to rows.

A document of a source is the preferred one; the template with the field preference.rejected in the place
of preference.chosen makes the other. A third, for KTO, is the prompt with an answer of the next pair. Rows of
A L tokens hold them, each from its first token, so that a pair is never split over devices or micro-batches.

The targets of conversations are what the assistant wrote after the messages that both have, as in trl.

Letters: B pairs, N pairs of a split, A documents of a pair, T = A L tokens of a row, L tokens of a document.
"""

import dataclasses
import hashlib
import itertools
import json
import logging

import numpy as np

from gpt_jax import data
from gpt_jax.data import bad_records, content, mixture, sources, templates
from gpt_jax.data.clean import scrub
from gpt_jax.data.record_fields import lookup
from gpt_jax.data.splits import Record
from gpt_jax.evaluation.subject import document_rows
from gpt_jax.jobs.preference_losses import PREFERENCE_LOSSES
from gpt_jax.model.continuous import KINDS
from gpt_jax.tokenizers.chat_template import MEDIA

log = logging.getLogger(__name__)

REFERENCE = ('reference_chosen_B', 'reference_rejected_B', 'reference_mismatched_B')


@dataclasses.dataclass
class PairRows:
  """The pairs of a split; `gather` makes rows of some of them."""

  sides: tuple  # A lists of documents.Encoded, ids with the end of each: chosen, rejected, mismatched
  prompts: list  # a digest of each
  length: int  # L
  sources_N: np.ndarray  # number of the source of each pair
  row_fields: list  # data.RowFields of each source
  reference_NA: np.ndarray  # log-probabilities under the initial model; zeros until they are known

  def __len__(self):
    return len(self.prompts)

  def gather(self, numbers):
    """Return the batch of these pairs."""
    numbers_B = np.asarray(numbers)
    source_B, batch = self.sources_N[numbers_B], {}
    for source in np.unique(source_B):
      own_B, parts = source_B == source, []
      for documents in self.sides:
        some = [documents[n] for n in numbers_B[own_B]]
        fields = self.row_fields[source]
        parts.append(document_rows(some, len(some), self.length, fields))
      for name in parts[0]:
        rows = np.concatenate([part[name] for part in parts], 1)
        batch.setdefault(name, np.zeros((len(numbers_B), *rows.shape[1:]), rows.dtype))[own_B] = rows
    return batch | {name: x_N[numbers_B] for name, x_N in zip(REFERENCE, self.reference_NA.T, strict=False)}

  def without(self, prompts):
    """Return the pairs whose prompts are none of these."""
    kept = [n for n, prompt in enumerate(self.prompts) if prompt not in prompts]
    sides = tuple([side[n] for n in kept] for side in self.sides)
    arrays = dict(sources_N=self.sources_N[kept], reference_NA=self.reference_NA[kept])
    return dataclasses.replace(self, sides=sides, prompts=[self.prompts[n] for n in kept], **arrays)

  def most_targets(self):
    """Return the largest number of targets of an answer."""
    masks = (self.gather([n])['loss_mask_BT'].reshape(len(self.sides), -1) for n in range(len(self)))
    return max(int(mask_BT.sum(1).max()) for mask_BT in masks)

  def digest(self):
    """Return a hash of what log-probabilities depend on: ids, targets, media, prefixes, length of rows."""
    total = hashlib.sha256(str(self.length).encode())
    if any(fields.mask != 'causal' for fields in self.row_fields):
      total.update(b' prefix')
    for pair in zip(*self.sides, strict=True):
      for document in pair:
        total.update(b'%d ' % len(document.ids) + np.asarray(document.ids, '<i4').tobytes())
        for values in (document.targets, *(getattr(document, kind) for kind in KINDS)):
          total.update(b'' if values is None else values.tobytes())
    return total.hexdigest()[:16]


def read_pairs(cfg, tokenizers, split, length):
  """Return the PairRows of a split; ValueError for a template without the chosen field, or long pairs."""
  names, row_fields = data.source_names(cfg.data, split), data.RowFields.of(cfg.data, tokenizers)
  row = PREFERENCE_LOSSES[cfg.preference.loss]
  sides, prompts, sources_N = tuple([] for _ in range(row.documents)), [], []
  for number, name in enumerate(names):
    source = cfg.data.mixture[name]
    pairs = list(read_documents(cfg, name, split))
    is_chat = templates.is_chat(source.template)
    ending = [] if is_chat else [tokenizers.vocabulary.special('eos')]  # a chat template has its own end
    encoded = [
      [e.with_end(ending) for e in some]
      for some in (data.encode_batch(tokenizers, [pair[side] for _, *pair in pairs]) for side in (0, 1))
    ]
    if is_chat:
      encoded = list(zip(*map(without_shared_turns, pairs, *encoded), strict=True))
    longest = max(len(e.ids) for some in encoded for e in some)
    if longest > length + 1:
      raise ValueError(
        f'data.mixture.{name} has answers of up to {longest} tokens with their prompt, longer than the '
        f'{length + 1} of a row\nfix: raise train.length (model.context) to {longest - 1}, or leave them out'
      )
    report_equal(name, split, sum(map(have_equal_ids, *encoded)), len(pairs))
    if row.needs_mismatched:
      encoded.append(mismatch(*encoded, tokenizers.vocabulary, length))
    for side, some in zip(sides, encoded, strict=True):
      side += some
    prompts += [content.digest(prompt_of(*pair)) for _, *pair in pairs]
    sources_N += [number] * len(pairs)
  fields = [row_fields.of_template(cfg.data.mixture[name].template) for name in names]
  reference_NA = np.zeros((len(sources_N), len(sides)), np.float32)
  return PairRows(sides, prompts, length, np.array(sources_N), fields, reference_NA)


def have_equal_ids(one, other):
  """Return whether two documents have the same ids."""
  return np.array_equal(one.ids, other.ids)


def report_equal(name, split, equal, count):
  """Log the number of pairs with equal answers, from which nothing is learned; ValueError if all are."""
  if equal == count:
    raise ValueError(
      f'data.mixture.{name}: all {count} {split} pairs have equal answers\n'
      'fix: name the fields of the answers in preference.chosen and preference.rejected'
    )
  if equal:
    log.warning('data.mixture.%s: %d of %d %s pairs have equal answers', name, equal, count, split)


def mismatch(chosen, rejected, vocabulary, length):
  """Return documents of each prompt with an answer of the next pair, cut to the length of a row.

  The answers are preferred and other ones in turn, so that they are a sample of both.
  """

  def start(e):  # of the answer
    learned = e.targets if e.targets is not None else np.cumsum(e.ids == vocabulary.special('sep'))
    return int(np.argmax(learned > 0)) + (e.targets is None)

  documents = []
  for n, e in enumerate(chosen):
    other = (rejected if n % 2 else chosen)[(n + 1) % len(chosen)]
    join = lambda x, y, e=e, other=other: np.concatenate([x[: start(e)], y[start(other) :]])[: length + 1]
    targets = None if e.targets is None else join(e.targets, other.targets)
    documents.append(dataclasses.replace(e, ids=join(e.ids, other.ids), targets=targets))
  return documents


def prompt_of(chosen, rejected):
  """Return the pieces before both answers: the condition, or the messages that both have and their media."""
  if chosen[0].kind != 'chat':
    return templates.split(chosen)[0]
  if not (shared := shared_messages(chosen, rejected)):
    return chosen
  text = json.dumps(shared, ensure_ascii=False)
  media = sum(map(text.count, MEDIA.values()))
  return [templates.Piece('chat', text), *chosen[1 : 1 + media]]


def shared_messages(*documents):
  """Return the messages with which the two conversations of a pair begin."""
  conversations = [json.loads(pieces[0].value) for pieces in documents]
  both = itertools.takewhile(lambda messages: messages[0] == messages[1], zip(*conversations, strict=False))
  return [message for message, _ in both]


def read_documents(cfg, name, split):
  """Yield (where, pieces of the preferred document, pieces of the other) of a source."""
  source = cfg.data.mixture[name]
  rejected = rejected_template(source.template, name, cfg.preference)
  records = dict(sources.open_source(source, split).records())
  bad, scrub_rows = bad_records.BadRecords(name, source, split), scrub.parse(source.scrub)

  def fill(where):
    record = records[where]
    if cfg.preference.prompt:
      record = with_prompt(record, cfg.preference, where)
    pair = [templates.fill(template, record, where) for template in (source.template, rejected)]
    return [scrub.Scrubber(scrub_rows).pieces(pieces) if scrub_rows else pieces for pieces in pair]

  places = (where for where, _ in mixture.open_split(cfg.data, name, split).examples())
  for where, (first, second) in bad.readable(places, fill):
    yield where, first, second
  bad.report()


def with_prompt(record, cfg, where):
  """Return a record whose answers begin with the messages of preference.prompt."""
  lists = {field: lookup(record, field, where) for field in (cfg.prompt, cfg.chosen, cfg.rejected)}
  for field, value in lists.items():
    if not isinstance(value, (list, tuple)):
      raise ValueError(
        f'{where} field {field!r} is {type(value).__name__}, and preference.prompt={cfg.prompt} asks for '
        "messages\nfix: leave preference.prompt='' and write the prompt into the template, or give lists"
      )
  prompt, *answers = map(list, lists.values())
  joined = {field: prompt + answer for field, answer in zip((cfg.chosen, cfg.rejected), answers, strict=True)}
  return Record({**record, **joined}, getattr(record, 'root', ''), getattr(record, 'rate', 0))


def without_shared_turns(pair, *encoded):
  """Return two encoded conversations whose targets are the replies after the messages that both have."""
  where, *documents = pair
  shared, results = sum(m['role'] == 'assistant' for m in shared_messages(*documents)), []
  for e in encoded:
    firsts = np.flatnonzero(np.diff(e.targets, prepend=0) == 1)
    if len(firsts) <= shared:
      raise ValueError(
        f'{where} has a conversation without a reply of its own\n'
        'fix: let both end with a message of the assistant, and let these differ'
      )
    targets = np.where(np.arange(len(e.ids)) < firsts[shared], 0, e.targets).astype(np.uint8)
    results.append(dataclasses.replace(e, targets=targets))
  return results


def rejected_template(template, name, cfg):
  """Return the template of the other document of a pair; cfg: PreferenceConfig."""
  rejected = template
  for end in '}:':
    rejected = rejected.replace(f'{{{cfg.chosen}{end}', f'{{{cfg.rejected}{end}')
  if rejected == template or not (templates.signature(template)[0] or templates.is_chat(template)):
    raise ValueError(
      f'data.mixture.{name}.template={template!r} has no prompt with an answer {{{cfg.chosen}}}\n'
      f"fix: write '{{prompt}} -> {{{cfg.chosen}}}' or '{{{cfg.chosen}:chat}}', or name the field in "
      'preference.chosen'
    )
  return rejected
