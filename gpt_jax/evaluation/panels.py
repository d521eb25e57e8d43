"""Sample panels of a run: continued prompts, answers, images and sounds.

Shown during training and in the report; `launch.py sample` takes any other prompt.
"""

import dataclasses

import numpy as np

from gpt_jax import data
from gpt_jax.data import media_io, templates
from gpt_jax.evaluation.tasks import common
from gpt_jax.sampling import completions, prompts

MAX_CONDITIONS, COLUMNS = 16, 8  # of a source; images in a row
PIXELS = 96  # of the shorter side of an image, about
PAUSE = 0.15  # seconds between sounds


def continue_prompts(subject, texts):
  """Return the prompts with their continuations as one text."""
  cfg = subject.cfg.sample
  begin = completions.begin_special(subject.cfg, subject.tokenizers)
  ids = [completions.encode_prompt(subject.tokenizers, text, begin) for text in texts]
  room = subject.model.cfg.context - max(map(len, ids))
  cfg = dataclasses.replace(cfg, max_new_tokens=min(cfg.max_new_tokens, room), guidance=1.0)
  groups = completions.complete(subject.model, subject.tokenizers, ids, cfg)
  blocks = [text + more for text, group in zip(texts, groups, strict=True) for more, _ in group]
  return '\n---\n'.join(blocks)


def conditional_sources(cfg):
  """Return (split of the samples, {source: modality of its target}) of a config.DataConfig."""
  split, modalities = 'valid' if data.source_names(cfg, 'valid') else 'train', {}
  for name in data.source_names(cfg, split):
    condition, target = templates.signature(cfg.mixture[name].template)
    if condition and len(target) == 1 and target[0] in RENDERERS and 'parts' not in condition:
      modalities[name] = target[0]
  return split, modalities


def check_beams(cfg):
  """Raise ValueError for a beam search where the samples of a run are images or sounds."""
  for name, modality in conditional_sources(cfg.data)[1].items():
    if cfg.sample.beams and modality != 'text':
      raise ValueError(
        f'sample.beams={cfg.sample.beams} cannot make the {modality} of data.mixture.{name} in samples\n'
        'fix: set sample.beams=0'
      )


def sample_conditions(subject):
  """Yield (content, source, suffix) with samples of held-out conditions of each source that has some.

  The conditions are the first that tasks choose, by a hash of their places: the same ones each time, of
  all classes. Texts are decoded as task `answer` does.
  """
  cfg = subject.cfg.data
  split, modalities = conditional_sources(cfg)
  for name, modality in modalities.items():
    sides = [(x.condition, x.target) for x in common.examples(subject, name, split, MAX_CONDITIONS)]
    decoding = common.answer_decoding(subject.cfg.sample) if modality == 'text' else {}
    samples = prompts.generate(subject, [condition for condition, _ in sides], modality, **decoding)
    content, suffix = RENDERERS[modality](subject, sides, samples)
    yield content, name, suffix
    if modality != 'text':
      yield (
        caption([condition for condition, _ in sides], COLUMNS if modality == 'image' else 1),
        name,
        '.txt',
      )


def caption(conditions, columns):
  """The conditions as text, in rows of `columns` as their samples: cells are separated by tabs."""
  cells = [' '.join(common.describe(pieces).split()) for pieces in conditions]
  rows = [cells[first : first + columns] for first in range(0, len(cells), columns)]
  return '\n'.join('\t'.join(row) for row in rows)


def render_texts(subject, sides, samples):
  """A line for each condition with the sample and, if it differs, the target."""
  lines = []
  for (condition, target), text in zip(sides, samples, strict=True):
    correction = '' if text == common.describe(target) else f'  not {common.describe(target)!r}'
    lines.append(f'{common.describe(condition)} -> {text!r}{correction}')
  return '\n'.join(lines), '.txt'


def render_images(subject, sides, samples):
  """All images as one, in rows of COLUMNS, enlarged."""
  image = media_io.tile(np.stack(samples), COLUMNS)
  return media_io.to_png(image, scale=max(1, PIXELS // samples[0].shape[0])), '.png'


def render_sounds(subject, sides, samples):
  """All sounds one after the other."""
  rate = subject.tokenizers.audio.sample_rate
  pause = np.zeros(round(PAUSE * rate), np.float32)
  return media_io.to_wav(np.concatenate([x for wave in samples for x in (wave, pause)]), rate), '.wav'


RENDERERS = {'text': render_texts, 'image': render_images, 'audio': render_sounds}
