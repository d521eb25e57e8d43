"""Output files of sampled images, sounds and texts; their paths are checked before sampling.

Letters: Y X A rows, columns and channels of an image.
"""

import re
import sys
from pathlib import Path

from gpt_jax.data import media_io
from gpt_jax.runs.records import append_line, check_writable, write_atomically

SUFFIXES = {'image': ('.png',), 'audio': ('.wav', '.flac'), 'codes': ('.npy',)}  # the first in a folder
MIN_IMAGE_SIDE = 256  # pixels; small images are enlarged by a whole factor up to this


def prepare_text_file(out):
  """Make the folder and the file of --out, keep what is in it; ValueError if it cannot be made."""
  path = Path(out).expanduser()
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.open('ab').close()
  except OSError as error:
    raise ValueError(f'--out={out} cannot be written: {error}\nfix: give another file') from None


def write_text(out, text):
  """Write a text to the file of --out, '' = print it; ValueError if it cannot be made."""
  if not out:
    sys.stdout.write(text)
    return
  prepare_text_file(out)
  Path(out).expanduser().write_text(text)


class OutputFiles:
  """Numbered output files at `out`, a file or a folder, or in the folder `default` where out=''.

  Raises ValueError at once for a file of the wrong type, one that cannot be written, or one file for
  several outputs; .flac needs soundfile. Files in the default folder are never overwritten.
  """

  def __init__(self, out, default, to, count):
    path = Path(out).expanduser() if out else Path(default)
    is_folder = not out or path.is_dir() or out.endswith('/') or not path.suffix
    if not is_folder and path.suffix not in SUFFIXES.get(to, ()):
      allowed = f'a {" or ".join(SUFFIXES[to])} file or a folder' if to in SUFFIXES else 'a folder'
      raise ValueError(f'--out={out} does not fit --to={to}\nfix: give {allowed}')
    if path.suffix == '.flac' and not is_folder:
      media_io.to_flac([0.0], 8000)  # a missing soundfile fails now, not after sampling
    self.folder, self.stem = (path, 'sample') if is_folder else (path.parent, path.stem)
    self.single, self.suffix = not is_folder and count == 1, '' if is_folder else path.suffix
    check_writable(f'--out={out}', self.folder)  # `write` makes it: a text leaves none behind
    self.next = 0
    if not out and self.folder.exists():
      matches = [re.fullmatch(r'sample_(\d+)\.\w+', p.name) for p in self.folder.iterdir()]
      self.next = max((int(match[1]) + 1 for match in matches if match), default=0)

  def write(self, piece, sample_rate=0):
    """Write a Piece with an image (uint8 [Y, X, A]), a sound or codes (int32 [P, Q]) and return its path."""
    number = '' if self.single else f'_{self.next}'
    suffix = self.suffix or SUFFIXES[piece.kind][0]
    path = self.folder / f'{self.stem}{number}{suffix}'
    self.next += 1
    if piece.kind == 'image':
      content = media_io.to_png(piece.value, max(1, MIN_IMAGE_SIDE // max(piece.value.shape[:2])))
    elif piece.kind == 'codes':
      content = media_io.to_npy(piece.value)
    else:
      to_file = media_io.to_flac if suffix == '.flac' else media_io.to_wav
      content = to_file(piece.value, sample_rate)
    self.folder.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content)
    return path


def format_sample(index, count, with_score, scores, cfg, content):
  """Format one of several samples below a line with its number and, if asked for, its score.

  scores: log-probabilities of its tokens; with cfg.beams its length-penalized sum.
  """
  score = ''
  if with_score and cfg.beams:
    score = f'  length-penalized log-probability {scores:.3f}'
  elif with_score:
    score = f'  mean log-probability {sum(scores) / max(len(scores), 1):.3f}'
  return f'--- {index + 1} of {count}{score}\n{content}'


def append_sample(path, prompt, inputs, text, scores, seed):
  """Append a sampled text to a JSON lines file; inputs: {'image': paths, 'audio': paths}."""
  record = {'prompt': prompt, **inputs, 'text': text, 'log_probs': scores, 'seed': seed}
  append_line(Path(path).expanduser(), record)
