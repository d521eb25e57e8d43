"""Split Noto emoji without siblings across splits.

Command: python -m benchmarks.emoji_split --out=runs/emoji.jsonl

Gender variants, clock faces, keycaps and the like form a group; a whole group is in train, valid or
test: sha256 of its key modulo 10 (0 test, 1 valid). In the original split 43 of the 164 test images
have a sibling in train. Reads captions.jsonl of GPT_JAX_DATA/noto_emoji.
"""

import argparse
import hashlib
import json
import os
import re
from pathlib import Path

WORDS = re.compile(
  'man|woman|men|women|person|people|boy|girl|adult|child|baby|red|orange|yellow|green|blue|purple|'
  'brown|black|white|gray|pink|light|large|medium|small|medium-small'
)
PREFIXES = {
  'keycap': 'keycap',
  'family': 'family',
  'couple with heart': 'couple',
  'japanese \u201c': 'japanese button',
}
ENDINGS = {'o\u2019clock': 'clock', '-thirty': 'clock', 'claus': 'claus'}


def group_key(name, group):
  """The group key of an emoji; siblings share it."""
  name = name.lower()
  for ending, key in ENDINGS.items():
    if name.endswith(ending):
      return key
  for prefix, key in PREFIXES.items():
    if name.startswith(prefix):
      return key
  if name == 'kiss' or (name.startswith('kiss ') and group == 'People & Body'):
    return 'kiss'
  if name in ('merman', 'mermaid', 'merperson'):
    return 'mer'
  words = name.replace(' facing right', '').replace(',', '').split()
  words = [word for word in words if not WORDS.fullmatch(word)]
  return f'{group}:{" ".join(words)}' if words else 'people'


def split_of(key):
  """Map a group key to train, valid or test."""
  number = int(hashlib.sha256(key.encode()).hexdigest(), 16) % 10
  return {0: 'test', 1: 'valid'}.get(number, 'train')


def main():
  """Write the captions with the fields group_split and label."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--out', required=True)
  out = Path(parser.parse_args().out)
  source = Path(os.environ.get('GPT_JAX_DATA', '../shared/data')) / 'noto_emoji/captions.jsonl'
  rows = [json.loads(line) for line in source.read_text(encoding='utf-8').splitlines()]
  counts = {}
  for row in rows:
    row['group_split'] = split_of(group_key(row['name'], row['group']))
    row['label'] = row['group']  # the class of a judge of pictures
    row['name'] = re.sub(r'\s+', ' ', row['name'].lower())
    counts[row['group_split']] = counts.get(row['group_split'], 0) + 1
  out.parent.mkdir(parents=True, exist_ok=True)
  out.write_text(''.join(json.dumps(row, ensure_ascii=False) + '\n' for row in rows))
  print(f'{out}: {counts}')


if __name__ == '__main__':
  main()
