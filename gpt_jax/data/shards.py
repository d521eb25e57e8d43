"""Sources of tar shards as WebDataset writes them (https://github.com/webdataset/webdataset).

The files of a sample lie one after another and share their name up to the first dot, the key. What
follows the dot names the field: `0007.jpg`, `0007.txt` and `0007.json` are jpg, txt and json.
"""

import itertools
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

from gpt_jax.data import formats
from gpt_jax.data.files import find_files
from gpt_jax.data.media_io import check_bytes
from gpt_jax.data.record_sources import file_corpus
from gpt_jax.data.splits import Corpus
from gpt_jax.data.text_files import open_unpacked, suffixes
from gpt_jax.runs.reading import reading

ALIASES = {'text': 'txt', 'label': 'cls'}  # field -> the ending that it stands for


def webdataset(source, split: str) -> Corpus:
  """Open tar shards. Fields: the endings, those of a .json object, and image, audio, text, label, key.

  `image` and `audio` are the one picture and the one sound of a sample, whatever their format.
  """
  files = find_files(source.path_of(split), *suffixes('.tar'), '.tgz')
  return file_corpus(source, files, lambda path: _samples(path, bool(source.bad_records)))


class _Header(tarfile.TarInfo):
  """The header of a member; tarfile takes one that is damaged or missing for the end of the archive."""

  @classmethod
  def fromtarfile(cls, archive):
    try:
      return super().fromtarfile(archive)
    except tarfile.EOFHeaderError:
      raise
    except tarfile.HeaderError as error:
      raise OSError(f'it is cut or damaged at byte {archive.offset}: {error}') from None


def _samples(path: Path, tolerant: bool) -> Iterator[tuple[str, dict | ValueError]]:
  """Yield (where, fields) of each sample; if `tolerant`, errors in place of fields."""
  keys = set()
  with reading(path, 'a whole tar archive', 'fetch it again'), open_unpacked(path) as file:
    with tarfile.open(fileobj=file, mode='r|', tarinfo=_Header) as archive:
      names = ((*_split_name(member.name), member) for member in archive if member.isfile())
      visible = (item for item in names if item[0].rpartition('/')[2] and item[1])  # .x is hidden
      for key, members in itertools.groupby(visible, lambda item: item[0]):
        where = f'{path}/{key}'
        if key in keys:
          raise ValueError(
            f'{where} comes twice, with other samples between its files\n'
            'fix: write the files of a sample one after another, as in: tar --sort=name'
          )
        keys.add(key)
        try:
          fields = _fields(where, archive, members)
        except ValueError as error:
          if not tolerant:
            raise
          fields = error
        yield where, fields if isinstance(fields, ValueError) else {'key': key, **fields}


def _split_name(name: str) -> tuple[str, str]:
  """Return (key, ending in lower case) of a member, as in ('a/0007', 'jpg')."""
  folder, slash, last = name.rpartition('/')
  stem, _, ending = last.partition('.')
  return folder + slash + stem, ending.lower()


def _fields(where: str, archive: tarfile.TarFile, members: Iterator) -> dict:
  """Return the fields of one sample; members: (key, ending, header) of each, read as they come."""
  fields = {}
  for _, ending, member in members:
    if ending in fields:
      raise ValueError(f'{where} has two files {ending}\nfix: write one of each ending')
    if member.issparse():  # it unpacks to any size
      raise ValueError(f'{where}.{ending} is a sparse file\nfix: write the shard without tar --sparse')
    check_bytes(f'{where}.{ending}', member.size)
    fields[ending] = archive.extractfile(member).read()
  if 'json' in fields:
    with reading(f'{where}.json', 'JSON', 'repair or drop it'):
      fields['json'] = json.loads(fields['json'])
  named = fields['json'] if isinstance(fields.get('json'), dict) else {}
  aliases = {name: fields[ending] for name, ending in ALIASES.items() if ending in fields}
  for modality, known in formats.SUFFIXES.items():
    media = [ending for ending in fields if f'.{ending.rpartition(".")[2]}' in known]
    if len(media) == 1:
      aliases[modality] = fields[media[0]]
  return {**named, **aliases, **fields}
