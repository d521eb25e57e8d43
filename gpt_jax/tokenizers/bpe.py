"""Byte-level BPE (GPT-2, section 2.2): training, and GPT-2's own files.

Both make the content of a `tokenizer.json`, which the `tokenizers` library then runs. Training is our
own because the library breaks ties between equally frequent pairs by token id, which no numbering of
its alphabet turns into the lexicographic order of the reference merges of Stanford CS336 (they differ
from the 32nd merge on); with that order the merges depend on the text alone.
"""

import collections
import heapq
import logging
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator

from gpt_jax.tokenizers import base

log = logging.getLogger(__name__)
END_OF_TEXT = '<|endoftext|>'

# The library splits text by GPT-2's pattern, then spells each byte as one printable character.
BYTE_LEVEL = {'type': 'ByteLevel', 'add_prefix_space': False, 'trim_offsets': True, 'use_regex': True}

# A token of GPT-2's pattern never holds a space or newline after a non-space, so a long text may
# be cut there without changing any token. The library is 3 to 4 times faster on short pieces.
CUT = re.compile(r'(?<=\S)(?=[ \n])')


def pieces(text: str, size: int = 2000) -> Iterator[str]:
  """Cut a text into pieces of about `size` characters that tokenize like the whole text."""
  start = 0
  while start < len(text):
    cut = CUT.search(text, start + size)
    stop = cut.start() if cut else len(text)
    yield text[start:stop]
    start = stop


def byte_characters() -> list[str]:
  """Return GPT-2's printable character of each byte: itself, or for 68 of them U+0100 onwards."""
  printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
  spare = iter(range(0x100, 0x200))
  return [chr(byte if byte in printable else next(spare)) for byte in range(256)]


def train(
  documents: Callable[[], Iterable[str]], vocab: int, marks: tuple[str, ...] = (END_OF_TEXT,)
) -> dict:
  """Learn `vocab` tokens from documents; returns the content of a tokenizer.json.

  Ids 0 to 255 are the raw bytes, later ids the merged tokens in the order they were learned.
  Documents are split at `marks` first, so that no token contains a part of one. A text that
  repeats too little has fewer tokens, which is logged.
  """
  merges = learn_merges(count_words(documents(), marks), vocab)
  characters = byte_characters()
  spell = {merge: [_spelled(part, characters) for part in merge] for merge in merges}
  tokens = [*characters, *(''.join(spell[merge]) for merge in merges)]
  return tokenizer_json({token: i for i, token in enumerate(tokens)}, [spell[m] for m in merges])


def tokenizer_json(vocab: dict[str, int], merges: list[list[str]], specials: Iterable[str] = ()) -> dict:
  """Return the content of a byte-level BPE tokenizer.json."""
  flags = {'single_word': False, 'lstrip': False, 'rstrip': False, 'normalized': False}
  return {
    'version': '1.0',
    'truncation': None,
    'padding': None,
    'added_tokens': [{'id': vocab[token], 'content': token, 'special': True, **flags} for token in specials],
    'normalizer': None,
    'pre_tokenizer': BYTE_LEVEL,
    'post_processor': None,
    'decoder': BYTE_LEVEL,
    'model': {
      'type': 'BPE',
      'dropout': None,
      'unk_token': None,
      'continuing_subword_prefix': None,
      'end_of_word_suffix': None,
      'fuse_unk': False,
      'byte_fallback': False,
      'ignore_merges': False,
      'vocab': vocab,
      'merges': merges,
    },
  }


def split_by(pattern: str) -> dict:
  """Return the pre-tokenizer that splits by a pattern, then spells bytes as characters."""
  split = {'type': 'Split', 'pattern': {'Regex': pattern}, 'behavior': 'Isolated', 'invert': False}
  return {'type': 'Sequence', 'pretokenizers': [split, BYTE_LEVEL | {'use_regex': False}]}


def count_words(documents: Iterable[str], marks: tuple[str, ...] = ()) -> dict[bytes, int]:
  """Count the words of GPT-2's pattern; `marks` separate texts and are not counted."""
  from tokenizers import pre_tokenizers

  split = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True).pre_tokenize_str
  # An empty pattern would match everywhere; (?!) matches nowhere.
  mark = re.compile('|'.join(map(re.escape, marks)) or '(?!)')
  counts = collections.Counter()
  for document in documents:
    for text in mark.split(base.checked_text(document)):
      for piece in pieces(text):
        counts.update([word for word, _ in split(piece)])
  byte_of = {character: byte for byte, character in enumerate(byte_characters())}
  return {bytes(map(byte_of.__getitem__, word)): count for word, count in counts.items()}


