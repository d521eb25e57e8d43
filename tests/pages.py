"""The fenced blocks of README and docs/, and how each of them is executed.

A block is Python, or lines of a shell, or the content of a file. An HTML comment right above it may say how
it is treated:

  <!-- file: NAME -->        the block is the content of NAME, which later blocks read
  <!-- not run: REASON -->   its commands are parsed, and not run

A line that begins with `$ ` is a command, and the lines below it are what it prints.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
import tomllib
from unittest import mock

from absl import flags

from benchmarks import table
from gpt_jax import config
from gpt_jax.ablation import design
from gpt_jax.cli import args, experiment_file, verbs
from tests import command_line, stand_ins

FENCE = re.compile(r'^(?:[ ]*<!-- (file|not run): (.+?) -->\n)?^( *)```(\w*)\n(.*?)^ *```$', re.M | re.S)
LAUNCH = ('python launch.py ', 'gpt-jax ')
NOT_RUN, FILE = 'not run', 'file'
# Appended to a verb's command, at its end, so that they win.
TINY_FLAGS = {
  'sample': ('--max_new_tokens=4',),
  'chat': ('--max_new_tokens=4',),
  'evaluate': ('--limit=8',),
  'ablate': ('--workers=1',),
}


@dataclasses.dataclass(frozen=True)
class Block:
  """One fenced block of a page."""

  page: str
  line: int
  language: str
  text: str
  mark: str  # NOT_RUN, FILE or ''
  value: str  # reason or file name

  @property
  def commands(self):
    """[(command, expected output)] of a block of shell lines; None where the output does not matter."""
    text = re.sub(r'\\\n\s*', '', self.text)
    if text.startswith('$ '):
      pairs = [part.partition('\n') for part in re.split(r'^\$ ', text, flags=re.M)[1:]]
      return [(command, output) for command, _, output in pairs]
    lines = [line for line in text.splitlines() if line and not line.startswith('#')]
    return [(line, None) for line in lines]


def blocks(page):
  """The blocks of a page, in order."""
  if page.suffix == '.ipynb':
    yield from notebook_blocks(page)
    return
  text = page.read_text()
  for match in FENCE.finditer(text):
    mark, value, indent, language, body = match.groups()
    line = text[: match.start()].count('\n') + 1
    yield Block(page.name, line, language, textwrap.dedent(body), mark or '', value or '')


def notebook_blocks(path):
  """The code cells of a notebook as blocks: lines of a shell, which begin with `!`, and Python."""
  for number, cell in enumerate(json.loads(path.read_text())['cells']):
    if cell['cell_type'] == 'code':
      source = re.sub(
        r'^( *)%.*', r'\1pass  # a command of the notebook alone', ''.join(cell['source']), flags=re.M
      )
      shell = source.startswith('!')
      text = source.replace('!gpt-jax ', 'gpt-jax ') if shell else source
      yield Block(path.name, number, '' if shell else 'python', text, '', '')


def all_pages():
  """README, then the pages of docs/ in the order of the site's navigation."""
  order = re.findall(r'[\w-]+\.md', (command_line.ROOT / 'mkdocs.yml').read_text().partition('nav:')[2])
  folder = command_line.ROOT / 'docs'
  notebooks = sorted((command_line.ROOT / 'notebooks').glob('*.ipynb'))
  return [table.DOCS[0], *(folder / name for name in order if (folder / name).exists()), *notebooks]


def trained_experiments():
  """The names of the experiments that commands of the pages train."""
  texts = [block.text for page in all_pages() for block in blocks(page) if block.mark != NOT_RUN]
  return set(re.findall(r'train +--config=experiments/(?:\w+/)?(\w+)\.py', '\n'.join(texts)))


# ------------------------------------------------------------------------------------------- commands


def words_of(command):
  """The words of a command, without a comment at its end."""
  return shlex.split(command, comments=True)


