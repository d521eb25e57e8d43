"""Sources of images and sounds: media files, and two that need no files.

Records hold media as paths, encoded bytes or arrays, which are decoded where they become tokens.
"""

import hashlib
import json
import os
import re
import zipfile
from pathlib import Path

import numpy as np

from gpt_jax.data import formats, templates
from gpt_jax.data.files import (
  candidates,
  containing_file,
  find_files,
  find_glob,
  hash_files,
  refuse_remote,
  walk,
  warn_once,
)
from gpt_jax.data.record_sources import json_records
from gpt_jax.data.splits import Corpus, Record, generated
from gpt_jax.data.synthetic.keypad import NAMES, RATE
from gpt_jax.data.synthetic.keypad import records as keypad_records
from gpt_jax.runs.reading import reading

KEYS = ('file', 'image', 'audio')  # fields of captions that may name the file


def digits(source, split: str) -> Corpus:
  """Open scikit-learn's 1,797 handwritten digits, 8x8 pixels of 17 gray levels."""
  try:
    from sklearn.datasets import load_digits
  except ImportError:
    raise ValueError(
      'kind=digits needs scikit-learn\nfix: pip install scikit-learn, or use another source'
    ) from None
  data = load_digits()
  images = np.round(data.images * (255 / 16)).astype(np.uint8)[..., None]

  def records():
    for number, (image, label) in enumerate(zip(images, data.target.tolist(), strict=True)):
      yield f'digit {number}', {'image': image, 'label': label, 'name': NAMES[label]}

  return Corpus(records, lambda: hashlib.sha256(images.tobytes()).hexdigest())


def keypad(source, split: str) -> Corpus:
  """Generate tones of a telephone keypad."""
  with_rate = lambda count: ((where, Record(fields, rate=RATE)) for where, fields in keypad_records(count))
  return generated(source, with_rate)


def files(source, split: str) -> Corpus:
  """Open media files of a folder, glob or .zip; fields come from their names and from captions."""
  paths = _media_files(source.path_of(split), templates.modalities(source.template))
  pattern = re.compile(source.pattern)
  captions = _captions(source.captions) if source.captions else {}

  def records():
    for path, name in paths:
      record = {'image': path, 'audio': path, 'file': name}
      if source.pattern:
        match = pattern.search(name)
        if not match:
          raise ValueError(
            f'{path}: its name {name!r} does not match pattern={source.pattern!r}\n'
            'fix: correct the pattern, or move the file away'
          )
        record.update(match.groupdict(''))
      if source.captions:
        if (fields := captions.get(name, captions.get(Path(name).name))) is None:
          raise ValueError(
            f'{path}: captions={source.captions} does not name it\n'
            'fix: add a line for it, or move the file away'
          )
        record.update({key: value for key, value in fields.items() if key not in KEYS})
      yield path, record

  def content():
    holders = sorted({containing_file(path)[0] for path, _ in paths})
    names = hashlib.sha256(json.dumps([name for _, name in paths]).encode()).hexdigest()
    beside = hash_files(find_files(source.captions, '.jsonl')) if source.captions else ''
    return '-'.join(filter(None, [hash_files(holders), names, beside]))

  return Corpus(records, content)


def _media_files(path: str, modalities: set[str]) -> list[tuple[str, str]]:
  """Return (path, name below the folder or .zip) of each file of these modalities, sorted by path.

  No modality stands for all. Files of a folder or .zip that may be media and are left out are logged.
  """
  refuse_remote(path)
  modalities = modalities or set(formats.NAMES)
  suffixes = tuple(suffix for modality in sorted(modalities) for suffix in formats.SUFFIXES[modality])
  others = tuple(suffix for modality in sorted(modalities) for suffix in formats.UNREADABLE[modality])
  for full in candidates(path):
    if os.path.isdir(full):
      names = walk(full)
    elif zipfile.is_zipfile(full) or (os.path.isfile(full) and full.lower().endswith('.zip')):
      with reading(full, 'a whole zip archive', 'fetch it again'), zipfile.ZipFile(full) as archive:
        names = archive.namelist()
    elif matching := find_glob(full):
      return [(name, os.path.basename(name)) for name in sorted(matching)]
    else:
      continue
    chosen = sorted(name for name in names if formats.is_media_name(name, suffixes))
    left_out = sorted(name for name in names if formats.is_media_name(name, others))
    if chosen and left_out:
      warn_once(f'{full}: {len(left_out)} files of formats that are not read are left out, as {left_out[0]}')
    if chosen:
      return [(f'{full}/{name}', name) for name in chosen]
    if left_out:
      modality = 'audio' if formats.is_media_name(left_out[0], formats.UNREADABLE['audio']) else 'image'
      fix = formats.CONVERT[modality].format(name=left_out[0])
      raise ValueError(f'path={path} has no file of a format that is read, but {left_out[0]}\nfix: {fix}')
  raise ValueError(
    f'path={path} matches no media file (a folder or .zip is searched for {" ".join(suffixes)})\n'
    'fix: give an existing folder, glob or .zip, or set GPT_JAX_DATA to the folder that holds it'
  )


def _captions(path: str) -> dict[str, dict]:
  """Return the objects of JSON lines by the file that they name."""
  captions = {}
  for file in find_files(path, '.jsonl'):
    for where, record in json_records(file):
      key = next((key for key in KEYS if isinstance(record.get(key), str)), '')
      if not key or record[key] in captions:
        raise ValueError(
          f'{where} names no file in {", ".join(KEYS)}, or one that was named before\n'
          'fix: write one line for each file'
        )
      captions[record[key]] = record
  return captions


def check_pattern(pattern: str) -> None:
  """Raise ValueError unless this is a regular expression with named groups, or ''."""
  try:
    groups, problem = re.compile(pattern).groupindex, 'has no named group, so it gives no field'
  except re.error as error:
    groups, problem = {}, f'is not a regular expression: {error}'
  if pattern and not groups:
    raise ValueError(
      f'pattern={pattern!r} {problem}\n'
      r"fix: write one such as '(?P<digit>\d)_(?P<speaker>[a-z]+)'"
    )
