"""What image and audio tokenizers share: codes in codebooks, files and their digests.

A media tokenizer maps an item to codes [P, Q]: positions in reading order or in time, and
codebooks. Like a text tokenizer it is a value: `fields()` and `files()` are all of its content, its
hash is a digest of them, and a saved folder that was altered is refused.

Letters: P positions of one item, Q codebooks.
"""

import functools
import pathlib

from gpt_jax.tokenizers import base

MODALITIES = ('image', 'audio')


class MediaTokenizer:
  """The interface of an image or audio tokenizer."""

  modality = ''  # of MODALITIES
  kind = ''  # row of IMAGE_TOKENIZERS or AUDIO_TOKENIZERS
  codebooks: tuple[int, ...] = ()  # codes of each of the Q codebooks

  def fields(self) -> dict:
    """JSON-able settings; with `files` all of the content."""
    raise NotImplementedError

  def files(self) -> dict[str, bytes]:
    """Arrays and the like, as file name -> bytes; equal tokenizers give equal bytes."""
    raise NotImplementedError

  @property
  def ranges(self) -> tuple[tuple[str, int], ...]:
    """What it needs of a vocabulary: (kind, count) of each codebook."""
    return tuple((f'{self.modality}{q}', count) for q, count in enumerate(self.codebooks))

  @functools.cached_property
  def hash(self) -> str:
    """Hex digest of the content: equal tokenizers have equal hashes, in every process."""
    digests = {name: base.digest(content) for name, content in self.files().items()}
    return base.digest(base.to_json([self.modality, self.kind, self.fields(), digests]))

  def __eq__(self, other):
    return isinstance(other, MediaTokenizer) and self.hash == other.hash

  def __hash__(self):
    return hash(self.hash)

  def save(self, folder) -> None:
    """Write the tokenizer into a folder that needs nothing else."""
    files = self.files()
    for name, content in files.items():
      base.write_file(pathlib.Path(folder) / name, content)
    description = {
      'kind': self.kind,
      'fields': self.fields(),
      'hash': self.hash,
      'files': {name: base.digest(content) for name, content in files.items()},
    }
    path = pathlib.Path(folder) / f'{self.modality}.json'
    base.write_file(path, base.to_json(description, indent=2))


def load_media_tokenizer(folder, modality: str, rows: dict) -> MediaTokenizer:
  """What `save` wrote, by `rows[kind].restore(fields, files)`.

  Raises FileNotFoundError or ValueError if it is not as it was saved.
  """
  fix = 'name a folder with a saved tokenizer, and restore it if a file was altered'
  path = pathlib.Path(folder).expanduser() / f'{modality}.json'
  saved = base.read_json(path, fix)
  try:
    kind, fields, names, digest = (saved[k] for k in ('kind', 'fields', 'files', 'hash'))
    row = rows[kind]
  except (KeyError, TypeError) as error:
    raise ValueError(f'{path} describes no tokenizer of {", ".join(rows)}: {error}\nfix: {fix}') from None
  files = {name: base.read_file(path.parent / pathlib.Path(name).name, fix) for name in names}
  made = row.restore(fields, files)
  if made.hash != digest:
    raise ValueError(
      f'{path} or a file beside it was altered: its hash is {made.hash}, saved was {digest!r}\nfix: {fix}'
    )
  return made
