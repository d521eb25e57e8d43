"""Rules of language and quality, as the papers state them.

Sources: C4, Raffel et al. 2020 (arXiv:1910.10683), section 2.2; Gopher's MassiveWeb, Rae et al. 2021
(arXiv:2112.11446), appendix A1.1: quality filtering, and repetition removal with its table A1. They are made
for English pages. Of C4 the list of bad words is left out, and its spans of three sentences are `passages`;
its language test is `language`. Words are separated by white space.
"""

import functools
import importlib.metadata
import re
from collections import Counter

from gpt_jax.data.clean.rule import Document, Rule, refuse_value

# ------------------------------------------------------------------------------------------ C4

END_MARKS = ('.', '!', '?', '"', '\u201d')
LEAST_SENTENCES, LEAST_LINE_WORDS = 3, 5
POLICIES = (
  'terms of use',
  'privacy policy',
  'cookie policy',
  'uses cookies',
  'use of cookies',
  'use cookies',
)
CITATION = re.compile(r'\[\d*\]|\[edit\]|\[citation needed\]')
SENTENCE = re.compile(r'[.!?]["\u201d\u2019\')]*(?:\s|$)')


class C4(Rule):
  """c4: lines without an end mark or of few words, on scripts or cookies; pages of few sentences, of code."""

  edits = True

  def __init__(self, value: str):
    super().__init__(value)
    refuse_value('c4', value)

  def edit(self, number: int, text: str, notes) -> str:
    """Keep the lines that end as sentences do."""
    kept, lines = [], text.split('\n')
    for line in map(str.strip, lines):
      reason = _line_reason(line)
      if reason and line:
        notes[f'lines removed by c4: {reason}'] += 1
      elif line:
        kept.append(CITATION.sub('', line) if '[' in line else line)
    return '\n'.join(kept)

  def check(self, number: int, document: Document) -> str | None:
    """Whether a page is too short, a placeholder or code."""
    text = document.text
    if 'lorem ipsum' in text.lower():
      return 'lorem ipsum'
    if '{' in text:
      return 'curly bracket'
    return 'few sentences' if len(SENTENCE.findall(text)) < LEAST_SENTENCES else None


def _line_reason(line: str) -> str:
  """Return why a line of a page is removed, '' if it stays."""
  if not line.endswith(END_MARKS) or line.endswith('...'):
    return 'no end mark'
  if len(line.split()) < LEAST_LINE_WORDS:
    return 'few words'
  lower = line.lower()
  if 'javascript' in lower:
    return 'javascript'
  return 'policy' if any(policy in lower for policy in POLICIES) else ''


# -------------------------------------------------------------------------------------- Gopher

STOP_WORDS = frozenset(('the', 'be', 'to', 'of', 'and', 'that', 'have', 'with'))
BULLETS = ('\u2022', '\u2023', '\u25e6', '-', '*')


class Gopher(Rule):
  """gopher: documents that break a rule of "quality filtering" of Rae et al. 2021, appendix A1.1."""

  def __init__(self, value: str):
    super().__init__(value)
    refuse_value('gopher', value)

  def check(self, number: int, document: Document) -> str | None:
    """Return the first rule that the document breaks."""
    text = document.text
    words, lines = text.split(), list(filter(str.strip, text.split('\n')))
    if not 50 <= len(words) <= 100_000:
      return 'few words' if len(words) < 50 else 'many words'
    if not 3 <= sum(map(len, words)) / len(words) <= 10:
      return 'mean word length'
    if max(text.count('#'), text.count('...') + text.count('\u2026')) > 0.1 * len(words):
      return 'symbols'
    if sum(line.lstrip().startswith(BULLETS) for line in lines) > 0.9 * len(lines):
      return 'bullets'
    if sum(line.rstrip().endswith(('...', '\u2026')) for line in lines) > 0.3 * len(lines):
      return 'ellipses'
    if sum(any(map(str.isalpha, word)) for word in words) < 0.8 * len(words):
      return 'words without letters'
    found = STOP_WORDS.intersection(word.strip('.,;:!?"\'()').lower() for word in words)
    return 'stop words' if len(found) < 2 else None


