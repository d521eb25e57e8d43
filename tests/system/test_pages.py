"""Every command and snippet of README and docs/ is executed: at a tiny size, page by page, in one folder.

tests/pages.py says how. Blocks that are marked `not run` are parsed, and give their reason.
"""

import ast
import contextlib
import importlib.util
import io
import json
import pathlib
import pydoc_data.topics
import re
import shutil
import string
import sys
import urllib.request

import jax
import numpy as np
import pytest

from gpt_jax import config
from gpt_jax.data import media_io
from gpt_jax.data.synthetic import keypad
from gpt_jax.evaluation.tasks import common
from gpt_jax.runs import plugins
from tests import codecs, command_line, pages, stand_ins, tiny_runs

PAGES = {page.name: page for page in pages.all_pages()}
SMALL = (
  'gpt2',
  [
    'python launch.py train --config=experiments/gpt2.py:text=book.txt,runlocal --workdir=runs/small'
    ' --config.model.context=64',
    'python launch.py export --workdir=runs/small --out=gpt2',
  ],
)
IMPORTED = ('runs/gpt2', ['python launch.py import --source=gpt2 --workdir=runs/gpt2'])
BOOK = 'python launch.py train --config=experiments/text.py:path=book.txt --workdir=runs/book'
# What the reader of a page has by then: (a path that it leaves, commands).
BEFORE = {
  'start.md': [('runs/demo', ['python launch.py train --workdir=runs/demo']), SMALL],
  'learn_finetune.md': [SMALL],
  'media.md': [
    SMALL,
    ('seven.wav', ['cp tone.wav seven.wav']),
    ('runs/gemma', ['python launch.py import --source=gpt2 --workdir=runs/gemma']),
  ],
  'tuning.md': [SMALL, IMPORTED],
  'runs.md': [
    (
      'runs/x',
      [
        'python launch.py train --config=experiments/text.py:path=book.txt --workdir=runs/x'
        ' --config.optim.schedule=constant --config.optim.final_lr=1.0'
      ],
    )
  ],
  'ablations.md': [
    (
      'runs/question/study.json',
      ['python launch.py ablate --config=experiments/ablations/mlps.py --workdir=runs/question'],
    )
  ],
  'lab.md': [('runs/book', [BOOK])],
  'serve.md': [
    ('runs/instruct', ['python launch.py train --config=experiments/instruct.py --workdir=runs/instruct'])
  ],
  'evaluation.md': [('runs/book', [BOOK])],
  'code.md': [('runs/book', [BOOK])],
}
# What depends on the size of a run: (in the page, here).
SIZES = (
  ('runs/x@600', 'runs/x@2'),
  ('--workdir=runs/positions', '--workdir=runs/question'),  # the study that the tutorial trained
  ('ablations/positions.py --workdir=runs/question', 'ablations/positions.py --dry_run'),
  ('--stride=64', '--stride=16'),
  ('--workdir=RUN ', '--workdir=runs/book '),
)
SERVERS = ('serve', 'lab')
MISSING = re.compile(r'needs? the package.*|pip install -e.*')
FAST = ('cluster.md',)  # run in the fast set; the others compile


@pytest.fixture(scope='module', autouse=True)
def compiled(tmp_path_factory):
  """Equal programs are compiled once."""
  with tiny_runs.compiled_programs(tmp_path_factory):
    yield


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """The folder of a reader: files of the kinds that the pages name, tiny."""
  folder = tmp_path_factory.mktemp('reader')
  (corpora := folder / 'corpora').mkdir()
  stand_ins.write_corpora(corpora)
  shutil.copy(corpora / 'quiz.csv', folder)
  for name in ('whisper-base', 'siglip-base'):
    shutil.copytree(corpora / name, folder / name)
  codecs.write(folder / 'encodec_24khz', codecs.ENCODEC)
  book = (corpora / 'book.txt').read_text()
  (folder / 'book.txt').write_text(f'{string.printable[:95]}\n\n{book}')
  (folder / 'reference.txt').write_text('\n\n'.join(pydoc_data.topics.topics.values()))  # of learn_text.md
  (folder / 'tone.wav').write_bytes(media_io.to_wav(keypad.tone(3, 0), 8000))
  (folder / 'names.txt').write_text(''.join(f'{a}{b}\n' for a in ('An', 'Be', 'Cora') for b in 'naielo' * 5))
  for label, value in (('circle', 60), ('square', 180)):
    (folder / 'shapes' / label).mkdir(parents=True)
    for n in range(10):
      picture = media_io.to_png(np.full((20, 20, 3), value + n, np.uint8))
      (folder / f'shapes/{label}/{n}.png').write_bytes(picture)
  lines = {
    'posts': [{'text': f'Post number {n} of a user.', 'user': f'u{n % 20}'} for n in range(40)],
    'corpus': [{'text': f'Text {n} was written by a{n}@example.org about the sea.'} for n in range(40)],
    'pairs': [dict(prompt=f'Say {n}.', chosen=f'{n}', rejected='no') for n in range(40)],
    'chats': [
      {'messages': [{'role': 'user', 'content': f'Say {n}.'}, {'role': 'assistant', 'content': f'{n}'}]}
      for n in range(40)
    ],
  }
  for name, records in lines.items():
    (folder / f'{name}.jsonl').write_text(''.join(json.dumps(record) + '\n' for record in records))
  return folder


