"""What benchmarks.mutants damages: a small folder of each kind of file, and the verbs that read it."""

import io
import json
import shutil
from collections.abc import Callable
from typing import NamedTuple

from benchmarks import mutant_data

EXPERIMENT = """
from gpt_jax import config as configs

def get_config(arg=''):
  args = configs.arguments(arg, path='')
  config = configs.default()
  config.data.mixture = {mixture}
  config.model.update(layers=1, width=16, heads=2, context=32)
  config.optim.update(lr=1e-2, warmup=2, eps=1e-3, ema=0.5)
  config.train.update(steps={steps}, batch_size=4, eval_every=0, sample_every=0, eval_tokens=128)
  config.checkpoint.every = 3
  config.log.every = 1
  {prompts}
  config.sample.max_new_tokens = 4
  {more}
  return config
"""
STUDY = """
from gpt_jax.ablation.design import Study

def get_study(arg=''):
  changes = {{'train.steps': 2}}
  return Study({base!r}, {{'lr': [1e-2, 3e-2]}}, seeds=2, question='Which rate?', changes=changes)
"""
NOTES = '## Intended use\n\nTo be damaged.\n'
SYNTHETIC = {'text': {'kind': 'synthetic', 'documents': 60}}
WHOLE = 'config.data.packing = "first_fit"'
MEDIA = (
  WHOLE,
  'config.data.valid_fraction = 0.3',
  'config.image.update(kind="patches", height=8, width=8, patch=4, codes=8)',
  'config.audio.update(kind="frames", codes=8, seconds=1.0)',
  'config.model.positions = "mrope"',
)
IMAGES, SOUNDS = MEDIA[:3] + MEDIA[4:], MEDIA[:2] + MEDIA[3:]


class World(NamedTuple):
  """A kind of file."""

  name: str
  prepare: Callable  # (folder, call): writes the folder; call('train', ...) -> (exit code, stdout, stderr)
  files: tuple[str, ...]  # globs of the files to damage
  verbs: dict  # {verb: commands, run in order while they succeed, {folder} standing for the folder}


def experiment(path, mixture=SYNTHETIC, steps=1, more=()):
  """Write an experiment file -> its path."""
  prompts = '' if 'tokenizer"' in str(more) else 'config.train.sample_prompts = ()'
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(EXPERIMENT.format(mixture=mixture, steps=steps, prompts=prompts, more='\n  '.join(more)))
  return path


def done(outcome, *codes):
  """Check that a verb of a preparation has succeeded."""
  assert outcome[0] in (codes or (0,)), outcome


def train(folder, call, name, mixture=SYNTHETIC, steps=6, more=()):
  """Train a run in a subfolder -> its path."""
  path = experiment(folder.parent / f'{folder.name}-{name}.py', mixture, steps, more)
  done(call('train', f'--config={path}', f'--workdir={folder / name}'))
  return folder / name


TRAIN = (('train', '--config={folder}/experiment.py', '--workdir={folder}/new'),)


def data_world(name, write, source, more=(), files=('data/**/*',), located=('path',)):
  """A World of data that a training reads. write(folder): writes them; source: the fields of their source."""

  def prepare(folder, call):
    (folder / 'data').mkdir(parents=True)
    write(folder / 'data')
    fields = {k: str(folder / 'data' / v) if k in located else v for k, v in source.items()}
    experiment(folder / 'experiment.py', {'own': fields}, more=more)
    done(call(*(arg.format(folder=folder) for arg in TRAIN[0])))  # the pristine data are good
    (folder / 'new').rename(folder / 'run')
    shutil.rmtree(folder / 'run' / 'cache')

  evaluate = (('evaluate', '--workdir={folder}/run', '--limit=20'),)
  return World(name, prepare, files, {'train': TRAIN, 'evaluate': evaluate})


# ------------------------------------------------------------------------------------------- runs


def prepare_run(folder, call):
  """A finished run that was resumed once, with samples, an evaluation, and a report."""
  more = ('config.train.update(sample_every=3, eval_every=3, sample_prompts=("a",))',)
  run = train(folder, call, 'run', steps=6, more=more)
  lose_last_step(run)
  done(call('train', f'--workdir={run}'))
  done(call('evaluate', f'--workdir={run}', '--limit=20'))
  (run / 'notes.md').write_text(NOTES)
  shutil.copytree(run, folder / 'other')


def prepare_unfinished(folder, call):
  """A run that goes on from step 3 of 6."""
  lose_last_step(train(folder, call, 'run', steps=6))


def lose_last_step(run):
  """Remove what a run of 6 steps has written last, as if it had been killed before."""
  (run / 'result.json').unlink()
  shutil.rmtree(run / 'checkpoints' / '6')
  (run / 'checkpoints' / 'digests' / '6.json').unlink()