# Largest shares of Rae et al. 2021, table A1.
LINES, PARAGRAPHS, LINE_CHARACTERS, PARAGRAPH_CHARACTERS = 0.30, 0.30, 0.20, 0.20
TOP_GROUPS = {2: 0.20, 3: 0.18, 4: 0.16}
REPEATED_GROUPS = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}


class GopherRepetition(Rule):
  """gopher_repetition: documents that repeat themselves, by Rae et al. 2021, table A1."""

  def __init__(self, value: str):
    super().__init__(value)
    refuse_value('gopher_repetition', value)

  def check(self, number: int, document: Document) -> str | None:
    """Return the first share that is too large."""
    text = document.text
    for name, separator, share, characters in (
      ('lines', '\n', LINES, LINE_CHARACTERS),
      ('paragraphs', '\n\n', PARAGRAPHS, PARAGRAPH_CHARACTERS),
    ):
      parts = [part.strip() for part in text.split(separator) if part.strip()]
      repeated, seen = [], set()
      for part in parts:
        repeated += [part] if part in seen else []
        seen.add(part)
      if len(repeated) > share * len(parts) or sum(map(len, repeated)) > characters * len(text):
        return f'repeated {name}'
    words = text.split()
    total = sum(map(len, words))
    for size, share in TOP_GROUPS.items():
      groups = Counter(zip(*(words[n:] for n in range(size)), strict=False))
      if groups:
        top, count = groups.most_common(1)[0]
        if count > 1 and count * sum(map(len, top)) > share * total:
          return f'top {size}-gram'
    for size, share in REPEATED_GROUPS.items():
      if _repeated_characters(words, size) > share * total:
        return f'repeated {size}-grams'
    return None


def _repeated_characters(words: list[str], size: int) -> int:
  """Return the characters in groups of words that occurred before; overlapping ones count once."""
  seen, covered, count = set(), 0, 0
  for start in range(len(words) - size + 1):
    group = tuple(words[start : start + size])
    if group in seen:
      count += sum(map(len, words[max(start, covered) : start + size]))
      covered = start + size
    seen.add(group)
  return count


# ------------------------------------------------------------------------------------ language

LANGUAGE_CHARACTERS = 10_000  # of a document that its language is told by


class Language(Rule):
  """language=en|de: documents whose likeliest language, by py3langid, is another."""

  def __init__(self, value: str):
    super().__init__(value)
    self.languages = frozenset(map(str.strip, value.split('|')))
    if not all(re.fullmatch('[a-z]{2,3}', language) for language in self.languages):
      raise ValueError(
        f'clean=language={value} is not a language\nfix: write ISO 639-1 codes, as in language=en|de'
      )

  def describe(self) -> dict:
    """The version of the library; ValueError without it, or for a language that it does not know."""
    try:
      unknown = self.languages - set(_identifier().labels)
    except ImportError as error:
      raise ValueError(
        f"clean=language={self.value} needs the package py3langid: {error}\nfix: pip install 'gpt_jax[clean]'"
      ) from None
    if unknown:
      raise ValueError(
        f'clean=language={self.value} has {min(unknown)}, which py3langid does not tell apart\n'
        'fix: write ISO 639-1 codes, as in language=en|de'
      )
    return {'py3langid': importlib.metadata.version('py3langid')}

  def check(self, number: int, document: Document) -> str | None:
    """Return the language if it is another."""
    language = _identifier().classify(document.text[:LANGUAGE_CHARACTERS])[0]
    return None if language in self.languages else language


@functools.cache
def _identifier():
  from py3langid.langid import MODEL_FILE, LanguageIdentifier

  return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=False)
