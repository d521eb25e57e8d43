"""Mutated command lines of every verb: each is accepted, or ends in a cause and a fix; no job runs."""

import random

import pytest

from gpt_jax import config
from gpt_jax.cli import flags as cli_flags
from gpt_jax.cli import main, verbs
from tests import command_line

LINES = {  # a good command line of each verb; train, evaluate and plan read a config
  'train': ['--workdir={run}', '--config.optim.lr=1e-3', '--config.train.steps=20', '--config.model.heads=2'],
  'sample': ['--workdir={run}', '--prompt=a b', '--temperature=0.8', '--top_k=4', '--to=text', '--stop=x'],
  'evaluate': ['--workdir={run}', '--tasks=perplexity', '--limit=8', '--config.data.valid_fraction=0.2'],
  'import': ['--source=gpt2', '--workdir={run}'],
  'export': ['--workdir={run}', '--out={run}/out'],
  'ablate': ['--config=study.py', '--workdir={run}', '--seeds=3', '--workers=1', '--dry_run'],
  'report': ['--workdir={run}', '--where=optim.lr > 0', '--columns=a,b'],
  'render': ['--to=slurm', '--workdir={run}', '--nodes=2', '--hours=3', '--config.train.steps=5'],
  'plan': ['--topology=h200-8', '--price=2.5', '--json', '--config.train.batch_size=8'],
  'doctor': [],
}
VALUES = (
  '',
  '-1',
  '1e3',
  '1.5',
  'nan',
  'inf',
  '9' * 40,
  'None',
  "'",
  '(',
  '[1,',
  '{}',
  '\\n',
  'ä',
  ' ',
  '=',
  '--',
)


def mutate(chance, args):
  """Return the arguments with one to three changes."""
  args = list(args)
  for _ in range(chance.randint(1, 3)):
    i = chance.randrange(len(args)) if args else 0
    name, _, value = args[i].partition('=') if args else ('--x', '', '')
    at = chance.randrange(len(value) + 1)
    change = chance.choice(
      [
        [f'{name}={chance.choice(VALUES)}'],
        [name],
        [name, chance.choice(VALUES)],
        [f'{name[: -1 - chance.randrange(3)]}={value}'],
        [f'{name}={value[:at]}{chance.choice(VALUES)}{value[at:]}'],
        [f'{name}.x={value}'],
        [f'-{name[2:]}={value}'],
        [f'--no{name[2:]}'],
        [chance.choice(VALUES)],
        [],
        [args[i], args[i]] if args else ['--help=3'],
      ]
    )
    args[i : i + 1] = change
  return args


@pytest.mark.parametrize('verb', LINES)
def test_mutated_arguments_end_in_a_cause_and_a_fix(verb, capsys, monkeypatch, tmp_path):
  def run(argv):  # what a verb does before its job
    if verb in main.WITH_OVERRIDES and 'config' in verbs.FLAGS and verb != 'render':
      config.build(config.Config, verbs.FLAGS.config)
    if verb == 'evaluate':
      cli_flags.data_overrides(argv)
    return 0

  call, chance = command_line.in_process(capsys, monkeypatch), random.Random(verb)
  monkeypatch.setitem(verbs.VERBS, verb, verbs.VERBS[verb]._replace(run=run))
  good = [arg.format(run=tmp_path) for arg in LINES[verb]]
  given = [f'--config={command_line.experiment(tmp_path)}'] if verb in main.WITH_OVERRIDES else []
  assert call(verb, *given, *good)[0] == 0
  codes = set()
  for _ in range(30):
    args = [*given, *mutate(chance, good)]
    code, out, err = call(verb, *args)
    codes.add(code)
    assert 'Traceback' not in err, (args, err)
    if code:
      lines = [line for line in err.rstrip('\n').split('\n') if 'escapes are resolved' not in line]
      assert [line.split(':')[0] for line in lines] == ['error', 'fix'], (args, err)
  assert 2 in codes and codes <= {0, 1, 2}