RUN_FILES = (
  'run/*.json*',
  'run/*.md',
  'run/*.diff',
  'run/samples/*',
  'run/checkpoints/**/*',
  'run/tokenizer/*',
  'run/cache/*',
)
RUN = World(
  'run',
  prepare_run,
  RUN_FILES,
  {
    'report': (('report', '--workdir={folder}/run'),),
    'table': (('report', '--workdir={folder}', '--columns=optim.lr'),),
    'card': (('report', '--workdir={folder}/run', '--card'),),
    'against': (('report', '--workdir={folder}/other', '--against={folder}/run'),),
    'sample': (('sample', '--workdir={folder}/run', '--prompt=a', '--max_new_tokens=2'),),
    'export': (('export', '--workdir={folder}/run', '--out={folder}/exported'),),
    'evaluate': (('evaluate', '--workdir={folder}/run', '--limit=20'),),
    'train': (('train', '--workdir={folder}/run'),),
  },
)
UNFINISHED = World(
  'unfinished run', prepare_unfinished, RUN_FILES, {'train': (('train', '--workdir={folder}/run'),)}
)


CACHES = World(
  'token caches',
  prepare_unfinished,
  ('run/cache/*',),
  {
    'train': (('train', '--workdir={folder}/run'),),
    'evaluate': (('evaluate', '--workdir={folder}/run', '--limit=20'),),
  },
)


def prepare_media_run(folder, call):
  """A run that reads and makes images and sounds, and files to prompt it with."""
  mixture = {
    'read': {'kind': 'digits', 'template': '{image:image} -> {name}'},
    'draw': {'kind': 'digits', 'template': '{name} -> {image:image}'},
    'listen': {'kind': 'keypad', 'template': '{audio:audio} -> {name}', 'documents': 60},
    'dial': {'kind': 'keypad', 'template': '{name} -> {audio:audio}', 'documents': 60},
  }
  train(folder, call, 'run', mixture, 1, [line for line in MEDIA if 'valid' not in line])
  mutant_data.pictures(folder / 'prompts')
  mutant_data.sounds(folder / 'prompts')


PROMPTS = World(
  'prompts',
  prepare_media_run,
  ('prompts/*',),
  {
    'sample': tuple(
      ('sample', '--workdir={folder}/run', f'--{kind}={{folder}}/prompts/{name}', '--source=' + source)
      for kind, name, source in (
        ('image', 'a_0.png', 'read'),
        ('image', 'b_1.jpg', 'read'),
        ('image', 'c_2.gif', 'read'),
        ('audio', 'a_0.wav', 'listen'),
        ('audio', 'b_1.flac', 'listen'),
      )
    )
  },
)


def prepare_codec(folder, call):
  """A trained image tokenizer, which an experiment reads."""
  digits = {'digits': {'kind': 'digits', 'template': '{image:image}'}}
  small = 'levels=(4, 4), height=8, width=8, patch=2)'
  network = f'config.image.update(kind="fsq", network_width=16, network_blocks=1, {small}'
  plain = 'd = configs.default(); config.model.update(d.model); config.sample.update(d.sample)'
  job = 'config.train.job = "image_tokenizer"'
  train(folder, call, 'codec', digits, 1, (WHOLE, network, plain, job))
  own = f'config.image.update(kind="fsq", path={str(folder / "codec")!r}, {small}'
  read = {'read': {'kind': 'digits', 'template': '{image:image} -> {name}'}}
  experiment(folder / 'experiment.py', read, 1, (WHOLE, own))


CODEC = World(
  'tokenizer run',
  prepare_codec,
  ('codec/codec/*', 'codec/*.json', 'codec/checkpoints/**/*'),
  {
    'train': TRAIN,
    'resume': (('train', '--workdir={folder}/codec'),),
    'report': (('report', '--workdir={folder}/codec'),),
  },
)


# ----------------------------------------------------------------------------- models and the rest


def prepare_hugging_face(folder, call):
  """A model of the Llama family as transformers would write it."""
  run = train(folder, call, 'run', steps=1)
  done(call('export', f'--workdir={run}', f'--out={folder / "hf"}'))
  path = folder / 'hf' / 'generation_config.json'
  path.write_text(json.dumps({'eos_token_id': [1, 2], 'temperature': 0.7, 'top_k': 5, 'do_sample': True}))


IMPORT = ('import', '--source={folder}/hf', '--workdir={folder}/new')
HUGGING_FACE = World(
  'hugging face folder',
  prepare_hugging_face,
  ('hf/*',),
  {
    'import': (IMPORT,),
    'sample': (IMPORT, ('sample', '--workdir={folder}/new', '--prompt=a', '--max_new_tokens=2')),
  },
)


def tokenizer_world(kind, write, path):
  """A World of files of a text tokenizer: `write(folder)` writes them, `path`: what tokenizer.path names."""

  def prepare(folder, call):
    (folder / 'files').mkdir(parents=True)
    write(folder / 'files')
    more = (f'config.tokenizer.update(kind={kind!r}, path={str(folder / "files" / path)!r})',)
    experiment(folder / 'experiment.py', more=more)
    done(call(*(arg.format(folder=folder) for arg in TRAIN[0])))
    shutil.rmtree(folder / 'new')

  return World(f'{kind} tokenizer', prepare, ('files/*',), {'train': TRAIN})


