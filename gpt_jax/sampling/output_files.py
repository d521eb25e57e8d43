"""Files for the pictures and sounds that are made, with names that are known before they are made.

Letters: Y X A rows, columns and channels of an image.
"""

import re
import tempfile
from pathlib import Path

from gpt_jax.data import media_io
from gpt_jax.runs.records import append_line, write_atomically

SUFFIXES = {'image': ('.png',), 'audio': ('.wav', '.flac')}  # of a folder's files the first
SHOWN = 256  # pixels of the longer side that a small picture is enlarged to, by a whole factor


class OutputFiles:
  """Numbers and writes pieces: `out` is a file, a folder, or '' for `default`, a folder.

  Raises ValueError at once for a file of another kind, one that cannot be written, or one for
  several things; .flac needs soundfile. Files in the default folder are never overwritten.
  """

  def __init__(self, out, default, to, count):
    path = Path(out).expanduser() if out else Path(default)
    is_folder = not out or path.is_dir() or out.endswith('/') or not path.suffix
    if not is_folder and path.suffix not in SUFFIXES.get(to, ()):
      wanted = f'a {" or ".join(SUFFIXES[to])} file or a folder' if to in SUFFIXES else 'a folder'
      raise ValueError(f'--out={out} is no place for --to={to}\nfix: give {wanted}')
    if path.suffix == '.flac' and not is_folder:
      media_io.to_flac([0.0], 8000)  # now, not after the sampling
    self.folder, self.stem = (path, 'sample') if is_folder else (path.parent, path.stem)
    self.single, self.suffix = not is_folder and count == 1, '' if is_folder else path.suffix
    try:
      self.folder.mkdir(parents=True, exist_ok=True)
      tempfile.TemporaryFile(dir=self.folder).close()
    except OSError as error:
      raise ValueError(f'--out={out} cannot be written: {error}\nfix: give another file or folder') from None
    self.next = 0
    if not out:
      numbers = [re.fullmatch(r'sample_(\d+)\.\w+', p.name) for p in self.folder.iterdir()]
      self.next = max((int(found[1]) + 1 for found in numbers if found), default=0)

  def write(self, piece, sample_rate=0):
    """Write an image uint8 [Y, X, A] or a sound -> its path."""
    number = '' if self.single else f'_{self.next}'
    suffix = self.suffix or SUFFIXES[piece.kind][0]
    path = self.folder / f'{self.stem}{number}{suffix}'
    self.next += 1
    if piece.kind == 'image':
      content = media_io.to_png(piece.value, max(1, SHOWN // max(piece.value.shape[:2])))
    else:
      to_file = media_io.to_flac if suffix == '.flac' else media_io.to_wav
      content = to_file(piece.value, sample_rate)
    write_atomically(path, content)
    return path


def format_sample(i, count, scored, scores, cfg, content):
  """One of several samples under a line with its number and, if `scored`, its score.

  scores: log-probabilities of its tokens; with cfg.beams its length-penalized sum.
  """
  score = ''
  if scored and cfg.beams:
    score = f'  length-penalized log-probability {scores:.3f}'
  elif scored:
    score = f'  mean log-probability {sum(scores) / max(len(scores), 1):.3f}'
  return f'--- {i + 1} of {count}{score}\n{content}'


def append_sample(path, prompt, given, text, scores, seed):
  """Append a sampled text to a file of JSON lines; given: {'image': paths, 'audio': paths}."""
  record = {'prompt': prompt, **given, 'text': text, 'log_probs': scores, 'seed': seed}
  append_line(Path(path).expanduser(), record)
