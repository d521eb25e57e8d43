"""`clean` and `scrub` of a source: the table of rules, and the documents that they leave.

Rules are applied in their order to the training documents of a source and to what `valid_fraction` cuts of
them, before they are cut: near duplicates are never on both sides. Named validation and test data are not
filtered. `scrub` is applied last, to every split.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from typing import NamedTuple

from gpt_jax.data import templates
from gpt_jax.data.clean import decontaminate, duplicates, quality, score, scrub
from gpt_jax.data.clean.rule import Document, Rule
from gpt_jax.data.templates import Piece

MOST_REMEMBERED = 8  # verdicts on whole sources; a byte a document each
AMONG_RECORDS = ('exact', 'near', 'passages')  # rules that compare the records of a source
REMOVED, REPLACED = 'documents removed by ', ' replaced'  # begins and ends of notes


class Verdicts(NamedTuple):
  """What the rules say of each document of a source."""

  rules: list[Rule]  # that have learned from its documents
  fate: bytearray  # of each document: 0 stays, n removed for reasons[n - 1]
  reasons: list[str]
  notes: Counter  # {note: count}


_verdicts: dict[str, Verdicts] = {}


def parse(clean: str) -> list[Rule]:
  """'exact,near=0.8' -> its rules in this order; ValueError for an unknown or repeated one or a bad value."""
  rules, names = [], []
  for item in clean.split(',') if clean else ():
    name, _, value = item.strip().partition('=')
    if name not in RULES:
      raise ValueError(
        f'clean={clean!r} has {name!r}, not a rule\nfix: use some of {", ".join(RULES)}, separated by commas'
      )
    if name in names:
      raise ValueError(f'clean={clean!r} has {name} twice\nfix: write it once; | separates its values')
    names.append(name)
    rules.append(RULES[name](value))
  return rules


def check(source) -> None:
  """Raise ValueError for settings of a source that are malformed or do not fit its template."""
  rows, rules = scrub.parse(source.scrub), parse(source.clean)
  repeated = [name for name in names_of(source.clean) if name in AMONG_RECORDS]
  if source.kind == 'canaries' and repeated:
    raise ValueError(
      f'clean={repeated[0]} would remove the copies of canaries that their repeats count\n'
      'fix: leave it out of this source; it may stand in the others'
    )
  kinds = {kind for kind, _ in templates.parse(source.template)}
  media = templates.modalities(source.template) and not kinds & {'chat'}
  for name, rule in zip(names_of(source.clean), rules, strict=True):
    if rule.edits and not templates.is_plain(source.template):
      raise ValueError(
        f'clean={name} cuts texts, and template={source.template!r} is not a text alone\n'
        f'fix: leave {name} out'
      )
    if media and rule.reads == 'text':
      raise ValueError(
        f'clean={name} reads texts, and template={source.template!r} has images or sounds\n'
        f'fix: leave {name} out; {", ".join(n for n, r in RULES.items() if r.reads == "any")} fit'
      )
  if rows and not kinds & {'text', 'parts', 'chat'}:
    raise ValueError(
      f'scrub={source.scrub!r} has no effect: template={source.template!r} has no text\nfix: leave scrub out'
    )


def names_of(clean: str) -> list[str]:
  """'exact,near=0.8' -> ['exact', 'near']."""
  return [item.strip().partition('=')[0] for item in clean.split(',')] if clean else []


class Cleaning:
  """What happens to the documents of one split of a source."""

  def __init__(self, name: str, source, split: str):
    self.name, self.scrub_rows = name, scrub.parse(source.scrub)
    self.clean = '' if source.has(split) else source.clean
    self.described = self._describe()  # now: ValueError for a file, run or package that is not there

  def __bool__(self) -> bool:
    return bool(self.clean or self.scrub_rows)

  def _describe(self) -> dict:
    """Return all that the documents depend on besides those of the source, JSON-able."""
    rules = [
      [name, rule.version, rule.describe() or rule.value]
      if name == 'decontaminate'  # its content counts, not its place
      else [name, rule.version, rule.value, rule.describe()]
      for name, rule in zip(names_of(self.clean), parse(self.clean), strict=True)
    ]
    scrubbed = {'scrub': [*self.scrub_rows, scrub.describe(self.scrub_rows)]} if self.scrub_rows else {}
    return scrubbed | ({'clean': rules} if rules else {})

  def documents(
    self, examples: Callable[..., Iterator], identity: Callable[[], dict], skip=None, notes=None
  ) -> Iterator[tuple[str, list[Piece]]]:
    """Yield the (where, pieces) that stay of examples(skip), changed.

    identity: returns what the examples depend on. notes: a Counter of what was removed and replaced.
    """
    notes = Counter() if notes is None else notes
    verdicts = self.verdicts(examples, identity) if self.clean else None
    if verdicts:
      notes.update(verdicts.notes)
    stays = False
    for number, (where, pieces) in enumerate(examples(skip)):
      if verdicts:
        if verdicts.fate[number]:
          continue
        pieces = edit(verdicts.rules, number, pieces, notes)
      if self.scrub_rows:
        scrubber = scrub.Scrubber(self.scrub_rows)
        pieces = scrubber.pieces(pieces)
        notes.update({f'{row}{REPLACED}': n for row, n in scrubber.counts.items() if n})
      stays = True
      yield where, pieces
    if not stays and verdicts:
      reasons = ', '.join(f'{count} by {reason}' for reason, count in removed(verdicts.notes).items())
      raise ValueError(
        f'data.mixture.{self.name}: clean={self.clean!r} leaves no document ({reasons})\n'
        'fix: leave out a rule, or look at the documents with launch.py data'
      )

  def verdicts(self, examples: Callable[..., Iterator], identity: Callable[[], dict]) -> Verdicts:
    """Return what the rules say of each of examples(), from memory if they said it before."""
    described = json.dumps([identity(), self.described], sort_keys=True)
    key = hashlib.sha256(described.encode()).hexdigest()
    if key not in _verdicts:
      while len(_verdicts) >= MOST_REMEMBERED:
        _verdicts.pop(next(iter(_verdicts)))
      _verdicts[key] = judge(self.clean, examples)
    return _verdicts[key]


def judge(clean: str, examples: Callable[..., Iterator], watch: Callable | None = None) -> Verdicts:
  """Apply the rules of `clean` to examples(), in one pass and one more for each rule that learns.

  watch(number, document, reason): called for each document that is removed.
  """
  rules, names = parse(clean), names_of(clean)
  verdicts, done = Verdicts(rules, bytearray(), [], Counter()), 0
  for at, rule in enumerate(rules):
    if rule.learns:
      rule.learn(_survivors(verdicts, names, done, at, examples, watch))
      done = at
  for _ in _survivors(verdicts, names, done, len(rules), examples, watch):
    pass
  for number in verdicts.fate:
    if number:
      verdicts.notes[REMOVED + verdicts.reasons[number - 1]] += 1
  for rule in rules:
    verdicts.notes.update({f'overlaps with a benchmark from {k}': n for k, n in rule.overlaps.items()})
  return verdicts


def _survivors(verdicts, names, done, end, examples, watch) -> Iterator[tuple[int, Document]]:
  """Yield what rules[:end] leave, as they edit it, and record what rules[done:end] remove."""
  rules, fate, reasons = verdicts.rules, verdicts.fate, verdicts.reasons
  for number, (where, pieces) in enumerate(examples()):
    if number == len(fate):
      fate.append(0)
    if fate[number]:
      continue
    document = Document(pieces, where)
    for n, rule in enumerate(rules[:end]):
      if rule.edits:
        document = Document(edit([rule], number, document.pieces, Counter()), where)
      reason = rule.check(number, document) if n >= done else None
      if reason is not None:
        reason = f'{names[n]}: {reason}' if reason else names[n]
        if reason not in reasons:
          reasons.append(reason)
        fate[number] = reasons.index(reason) + 1
        if watch:
          watch(number, document, reason)
        break
    else:
      yield number, document


def edit(rules: list[Rule], number: int, pieces: list[Piece], notes: Counter) -> list[Piece]:
  """Return the pieces of a document of one text as the rules change it."""
  for rule in rules:
    if rule.edits:
      pieces = [Piece('text', rule.edit(number, pieces[0].value, notes))]
  return pieces


def removed(notes: dict[str, int]) -> dict[str, int]:
  """Return {rule, with its reason: documents} of the notes of a pass."""
  return {note.removeprefix(REMOVED): n for note, n in notes.items() if note.startswith(REMOVED)}


def replaced(notes: dict[str, int]) -> dict[str, int]:
  """Return {row of scrub: values} of the notes of a pass."""
  return {note.removesuffix(REPLACED): n for note, n in notes.items() if note.endswith(REPLACED)}


RULES: dict[str, type[Rule]] = {
  'exact': duplicates.Exact,
  'near': duplicates.Near,
  'passages': duplicates.Passages,
  'decontaminate': decontaminate.Decontaminate,
  'language': quality.Language,
  'c4': quality.C4,
  'gopher': quality.Gopher,
  'gopher_repetition': quality.GopherRepetition,
  'score': score.Score,
}
