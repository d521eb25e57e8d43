"""Pictures or sounds of your own, in a folder for each class: named, and made from their names.

One look at the headers of the files sets the size of pictures or the length of sounds, and the context.
Name folders with ASCII letters, and make names short: each letter is a token.
Command: launch.py train --config=experiments/folder.py:path=shapes --workdir=runs/shapes
  launch.py evaluate --workdir=runs/shapes --tasks=all
  launch.py sample --workdir=runs/shapes --prompt=circle --to=image --guidance=1.5
Arguments: path (a folder with a folder for each class, such as shapes/circle/7.png), task (both, name,
make), size (pixels of a side; 0 = by the pictures), codes (of the k-means tokenizer), steps, runlocal.
Hardware: 2 CPU cores   Minutes: 1 for 600 pictures of 32 x 32 or 300 sounds of a second
"""

import os
import statistics
import sys

from gpt_jax import config as configs
from gpt_jax.data import decoders, files, formats
from gpt_jax.runs.loggers import say
from gpt_jax.runs.text_table import join_some

PATTERN = r'(?:^|/)(?P<label>[^/]+)/[^/]+$'


def get_config(arg=''):
  """Return the config; the module docstring lists the arguments of `arg`."""
  args = configs.arguments(arg, path='shapes', task='both', size=0, codes=64, steps=400, runlocal=False)
  if args.task not in ('both', 'name', 'make'):
    raise ValueError(f'config argument task={args.task} is not known\nfix: use one of both, name, make')
  modality, extents, unreadable, labels = scan(args.path)
  if args.size and modality == 'audio':
    raise ValueError(f'size={args.size} is in pixels, and {args.path} has sounds\nfix: leave it out')
  config = configs.default()
  config.tokenizer.kind = 'chars'
  if modality == 'image':
    side = args.size or min(max(round(statistics.median(extents) / 4) * 4, 16), 32)
    config.image.update(kind='patches', height=side, width=side, channels=3, codes=args.codes)
    positions, read, make = (side // 4) ** 2, '{image:patches}', '{image:image}'
    shape = f'{side} x {side} pixels in {positions} codes'
  else:
    config.audio.update(kind='frames', codes=args.codes, seconds=float(max(max(extents), 0.1)))
    seconds = config.audio.hop * config.audio.stack / config.audio.sample_rate  # of a position
    positions, read, make = int(max(extents) / seconds) + 2, '{audio:frames}', '{audio:audio}'
    shape = f'up to {config.audio.seconds:.3g} s in {positions} codes'
  templates = {'name': f'{read} -> {{label}}', 'make': f'{{label}} -> {make}'}
  source = dict(
    kind='files', path=args.path, pattern=PATTERN, bad_records=max(unreadable, len(extents) // 100)
  )
  config.data.mixture = {
    name: dict(source, template=template)
    for name, template in templates.items()
    if args.task in ('both', name)
  }
  config.data.update(packing='first_fit', condition_dropout=0.0 if args.task == 'name' else 0.1)
  context = positions + max(map(len, labels)) + 8
  say(
    f'{args.path}: {len(extents)} {formats.NAMES[modality]}s of {len(labels)} classes '
    f'({join_some(sorted(labels), 10)}), {shape} of {args.codes}; context {context}',
    file=sys.stderr,
  )
  config.model.update(layers=3, width=96, heads=4, context=context, qk_norm=True)
  config.model.positions = 'mrope' if modality == 'image' else 'rope'
  config.optim.update(name='muon', lr=3e-3, warmup=20, schedule='linear', final_lr=0.0)
  config.train.update(steps=args.steps, batch_size=16, eval_every=100, sample_every=200, sample_prompts=())
  config.sample.max_new_tokens = context
  if args.runlocal:
    config.train.update(steps=20, eval_every=10, sample_every=20, eval_tokens=2048)
  return config


def scan(path):
  """Return (modality, sides or seconds, number of unreadable headers, labels) of the media in a folder."""
  root = next(filter(os.path.isdir, files.candidates(path)), '')
  if not root:
    raise ValueError(
      f'path={path} is not a folder\nfix: give one with a folder for each class, such as {path}/NAME'
    )
  names = files.walk(root)
  chosen = {
    modality: [name for name in names if formats.is_media_name(name, suffixes)]
    for modality, suffixes in formats.SUFFIXES.items()
  }
  modality = max(chosen, key=lambda modality: len(chosen[modality]))
  if not chosen[modality]:
    suffixes = ', '.join(' '.join(formats.SUFFIXES[modality][:5]) + ' ...' for modality in chosen)
    holds = f'{len(names)} files such as {names[0]}' if names else 'no files'
    raise ValueError(
      f'path={path} has no picture or sound, but {holds}\nfix: give a folder of files such as {suffixes}'
    )
  if outside := [name for name in chosen[modality] if '/' not in name]:
    raise ValueError(
      f'{os.path.join(path, outside[0])} lies in no folder of a class\n'
      'fix: move it into a folder that is named like its class'
    )
  extents = [decoders.extent(os.path.join(root, name), modality) for name in chosen[modality]]
  known = [extent for extent in extents if extent]
  labels = {name.split('/')[-2] for name in chosen[modality]}
  return modality, known or [32], len(extents) - len(known), labels
