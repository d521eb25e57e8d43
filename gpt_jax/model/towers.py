"""Towers: pretrained encoders as parts of a GPT, run in its step instead of once over the data.

A batch then has the pixels of a patch (plus 1: zeros are no patch), or log-mel frames, in the place of the
encoder's output for them. `encode` gathers the pictures or windows of sound of each row, runs the encoder on
them, and puts its outputs in their places. ModelConfig.encoders holds a Tower each as JSON; the weights come
from the folder that it names, or from a checkpoint.

Letters: B rows, T tokens of a row, A numbers of a place, S places of the items of a row, N items (pictures or
windows), Q places of an item, P pixels of a patch, J frames, M mel bands, D width of the encoder; R C rows
and columns of places, n m those of the patches of a place.
"""

import functools
import json
import math
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from gpt_jax.model.continuous import KINDS


class Tower(NamedTuple):
  """One encoder in a GPT."""

  kind: str  # a row of KINDS: the inputs that it takes
  spec: Any  # encoder.Spec
  training: str  # frozen, adapters (those of adapter.targets alone) or whole
  path: str  # the folder of its weights, and their sha256
  digest: str
  mean: tuple  # by channel, of pixels between 0 and 1
  deviation: tuple
  group: int = 1  # outputs of a place: those of a square of patches, or successive ones of a sound
  is_mean: bool = False  # a place gets their mean; else they are side by side
  window: int = 0  # positions of a window of sound

  @property
  def name(self) -> str:
    """Its attribute of the GPT, with which the paths of its parameters begin."""
    return f'{KINDS[self.kind].modality}_encoder'

  @property
  def places(self) -> int:
    """Places of a picture or a window, Q."""
    return (self.window or math.prod(self.spec.grid)) // self.group

  @property
  def square(self) -> int:
    """Patches on a side of a place, n = m."""
    return math.isqrt(self.group)

  @property
  def input_width(self) -> int:
    """Numbers of a place in a batch."""
    sizes = dict(self.spec.sizes)
    return self.group * (2 * sizes['M'] if self.window else math.prod(sizes[letter] for letter in 'YXA'))

  @property
  def output_width(self) -> int:
    """Numbers of a place that the projector reads."""
    return self.spec.cfg.width * (1 if self.is_mean else self.group)

  def pixels_of_places(self, picture_YXA):
    """A picture uint8 -> float32 [places, numbers of one]: its pixels plus 1, patch after patch."""
    (rows, columns), side, n = self.spec.grid, self.spec.side, self.square
    cells = (rows // n, n, side, columns // n, n, side, -1)
    x_RnYCmXA = picture_YXA[: rows * side, : columns * side].reshape(cells)
    x_RCnmYXA = x_RnYCmXA.transpose(0, 3, 1, 4, 2, 5, 6)
    return x_RCnmYXA.reshape(self.places, self.input_width).astype(np.float32) + 1

  def to_json(self) -> str:
    """Return the entry of ModelConfig.encoders."""
    return json.dumps(self._asdict() | {'spec': list(self.spec)})


@functools.lru_cache(maxsize=16)
def _parse(text):
  from gpt_jax.model.encoder import Spec  # imports the GPT, which declares towers

  fields = {key: _tuples(value) for key, value in json.loads(text).items()}
  return Tower(**fields | {'spec': Spec(*fields['spec'])})


def _tuples(value):
  return tuple(map(_tuples, value)) if isinstance(value, list) else value


def towers(cfg) -> list[Tower]:
  """Return the towers of a ModelConfig."""
  return [_parse(text) for text in cfg.encoders]


def find(cfg, kind) -> Tower | None:
  """Return the tower that takes a kind of continuous input, if there is one."""
  return next((tower for tower in towers(cfg) if tower.kind == kind), None)


def input_width(cfg, kind) -> int:
  """Return the numbers of a place in a batch; 0 for a kind that the model does not read."""
  tower = find(cfg, kind)
  return tower.input_width if tower else getattr(cfg, KINDS[kind].setting)


def owner(cfg, path) -> Tower | None:
  """Return the tower to which the parameter of a path belongs."""
  return next((tower for tower in towers(cfg) if path.startswith(f'{tower.name}/')), None)


def declare(model, cfg):
  """Give a model its towers, such as `image_encoder`."""
  from gpt_jax.model.encoder import Encoder  # as above

  for tower in towers(cfg):
    setattr(model, tower.name, Encoder(tower.spec))


def encode(model, kind, x_BTA, dtype):
  """Return what the projector reads: the outputs of the tower of a kind, BTA; x_BTA without one.

  x_BTA: pixels of 0 to 255 plus 1, or log-mel frames. Each row has whole pictures and windows.
  """
  tower = find(model.cfg, kind)
  if tower is None:
    return x_BTA.astype(dtype)
  (B, T, _), Q = x_BTA.shape, tower.places
  is_place_BT = (x_BTA != 0).any(-1)
  if T < Q:
    return jnp.zeros((B, T, tower.output_width), dtype)
  at_BS = jnp.argsort(~is_place_BT, axis=1, stable=True)[:, : T // Q * Q]
  x_BSA = jnp.take_along_axis(x_BTA, at_BS[..., None], 1)
  if tower.window:
    x = x_BSA.reshape(-1, 2 * tower.window, dict(tower.spec.sizes)['M'])  # NJM
  else:
    x = normalize(tower, x_BSA.reshape(-1, *_cells(tower)))  # NTP
  y_NTD = getattr(model, tower.name)(x.astype(dtype), remat=model.cfg.remat)
  y_NQA = y_NTD if tower.window else to_places(tower, y_NTD)
  y_BSA = y_NQA.reshape(B, at_BS.shape[1], -1)
  order_BT = jnp.clip(jnp.cumsum(is_place_BT, 1) - 1, 0, at_BS.shape[1] - 1)
  y_BTA = jnp.take_along_axis(y_BSA, order_BT[..., None], 1)
  return jnp.where(is_place_BT[..., None], y_BTA, jnp.zeros((), y_BTA.dtype))


def _cells(tower):
  """Return (R, C, n, m, P): how the numbers of a picture's places are laid out."""
  (rows, columns), n = tower.spec.grid, tower.square
  return rows // n, columns // n, n, n, tower.input_width // tower.group


def normalize(tower, x_NRCnmP):
  """Pixels of 0 to 255 plus 1, by places -> about mean 0 and deviation 1, patches in reading order NTP."""
  channels = lambda values: np.tile(np.float32(values), x_NRCnmP.shape[-1] // len(values))
  x_NRnCmP = x_NRCnmP.swapaxes(2, 3).astype(jnp.float32)
  x_NTP = x_NRnCmP.reshape(len(x_NRCnmP), -1, x_NRCnmP.shape[-1])
  scaled_NTP = (x_NTP - 1) / 255 - channels(tower.mean)[None, None]
  return scaled_NTP / channels(tower.deviation)[None, None]


def to_places(tower, y_NTD):
  """The outputs of an encoder, a class token in front left out, as the vectors of places NQA."""
  R, C, n, m, _ = _cells(tower)
  y_NRnCmD = y_NTD[:, -R * C * n * m :].reshape(len(y_NTD), R, n, C, m, -1)
  if tower.is_mean:
    return y_NRnCmD.mean((2, 4)).reshape(len(y_NTD), R * C, -1)
  return y_NRnCmD.swapaxes(2, 3).reshape(len(y_NTD), R * C, -1)
