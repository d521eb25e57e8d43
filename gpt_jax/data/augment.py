"""Data augmentation: training copies of records with randomly changed media.

A source with `copies=4, augment='speed=0.2,noise=0.01'` has four changed copies of each training
record. They are made before tokenizing and stored in the token cache, so a run reads them like other
documents; copy c of record n is a pure function of (n, c). Validation and test data, and the training
data of judges, are never changed.

Letters: Y X A rows, columns and channels of an image, N samples.

Sources: speed perturbation (Ko et al. 2015); masking in time (Park et al. 2019, SpecAugment).
"""

import numpy as np

from gpt_jax.data.templates import MODALITY, Piece


def parse(text: str) -> dict[str, float]:
  """Parse 'speed=0.2,noise=0.01' -> {'speed': 0.2, 'noise': 0.01}; ValueError for another form."""
  strengths = {}
  for item in filter(None, text.split(',')):
    name, _, number = item.partition('=')
    try:
      strengths[name.strip()] = float(number)
      if name.strip() not in CHANGES or not 0 < float(number) < np.inf:
        raise ValueError
    except ValueError:
      known = ', '.join(f'{name}={unit}' for name, (_, unit, _) in CHANGES.items())
      raise ValueError(
        f'augment={text!r}: {item!r} is not a change with a strength\nfix: use some of {known}'
      ) from None
  return strengths


def modalities(text: str) -> set[str]:
  """Return the modalities that an `augment` changes: 'image', 'audio'."""
  return {CHANGES[name][0] for name in parse(text)}


def copies(source, number: int, pieces: list[Piece], forms: dict[str, tuple]):
  """Yield the changed copies of training record `number`, whose media are decoded.

  forms: of documents.media_forms: sample rates of sounds, and seconds after which they are cut off. Raises
  ValueError for changes of pictures that are cut in tiles.
  """
  for copy in range(source.copies):
    rng, changed = np.random.default_rng([number, copy]), []
    for piece in pieces:
      modality = MODALITY.get(piece.kind) if piece.kind != 'codes' else None
      rate, seconds = forms[piece.kind] if modality == 'audio' else (0, 0.0)
      if modality == 'image' and any(forms[piece.kind][5:7]) and 'image' in modalities(source.augment):
        raise ValueError(
          f'augment={source.augment} would change the tiles of a picture as one picture\n'
          'fix: leave augment and copies out for a model that reads tiles'
        )
      value = change(piece.value, modality, source.augment, rng, rate)
      changed.append(Piece(piece.kind, value[: int(seconds * rate)] if modality == 'audio' else value))
    yield changed


def change(value, modality, text: str, rng, rate: int):
  """Return an image uint8 [Y, X, A] or a sound float32 [N] changed, anything else unchanged."""
  strengths = parse(text)
  if modality == 'image' and 'image' in modalities(text):
    return warp(value, strengths, rng)
  if modality == 'audio':
    for name, strength in strengths.items():
      if function := CHANGES[name][2]:
        value = function(value, strength, rng, rate).astype(np.float32)
  return value


def warp(image_YXA, strengths: dict[str, float], rng) -> np.ndarray:
  """Rotate, scale and shift an image; pixels from outside repeat the edge. The class stays."""
  from scipy import ndimage

  draw = lambda name: rng.uniform(-1, 1) * strengths.get(name, 0.0)
  angle, zoom = np.deg2rad(draw('rotate')), 1 + draw('scale')
  shift_YX = np.array([draw('shift'), draw('shift')])
  turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) / zoom
  center_YX = (np.array(image_YXA.shape[:2]) - 1) / 2
  offset_YX = center_YX - turn @ (center_YX + shift_YX)
  channels = [
    ndimage.affine_transform(plane.astype(np.float32), turn, offset_YX, order=1, mode='nearest')
    for plane in np.moveaxis(image_YXA, -1, 0)
  ]
  return np.clip(np.round(np.stack(channels, -1)), 0, 255).astype(np.uint8).view(type(image_YXA))


def speed(wave_N, strength, rng, rate):
  """Change the speed by up to (1 + strength): tempo, pitch and formants change alike."""
  factor = (1 + strength) ** rng.uniform(-1, 1)
  count = max(1, round(len(wave_N) / factor))
  return np.interp(np.linspace(0, len(wave_N) - 1, count), np.arange(len(wave_N)), wave_N)


def equalize(wave_N, strength, rng, rate):
  """Simulate another microphone: gains of `strength` dB (standard deviation) at eight frequencies."""
  spectrum = np.fft.rfft(wave_N)
  decibels = np.interp(np.linspace(0, 7, len(spectrum)), np.arange(8), rng.normal(0, strength, 8))
  changed_N = np.fft.irfft(spectrum * 10 ** (decibels / 20), len(wave_N))
  return changed_N * (np.abs(wave_N).max() / max(np.abs(changed_N).max(), 1e-9))


def noise(wave_N, strength, rng, rate):
  """Add white noise of up to `strength` of the peak."""
  level = rng.uniform(0, strength) * np.abs(wave_N).max()
  return np.clip(wave_N + rng.normal(0, 1, len(wave_N)) * level, -1, 1)


def mask(wave_N, strength, rng, rate):
  """Silence up to `strength` seconds, at most a fifth of the sound."""
  length = int(min(rng.uniform(0, strength) * rate, len(wave_N) / 5))
  start = rng.integers(0, len(wave_N) - length + 1)
  changed_N = np.array(wave_N)
  changed_N[start : start + length] = 0
  return changed_N


CHANGES = {  # name -> (modality, unit of its strength, function of a sound)
  'shift': ('image', 'PIXELS', None),
  'rotate': ('image', 'DEGREES', None),
  'scale': ('image', 'SHARE', None),
  'speed': ('audio', 'SHARE', speed),
  'equalize': ('audio', 'DECIBELS', equalize),
  'noise': ('audio', 'SHARE', noise),
  'mask': ('audio', 'SECONDS', mask),
}
