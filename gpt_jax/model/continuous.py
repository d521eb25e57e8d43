"""Kinds of continuous input: vectors in the place of tokens, projected to the width of the model.

Imports no jax: data and tokenizers read this table, too. Letters: B rows, T tokens of a row, D width; A, M
and U numbers of a patch, of a frame and of a vector.
"""

from typing import NamedTuple


class Kind(NamedTuple):
  """A kind of continuous input."""

  modality: str  # of what it is made from: image, audio, or vectors for arrays
  place: str  # the special token that stands where one is
  argument: str  # of gpt.GPT.trunk and of batches; its last letter is that of the width
  setting: str  # field of ModelConfig with the width

  @property
  def letter(self) -> str:
    """The letter of the width."""
    return self.argument[-1]


MIXED = 4  # vectors that a place of the projector llava_onevision is the mean of
KINDS = {
  'patches': Kind('image', 'patch', 'patches_BTA', 'patch_values'),
  'frames': Kind('audio', 'frame', 'frames_BTM', 'frame_values'),
  'vectors': Kind('vectors', 'vector', 'vectors_BTU', 'vector_values'),
}


SETTINGS = (*(kind.setting for kind in KINDS.values()), 'patch_id')  # of ModelConfig, which a run derives


EXTRA = {'vocab': int, 'widths': [int], 'encoders?': [str]}  # types of what checkpoints keep of a ModelConfig


def to_extra(cfg) -> dict:
  """Return the fields of a ModelConfig that a run derives, as checkpoints keep them."""
  return {
    'vocab': cfg.vocab,
    'widths': [getattr(cfg, name) for name in SETTINGS],
    'encoders': list(cfg.encoders),
  }


def of_extra(extra) -> dict:
  """Return the fields of ModelConfig that a checkpoint keeps; one from before a field was added has fewer."""
  encoders = tuple(extra.get('encoders', ()))
  widths = dict(zip(SETTINGS, extra['widths'], strict=False))
  return {'vocab': extra['vocab'], 'encoders': encoders} | widths