def byte_level_tokenizer():
  """A tokenizer of the tokenizers library, trained on made-up words."""
  import tokenizers

  tokenizer = tokenizers.ByteLevelBPETokenizer()
  tokenizer.train_from_iterator(mutant_data.sentences(), vocab_size=300, show_progress=False)
  return tokenizer


def sentencepiece_model(folder):
  """A unigram model of SentencePiece."""
  import sentencepiece

  model = io.BytesIO()
  options = {'vocab_size': 40, 'minloglevel': 2, 'hard_vocab_limit': False}
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(mutant_data.sentences()), model_writer=model, **options
  )
  (folder / 'tokenizer.model').write_bytes(model.getvalue())


def prepare_study(folder, call):
  """A finished study of two arms and two seeds."""
  folder.mkdir(parents=True)
  experiment(folder / 'base.py', steps=2)
  (folder / 'study.py').write_text(STUDY.format(base=str(folder / 'base.py')))
  done(call('ablate', f'--config={folder}/study.py', f'--workdir={folder}/study', '--workers=1'))


STUDIES = World(
  'study folder',
  prepare_study,
  ('study/*.json*', 'study/runs/*/*/*.json*', 'study/runs/*/*/samples/*'),
  {
    'report': (('report', '--workdir={folder}/study'),),
    'table': (('report', '--workdir={folder}/study', '--columns=optim.lr'),),
    'ablate': (('ablate', '--config={folder}/study.py', '--workdir={folder}/study', '--workers=1'),),
  },
)


def prepare_files(folder, call):
  """An experiment file and a study file."""
  folder.mkdir(parents=True)
  experiment(folder / 'experiment.py', steps=1)
  (folder / 'study.py').write_text(STUDY.format(base=str(folder / 'experiment.py')))


EXPERIMENTS = World(
  'experiment files',
  prepare_files,
  ('*.py',),
  {
    'train': TRAIN,
    'plan': (('plan', '--config={folder}/experiment.py', '--topology=v5e-4', '--nodecode'),),
    'render': (
      (
        'render',
        '--config={folder}/experiment.py',
        '--to=slurm',
        '--workdir=/runs/x',
        '--accelerators=h100:8',
      ),
    ),
    'ablate': (('ablate', '--config={folder}/study.py', '--workdir={folder}/new', '--dry_run'),),
  },
)

NAMED = r'(?P<name>[a-z])_\d+'
ALL = (
  RUN,
  UNFINISHED,
  CACHES,
  PROMPTS,
  CODEC,
  data_world('texts', mutant_data.texts, {'kind': 'text', 'path': '*.txt', 'separator': '\n'}),
  data_world('packed texts', mutant_data.packed_texts, {'kind': 'text', 'path': '*', 'separator': '\n'}),
  data_world(
    'json lines',
    mutant_data.json_lines,
    {'kind': 'jsonl', 'path': 'a.jsonl', 'template': '{question} -> {answers.0}'},
    (WHOLE,),
  ),
  data_world(
    'parallel texts',
    mutant_data.parallel_texts,
    {'kind': 'parallel', 'path': 'train.*', 'template': '{en} -> {de}'},
    (WHOLE,),
  ),
  data_world(
    'pictures',
    mutant_data.pictures,
    {'kind': 'files', 'path': '.', 'pattern': NAMED, 'template': '{image:image} -> {name}'},
    IMAGES,
  ),
  data_world(
    'sounds',
    mutant_data.sounds,
    {'kind': 'files', 'path': '.', 'pattern': NAMED, 'template': '{audio:audio} -> {name}'},
    SOUNDS,
  ),
  data_world(
    'archive',
    mutant_data.archive,
    {'kind': 'files', 'path': 'pictures.zip', 'pattern': NAMED, 'template': '{image:image} -> {name}'},
    IMAGES,
  ),
  data_world(
    'media lines',
    mutant_data.mixed_lines,
    {'kind': 'jsonl', 'path': 'a.jsonl', 'template': '{parts:parts}'},
    MEDIA,
  ),
  data_world(
    'arrays',
    mutant_data.number_arrays,
    {'kind': 'arrays', 'path': 'a.npz', 'template': '{image:image} -> {label}'},
    IMAGES,
  ),
  data_world(
    'idx files',
    mutant_data.idx_files,
    {'kind': 'arrays', 'path': 'train-*', 'template': '{image:image} -> {label}'},
    IMAGES,
  ),
  data_world(
    'tfds',
    mutant_data.prepared_tfds,
    {'kind': 'tfds', 'path': 'tiny_talk', 'data_dir': '', 'template': '{text}'},
    located=('data_dir',),
  ),
  HUGGING_FACE,
  tokenizer_world(
    'huggingface',
    lambda folder: byte_level_tokenizer().save(str(folder / 'tokenizer.json')),
    'tokenizer.json',
  ),
  tokenizer_world('gpt2', lambda folder: byte_level_tokenizer().save_model(str(folder)), '.'),
  tokenizer_world('sentencepiece', sentencepiece_model, 'tokenizer.model'),
  STUDIES,
  EXPERIMENTS,
)
WORLDS = {world.name: world for world in ALL}