def check(command):
  """Check a command without running it: its program, verb, flags, experiment, module or extra exist."""
  words = words_of(command)
  if words[0] == 'make':
    done = subprocess.run(['make', '-n', *words[1:]], cwd=command_line.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
  elif command.startswith(LAUNCH):
    verb, *rest = words[len(LAUNCH[0].split()) if words[0] == 'python' else 1 :]
    assert verb in verbs.VERBS, verb
    check_flags(verb, rest)
  elif 'pip' in words:
    project = tomllib.loads((command_line.ROOT / 'pyproject.toml').read_text())['project']
    names = re.findall(r'\.\[([\w,]+)\]', command)
    known = project['optional-dependencies']
    assert 'install' in words and all(name in known for group in names for name in group.split(',')), command
  elif words[:2] == ['python', '-m']:
    path = command_line.ROOT / f'{words[2].replace(".", "/")}.py'
    assert path.exists() or words[2] in ('mkdocs', 'pytest'), command
  else:
    assert shutil.which(words[0]), command


def check_flags(verb, rest):
  """Check that the flags of a command exist, and its experiment file."""
  before = set(flags.FLAGS)
  with mock.patch.dict(os.environ):  # `plan` sets variables of its process
    verbs.VERBS[verb].define_flags()
  names = set(flags.FLAGS) - before
  for name in names:
    delattr(flags.FLAGS, name)
  for word in rest:
    name = re.match(r'--(\w+)', word)
    if name and not word.startswith('--config.'):
      assert name[1] in names | {'config', 'help'} or name[1].removeprefix('no') in names, (verb, word)
  spec = args.flag_value(rest, 'config')
  if spec.startswith('experiments/'):
    assert (command_line.ROOT / spec.partition('.py')[0]).with_suffix('.py').exists(), spec


def tiny_command(verb, rest):
  """The arguments of a command of the page, and those appended that make it take seconds."""
  if verb == 'sample' and any(word.startswith('--to=') for word in rest):
    return rest  # pictures and sounds are generated whole
  if verb != 'train':
    given = {word.partition('=')[0] for word in rest}
    more = [word for word in TINY_FLAGS.get(verb, ()) if word.partition('=')[0] not in given]
    return [*rest, *more]
  spec, workdir = args.flag_value(rest, 'config'), args.flag_value(rest, 'workdir')
  if any(word.startswith('--config.train.branch_from') for word in rest):
    return [*rest, '--config.train.steps=4']
  if not spec and workdir and pathlib.Path(workdir, 'config.json').exists():  # resumed, with more steps
    more = any(word.startswith('--config.train.steps') for word in rest)
    return [*rest, '--config.train.steps=4'] if more else rest
  section = experiment_file.load_config(spec or args.DEMO)
  values = stand_ins.tiny(section)
  values['train.tasks'] = ()
  base = section.train.init_from
  if base and pathlib.Path(base, 'config.json').exists():  # which is tiny
    model = config.of_run(base).model
    values |= {f'model.{key}': getattr(model, key) for key in (*stand_ins.SMALL_MODEL, 'context')}
  given = [word.removeprefix('--config.').partition('=')[0] for word in rest]
  kept = [key for key in given if key.startswith(('model.', 'tokenizer.', 'adapter.'))]
  return [*rest, *(f'--config.{key}={value}' for key, value in values.items() if key not in kept)]


@contextlib.contextmanager
def tiny_studies():
  """Studies have two seeds and the first two levels of their first factor, and tiny arms."""
  load = design.load_study

  def load_tiny(spec):
    study = load(spec)
    name, levels = next(iter(study.factors.items()))
    keys = list(levels)[:2]
    levels = {key: levels[key] for key in keys} if isinstance(levels, dict) else keys
    changes = stand_ins.tiny(experiment_file.load_config(study.base)) | {'train.tasks': ()}
    return dataclasses.replace(
      study, factors={name: levels}, seeds=2, budget=design.Budget(), tune={}, changes=changes
    )

  with mock.patch.object(design, 'load_study', load_tiny):
    yield


def run(command, tiny=True):
  """Run one command of a page in the current folder, at a tiny size -> its exit code."""
  words = words_of(command)
  if words[0] == 'make':  # the command of its recipe
    recipe = subprocess.run(
      ['make', '-n', *words[1:]], cwd=command_line.ROOT, capture_output=True, text=True, check=True
    ).stdout
    lines = [line.replace('.venv/bin/', '') for line in recipe.splitlines() if 'launch.py' in line]
    return max([run(line) for line in lines], default=0)
  if command.startswith(LAUNCH):
    verb, *rest = words[2 if words[0] == 'python' else 1 :]
    target = rest[rest.index('>') + 1] if '>' in rest else ''
    rest = rest[: rest.index('>')] if target else rest
    if verb == 'render':  # a job copies the repository, which is the reader's folder
      out = [f'--out={pathlib.Path(word[6:]).absolute()}' for word in rest if word.startswith('--out=')]
      with contextlib.chdir(command_line.ROOT):
        return command_line.run_verb(verb, *rest, *out)
    with tiny_studies():
      return command_line.run_verb(verb, *(tiny_command(verb, rest) if tiny else rest))
  if 'pip' in words:
    return check(command) or 0
  if words[:2] == ['python', '-m']:
    command = shlex.join([sys.executable, *words[1:]])
  return subprocess.run(
    command, shell=True, env=os.environ | {'PYTHONPATH': str(command_line.ROOT)}
  ).returncode
