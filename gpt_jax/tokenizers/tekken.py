"""Mistral's tekken.json, byte-level BPE by ranks, as the content of a tokenizer.json.

Ranks say which token wins, not how it is made: the adjacent pair whose bytes together have the lowest rank is
joined first, the leftmost of equals, and a piece that is a token is not merged. What happens inside a token's
bytes does not depend on its surroundings until a merge crosses their borders, so each token can only be
joined from the two parts that its own bytes alone come to. These are its merge: ids equal those by ranks.

Sources: mistral-common, `tokens/tokenizers/tekken.py` (the layout of ids); tiktoken (the order of merges).
"""

import base64

from gpt_jax.runs.reading import check_types, reading
from gpt_jax.tokenizers import base, bpe

NAME = 'tekken.json'
FIX = f'name the unaltered {NAME} that came with the model'
FORMAT = {
  'config': {'pattern': str, 'default_vocab_size': int, 'default_num_special_tokens': int},
  'vocab': [{'rank': int, 'token_bytes': str}],
}
# Ids 0, 1, 2 ... of files that list no special tokens, which are of version 7 or older.
_TURNS = ['<unk>', '<s>', '</s>', '[INST]', '[/INST]']
_TOOLS = ['[AVAILABLE_TOOLS]', '[/AVAILABLE_TOOLS]', '[TOOL_RESULTS]', '[/TOOL_RESULTS]', '[TOOL_CALLS]']
_OTHERS = ['[IMG]', '<pad>', '[IMG_BREAK]', '[IMG_END]', '[PREFIX]', '[MIDDLE]', '[SUFFIX]']
SPECIALS = (*_TURNS, *_TOOLS, *_OTHERS, '[SYSTEM_PROMPT]', '[/SYSTEM_PROMPT]', '[TOOL_CONTENT]')


def read(path) -> dict:
  """Return a tekken.json as the content of a tokenizer.json.

  The first ids are special tokens, those without a name <SPECIAL_20>, ...; the others are ranks. Raises
  FileNotFoundError or ValueError for a missing or damaged file.
  """
  content = base.read_json(path, FIX, FORMAT)
  with reading(path, 'a tokenizer of Mistral', FIX):
    count = content['config']['default_num_special_tokens']
    specials = content.get('special_tokens')
    specials = specials and check_types(specials, [{'rank': int, 'token_str': str}], 'special_tokens')
    names = special_names(specials, count)
    size = content['config']['default_vocab_size'] - count
    rows = sorted(content['vocab'], key=lambda row: row['rank'])[:size]
    tokens = [base64.b64decode(row['token_bytes'], validate=True) for row in rows]
    ranks = {token: rank for rank, token in enumerate(tokens)}
    if len(ranks) != size or [row['rank'] for row in rows] != list(range(size)):
      raise ValueError(f'its ranks are not those of {size} different tokens')
    if missing := [byte for byte in range(256) if bytes([byte]) not in ranks]:
      raise ValueError(f'it has no token of the byte {missing[0]}')
  characters = bpe.byte_characters()
  spell = lambda token: ''.join(characters[byte] for byte in token)
  ids = {spell(token): rank + count for token, rank in ranks.items()}
  ids |= {name: index for index, name in enumerate(names)}  # text never has the bytes of one: it is a special
  halves = (last_parts(token, ranks) for token in tokens if len(token) > 1)
  merges = [[spell(part) for part in pair] for pair in halves if pair]
  model = bpe.tokenizer_json(ids, merges, names)
  model['model']['ignore_merges'] = True
  model['pre_tokenizer'] = bpe.split_by(content['config']['pattern'])
  return model


def special_names(rows: list[dict] | None, count: int) -> list[str]:
  """Return the special tokens in the order of their ids; rows: of the file, None if it lists none."""
  rows = [dict(rank=rank, token_str=name) for rank, name in enumerate(SPECIALS)] if rows is None else rows
  names = [row['token_str'] for row in sorted(rows, key=lambda row: row['rank'])]
  names += [f'<SPECIAL_{index}>' for index in range(len(names), count)]
  if sorted(row['rank'] for row in rows) != list(range(len(rows))) or len({*names}) != count:
    raise ValueError(f'its special tokens are not {count} different ones with the ids 0, 1, 2, ...')
  return names


def last_parts(token: bytes, ranks: dict[bytes, int]) -> list[bytes] | None:
  """Return the two parts that the bytes of a token come to by tokens of lower rank, None if more are left."""
  parts = [token[i : i + 1] for i in range(len(token))]
  while len(parts) > 2:
    pairs = [ranks.get(a + b, ranks[token]) for a, b in zip(parts, parts[1:], strict=False)]
    if (lowest := min(pairs)) == ranks[token]:
      return None
    index = pairs.index(lowest)
    parts[index : index + 2] = [parts[index] + parts[index + 1]]
  return parts