def learn_merges(word_counts: dict[bytes, int], vocab: int) -> list[tuple[bytes, bytes]]:
  """Return the pairs to merge, in order, until there are `vocab` tokens or no pair repeats.

  Each merge takes the most frequent pair, of equals the lexicographically greater pair of byte
  strings. A pair must occur twice. No two pairs spell the same token.
  """
  words, counts = [list(word) for word in word_counts], list(word_counts.values())
  tokens = [bytes([byte]) for byte in range(256)]
  keys = [_descending(token) for token in tokens]
  totals, places = collections.Counter(), collections.defaultdict(set)
  for i, word in enumerate(words):
    for pair in zip(word, word[1:], strict=False):
      totals[pair] += counts[i]
      places[pair].add(i)
  heap = [(-total, keys[a] + keys[b], (a, b)) for (a, b), total in totals.items()]
  heapq.heapify(heap)

  merges = []
  while len(tokens) < vocab:
    pair = _most_frequent(heap, totals)
    if pair is None:
      log.warning(
        'tokenizer.vocab=%d: the text is too small for so many; the vocabulary has %d tokens',
        vocab,
        len(tokens),
      )
      break
    grown = _merge(pair, len(tokens), words, counts, totals, places)
    merges.append((tokens[pair[0]], tokens[pair[1]]))
    tokens.append(b''.join(merges[-1]))
    keys.append(_descending(tokens[-1]))
    for a, b in grown:
      heapq.heappush(heap, (-totals[a, b], keys[a] + keys[b], (a, b)))
  return merges


def read_gpt2(folder) -> dict:
  """Return GPT-2's tables as the content of a tokenizer.json.

  Raises FileNotFoundError or ValueError if vocab.json (or encoder.json) and merges.txt (or
  vocab.bpe) are missing or do not fit together.
  """
  fix = 'tokenizer.path names the folder of vocab.json and merges.txt (or encoder.json, vocab.bpe)'
  folder = pathlib.Path(folder)
  vocab_path, merges_path = (
    next((folder / name for name in names if (folder / name).exists()), folder / names[0])
    for names in (('vocab.json', 'encoder.json'), ('merges.txt', 'vocab.bpe'))
  )
  vocab = base.read_json(vocab_path, fix)
  lines = base.read_file(merges_path, fix).decode('utf-8', 'replace').split('\n')
  merges = [line.rstrip('\r').split(' ') for line in lines if line.strip()]
  if merges and merges[0][0] == '#version:':
    del merges[0]
  wrong = next((merge for merge in merges if len(merge) != 2 or not all(merge)), None)
  if wrong is not None or not merges:
    raise ValueError(f'{merges_path} has no pair in the line {" ".join(wrong or [])!r}\nfix: {fix}')
  ids = [*vocab.values()] if isinstance(vocab, dict) else [None]
  if any(type(i) is not int for i in ids) or sorted(ids) != list(range(len(ids))):
    raise ValueError(f'{vocab_path} does not number its tokens 0, 1, 2 ...\nfix: {fix}')
  missing = [token for token in byte_characters() if token not in vocab]
  if missing:
    raise ValueError(f'{vocab_path} lacks the byte tokens {"".join(missing)!r}\nfix: {fix}')
  return tokenizer_json(vocab, merges, [END_OF_TEXT] if END_OF_TEXT in vocab else ())


def _spelled(token, characters):
  return ''.join(characters[byte] for byte in token)


def _descending(token):
  """Return a string that sorts in the reverse order of tokens."""
  return ''.join([chr(255 - byte) for byte in token]) + chr(256)


def _most_frequent(heap, totals):
  """Return the pair to merge next, or None. Entries with outdated counts are corrected."""
  while heap and heap[0][0] <= -2:
    total, key, pair = heap[0]
    if -total == totals[pair]:
      return pair
    if -total > totals[pair] >= 2:
      heapq.heapreplace(heap, (-totals[pair], key, pair))
    else:
      heapq.heappop(heap)
  return None


def _merge(pair, new, words, counts, totals, places):
  """Replace a pair by a token in every word; return the pairs that became more frequent."""
  a, b = pair
  change = collections.defaultdict(int)
  for i in places.pop(pair):
    word, merged, j, last = words[i], [], 0, len(words[i]) - 1
    while j <= last:
      if j < last and word[j] == a and word[j + 1] == b:
        merged.append(new)
        j += 2
      else:
        merged.append(word[j])
        j += 1
    for old in zip(word, word[1:], strict=False):
      change[old] -= counts[i]
    for now in zip(merged, merged[1:], strict=False):
      change[now] += counts[i]
      if new in now:
        places[now].add(i)
    words[i] = merged
  for changed, difference in change.items():
    totals[changed] += difference
  return [changed for changed, difference in change.items() if difference > 0]