@pytest.fixture
def desk(folder, monkeypatch):
  """The folder as the current one, with small limits of evaluations, and verbs in this process."""
  for name, value in command_line.ENVIRONMENT.items():
    monkeypatch.setenv(name, value)
  for target, name, value in command_line.IN_PROCESS:
    monkeypatch.setattr(target, name, value)
  monkeypatch.chdir(folder)
  monkeypatch.setenv('GPT_JAX_DATA', str(folder / 'corpora'))
  monkeypatch.setenv('TRACKIO_DIR', str(folder / 'trackio'))
  # Training processes of studies compile as little as this one, and its programs once.
  monkeypatch.setenv('JAX_DISABLE_MOST_OPTIMIZATIONS', '1')
  monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', jax.config.jax_compilation_cache_dir)
  monkeypatch.setenv('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')
  monkeypatch.setattr(common, 'LIMIT', 8)
  monkeypatch.setattr(common, 'TRAIN_LIMIT', 60)
  monkeypatch.setenv(plugins.STORE, str(folder / 'plugins'))
  monkeypatch.setattr(sys, 'stdin', io.StringIO('Hello\n'))


class Reader:
  """One reader of one page: the extras that it lacked, and the servers that it started."""

  def __init__(self, stack):
    self.stack, self.lacks, self.address = stack, [], ''

  def run_command(self, command, expected=None):
    """Run a command of a page, and compare what it prints where the page says it."""
    for old, new in SIZES:
      command = command.replace(old, new)
    if any(f'launch.py {verb} ' in command for verb in SERVERS):
      self.start_server(pages.words_of(command)[2:])
      return
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
      code = pages.run(command, tiny=expected is None)
    text = printed.getvalue()
    if expected is not None:
      assert text == expected, command
    elif code and (missing := MISSING.search(text)):
      self.lacks.append(missing[0])
    else:
      assert code == 0, f'{command}\n{text[-3000:]}'

  def start_server(self, words):
    """Start `serve` or `lab` on a free port, until the end of the page."""
    if not importlib.util.find_spec('uvicorn'):
      self.lacks.append('uvicorn')
      return
    folder = f'{pathlib.Path.cwd()}/'  # the process starts in the repository
    words = [re.sub('^--(workdir|root)=', rf'\g<0>{folder}', word) for word in words]
    process = command_line.start(*words, '--port=0', folder=pathlib.Path(folder))
    self.stack.callback(process.stdout.close)
    self.stack.callback(process.wait)
    self.stack.callback(process.kill)
    printed = ''
    while not (match := re.search(r'http://127[\d.]*:\d+', printed)):
      line = process.stdout.readline()
      assert line, printed
      printed += line
    self.address = match[0]
    path = '/health' if words[0] == 'serve' else '/'
    with urllib.request.urlopen(self.address + path, timeout=60) as answer:
      assert answer.status == 200

  def run_python(self, block, names):
    """Execute a snippet; one that changes `config` must leave a config that can be built."""
    text = re.sub(r'http://127\.0\.0\.1:\d+', self.address, block.text)
    if 'import openai' in text and not (self.address and importlib.util.find_spec('openai')):
      self.lacks.append('openai')
      return
    fragment = 'config.' in text and 'def get_config' not in text
    if fragment:
      names = {**names, 'config': config.default()}
    exec(compile(text, f'{block.page}:{block.line}', 'exec'), names)
    if fragment:
      config.build(config.Config, names['config'])
    for name in ('get_config', 'get_study'):
      if name in names:
        names.pop(name)('')


def run_page(name, reader):
  """Run the blocks of a page in order."""
  for path, commands in BEFORE.get(name, ()):
    if not pathlib.Path(path).exists():
      for command in commands:
        reader.run_command(command)
  names = {'__name__': 'snippet'}
  for block in pages.blocks(PAGES[name]):
    if block.mark == pages.FILE:
      pathlib.Path(block.value).parent.mkdir(parents=True, exist_ok=True)
      pathlib.Path(block.value).write_text(block.text)
    elif block.mark == pages.NOT_RUN:
      continue
    elif block.language == 'python':
      reader.run_python(block, names)
    else:
      for command, expected in block.commands:
        reader.run_command(command, expected)


@pytest.mark.parametrize('name', PAGES)
def test_blocks_are_commands_python_or_marked(name):
  for block in pages.blocks(PAGES[name]):
    place = f'{name}:{block.line}'
    if block.language == 'python' or block.value.endswith('.py'):
      ast.parse(block.text)
    elif block.value.endswith(('.json', '.jsonl')):
      assert [json.loads(line) for line in block.text.splitlines()], place
    elif block.mark != pages.NOT_RUN or block.text.startswith(('python', '$ ', 'gpt-jax', 'pip')):
      assert block.commands, place
      for command, _ in block.commands:
        pages.check(command)


@pytest.mark.parametrize(
  'name', [pytest.param(name, marks=[pytest.mark.slow] * (name not in FAST)) for name in PAGES]
)
def test_the_commands_and_snippets_of_a_page_run(name, desk):
  with contextlib.ExitStack() as stack:
    run_page(name, reader := Reader(stack))
  if reader.lacks:
    pytest.skip(f'not all of {name} ran: {", ".join(reader.lacks)}')
