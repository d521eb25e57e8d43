"""What a model makes, to look at and to listen to: continued prompts, answers, pictures, sounds.

Used during training and for the report; `launch.py sample` is for asking anything else.
"""

import dataclasses
import itertools

import numpy as np

from gpt_jax import data
from gpt_jax.data import media_io, templates
from gpt_jax.sampling import completions, prompts

SHOWN, COLUMNS = 16, 8  # conditions of a source; pictures beside each other
PAUSE = 0.15  # seconds between sounds


def continue_prompts(subject, texts):
  """The prompts with what follows them, as one text."""
  cfg = subject.cfg.sample
  ids = [completions.encode_prompt(subject.tokenizers, text, cfg.begin) for text in texts]
  room = subject.model.cfg.context - max(map(len, ids))
  cfg = dataclasses.replace(cfg, max_new_tokens=min(cfg.max_new_tokens, room), guidance=1.0)
  groups = completions.complete(subject.model, subject.tokenizers, ids, cfg)
  blocks = [text + more for text, group in zip(texts, groups, strict=True) for more, _ in group]
  return '\n---\n'.join(blocks)


def sample_conditions(subject):
  """(content, name, suffix) for each source with a condition: what is made of held-out ones."""
  split = 'valid' if data.source_names(subject.cfg.data, 'valid') else 'train'
  for name in data.source_names(subject.cfg.data, split):
    condition, target = templates.signature(subject.cfg.data.mixture[name].template)
    if condition and len(target) == 1 and target[0] in SHOW and 'parts' not in condition:
      every = data.examples(subject.cfg.data, name, split)
      whole = data.filter_readable(subject.cfg.data, name, subject.tokenizers, every)
      found = itertools.islice(whole, SHOWN)
      sides = [templates.split(pieces) for _, pieces in found]
      made = prompts.generate(subject, [given for given, _ in sides], target[0])
      content, suffix = SHOW[target[0]](subject, sides, made)
      yield content, name, suffix


def _words(pieces):
  """The text of pieces; media by their names."""
  return ''.join(p.value if p.kind == 'text' else f'[{p.kind}]' for p in pieces)


def texts(subject, sides, made):
  """A line for each condition: what was made, and what stands there."""
  lines = [
    f'{_words(given)} -> {text!r}' + ('' if text == _words(wanted) else f'  not {_words(wanted)!r}')
    for (given, wanted), text in zip(sides, made, strict=True)
  ]
  return '\n'.join(lines), '.txt'


def pictures(subject, sides, made):
  """All pictures as one, in rows of COLUMNS, large enough to be seen."""
  picture = media_io.tile(np.stack(made), COLUMNS)
  return media_io.to_png(picture, scale=max(1, 64 // made[0].shape[0])), '.png'


def sounds(subject, sides, made):
  """All sounds one after the other."""
  rate = subject.tokenizers.audio.sample_rate
  pause = np.zeros(round(PAUSE * rate), np.float32)
  return media_io.to_wav(np.concatenate([x for wave in made for x in (wave, pause)]), rate), '.wav'


SHOW = {'text': texts, 'image': pictures, 'audio': sounds}
