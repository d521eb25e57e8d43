"""Apply the rules and the scrubbing of a source without training: counts, sizes and samples."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from gpt_jax.data.bad_records import BadRecords
from gpt_jax.data.clean import cleaning, scrub
from gpt_jax.data.clean.rule import Document, text_of

AROUND, OPENING = 60, 200  # characters around a value, and of a removed document
CLEARED = ('score',)  # rules whose documents are not shown: they may be vile


@dataclass
class Survey:
  """What `clean` and `scrub` do to one source."""

  name: str
  documents: int = 0
  left: int = 0
  bytes: int = 0  # of texts in UTF-8
  bytes_left: int = 0
  removed: dict = field(default_factory=dict)  # rule, with its reason: documents
  replaced: dict = field(default_factory=dict)  # row of scrub: values
  changed: dict = field(default_factory=dict)  # other notes: lines cut, items of benchmarks
  sizes: tuple = ((), ())  # bytes of each document, before and after
  samples: list = field(default_factory=list)  # (rule or 'scrub', place, before, after)


def survey(
  name: str, source, examples: Callable[..., Iterator], samples: int = 3, show: bool = False
) -> Survey:
  """Read all documents of examples() and return what happens to them.

  samples: documents that are shown of each rule and of scrub. show: personal data as they are, and documents
  that a score removed; else personal data are masked, also in documents that other rules remove.
  """
  result, before, after, notes, shown = Survey(name), [], [], Counter(), Counter()
  rows = cleaning.Cleaning(name, source, 'train').scrub_rows  # refuses what is not installed
  hidden = tuple(row for row in scrub.PATTERNS if row in (*scrub.ALL, *rows))

  def watch(number: int, document: Document, reason: str) -> None:
    shown[reason] += 1
    if shown[reason] > samples:
      return
    text = document.text[: 2 * OPENING]
    if not show:
      text = scrub.mask(text, scrub.find(text, hidden))
      text = '(not shown)' if reason.partition(':')[0] in CLEARED else text
    result.samples.append((reason, document.where, text[:OPENING], ''))

  verdicts = cleaning.judge(source.clean, examples, watch)
  bad = BadRecords(name, source, quiet=True)
  for number, (where, pieces) in enumerate(examples(skip=bad.skip)):
    before.append(len(text_of(pieces).encode()))
    if verdicts.fate[number]:
      continue
    pieces = cleaning.edit(verdicts.rules, number, pieces, notes)
    if rows:
      scrubber = scrub.Scrubber(rows)
      replaced = scrubber.pieces(pieces)
      notes.update({f'{row}{cleaning.REPLACED}': n for row, n in scrubber.counts.items() if n})
      if any(scrubber.counts.values()) and shown['scrub'] < samples:
        shown['scrub'] += 1
        result.samples.append(('scrub', where, *_sample(pieces, rows, hidden, show)))
      pieces = replaced
    after.append(len(text_of(pieces).encode()))
  notes.update(verdicts.notes | ({'unreadable records skipped': bad.skipped} if bad.skipped else {}))
  result.documents, result.left, result.sizes = len(before), len(after), (before, after)
  result.bytes, result.bytes_left = sum(before), sum(after)
  result.removed, result.replaced = cleaning.removed(notes), cleaning.replaced(notes)
  known = {*(cleaning.REMOVED + r for r in result.removed), *(r + cleaning.REPLACED for r in result.replaced)}
  result.changed = {note: n for note, n in notes.items() if note not in known}
  return result


def _sample(pieces, rows, hidden, show: bool) -> tuple[str, str]:
  """Return (before, after) of the surroundings of the first value of a document; show: do not mask.

  rows: that are replaced; hidden: others that stay in the text, and are masked here.
  """
  text = next(text for text in scrub.texts(pieces) if scrub.find(text, rows))
  spans = scrub.find(text, rows)
  text = text if show else scrub.mask(text, scrub.find(text, tuple(r for r in hidden if r not in rows)))
  start, end = max(0, spans[0].start - AROUND), min(len(text), spans[0].end + AROUND)
  inside = [span for span in spans if span.start < end]
  end = max(end, inside[-1].end)  # whole values
  moved = [scrub.Span(a - start, b - start, row) for a, b, row in inside]
  text = text[start:end]
  return text if show else scrub.mask(text, moved), scrub.Scrubber(rows).replace(text, moved)
