"""What a filter of documents is: `Rule`, the document that it reads, and checks of its value."""

from collections import Counter
from typing import NamedTuple

from gpt_jax.data import content, templates
from gpt_jax.data.templates import Piece


class Document(NamedTuple):
  """A document as filters read it."""

  pieces: list[Piece]
  where: str  # file and line, for messages

  @property
  def text(self) -> str:
    """Its texts and messages, joined."""
    return text_of(self.pieces)

  def digest(self) -> int:
    """Return 64 bits of all of its pieces."""
    return content.digest_whole(self.pieces)


def text_of(pieces: list[Piece]) -> str:
  """Return the joined texts of a document; of conversations those of their messages."""
  chats = [templates.chat_text(piece) for piece in pieces if piece.kind == 'chat']
  return ''.join([*chats, *(piece.value for piece in pieces if piece.kind == 'text')])


class Rule:
  """A row of FILTERS with its value: which documents it removes, and why.

  A rule that `learns` reads all documents that the rules before it leave, once, before it checks any. One
  that `edits` changes the text before it checks it; it fits documents of one text alone.
  """

  learns = edits = False
  reads = 'text'  # or 'any': also documents with images and sounds
  version = 1  # raise it when equal documents are treated in another way

  def __init__(self, value: str):
    """Read the value; ValueError for a malformed one. Files and libraries are looked for by `describe`."""
    self.value = value
    self.overlaps: Counter = Counter()  # {item of a benchmark: documents that share words with it}

  def describe(self) -> dict:
    """Return what its verdicts depend on besides its value and the documents, JSON-able."""
    return {}

  def learn(self, documents) -> None:
    """Read all (number, Document)."""

  def edit(self, number: int, text: str, notes) -> str:
    """Return the text changed; notes: a Counter of changes."""
    return text

  def check(self, number: int, document: Document) -> str | None:
    """Return why the document is removed ('' where the rule has one reason), None if it stays."""
    raise NotImplementedError


def number_between(name: str, value: str, least: float, most: float) -> float:
  """Return the number of `clean=name=value`, a whole one where the bounds are above 1; ValueError if not."""
  whole = most > 1
  try:
    number = float(value)
    if least <= number <= most and (not whole or number == int(number)):
      return number
  except ValueError:
    pass
  kind = 'a whole number' if whole else 'a number'
  raise ValueError(
    f'clean={name}={value} is not {kind} from {least:g} to {most:g}\n'
    f'fix: write one, such as {50 if whole else 0.8}'
  )


def refuse_value(name: str, value: str) -> None:
  """Raise ValueError for a value of a rule that has none."""
  if value:
    raise ValueError(f'clean={name}={value}: {name} has no value\nfix: write {name} alone')
