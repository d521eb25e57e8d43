"""Damaged files of every kind: each verb that reads one ends in its result or in two lines.

benchmarks.mutants runs more of them. And single bits that flip anywhere in a run folder.
"""

import collections
import pathlib
import random
import shutil

import pytest

from benchmarks import mutant_worlds, mutants
from gpt_jax import train
from gpt_jax.reports import run_report
from gpt_jax.runs import history, provenance, records
from tests import command_line, tiny_runs

FEW, MANY, FLIPS = 20, 300, 60
# Files of a run to flip bits in, each group as likely as the others.
FLIPPED = {
  'records': ('*.json', '*.jsonl'),
  'samples': ('samples/*',),
  'diff': ('*.diff',),
  'arrays': ('checkpoints/*/state/ocdbt.process_0/d/*',),
  'checkpoints': ('checkpoints/**/*',),
  'tokenizer and caches': ('tokenizer/*', 'cache/*'),
}


@pytest.fixture(scope='module', autouse=True)
def compiled(tmp_path_factory):
  with tiny_runs.compiled_programs(tmp_path_factory):
    yield


@pytest.fixture
def run_world(tmp_path_factory, tmp_path):
  """run_world(world, verb, count) -> the mutants that ended in another way."""

  def run(world, verb, count):
    with mutants.in_this_process():
      outcomes = mutants.run_world(world, tmp_path, [verb], count)[verb]
    assert len(outcomes) == count
    return [outcome for outcome in outcomes if outcome['fault']]

  return run


@pytest.fixture
def finished_run(tmp_path_factory):
  """The World of a run, with the run that other tests share."""

  def prepare(folder, call):
    for name in ('run', 'other'):
      shutil.copytree(tiny_runs.finished(tmp_path_factory), folder / name)
      (folder / name / 'notes.md').write_text(mutant_worlds.NOTES)

  return mutant_worlds.RUN._replace(prepare=prepare)


def test_some_mutants_of_a_run_end_in_two_lines(run_world, finished_run):
  assert not run_world(finished_run, 'table', FEW)


@pytest.mark.parametrize('verb', ['render', 'plan'])
def test_some_mutants_of_an_experiment_file_end_in_two_lines(run_world, verb):
  assert not run_world(mutant_worlds.EXPERIMENTS, verb, FEW)


@pytest.mark.slow
@pytest.mark.parametrize('verb', mutant_worlds.RUN.verbs)
def test_mutants_of_a_run_end_in_two_lines(run_world, finished_run, verb):
  assert not run_world(finished_run, verb, MANY)


@pytest.mark.slow
@pytest.mark.parametrize('kind', [name for name in mutant_worlds.WORLDS if name != 'run'])
def test_some_mutants_of_every_kind_end_in_two_lines(run_world, kind):
  world = mutant_worlds.WORLDS[kind]
  for verb in world.verbs:
    assert not run_world(world, verb, 5 if verb in ('train', 'ablate') else FEW)


# --------------------------------------------------------------------------------- flipped bits


@pytest.fixture
def unfinished(tmp_path, monkeypatch):
  """A run of half its steps, with samples, two checkpoints and uncommitted changes."""
  diff = 'diff --git a/x.py b/x.py\n+x = 1\n'
  monkeypatch.setattr(provenance, 'commit_and_diff', lambda: ('0' * 40, diff, ''))
  run = tmp_path / 'runs' / 'run'
  assert train.train(tiny_runs.experiment(), run, tiny_runs.stop_before(7)) is None
  assert (run / 'uncommitted.diff').exists() and [*run.glob('samples/*')]
  return run


VERBS = {'report': ('report',), 'sample': ('sample', '--prompt=a', '--max_new_tokens=4'), 'train': ('train',)}


def run_verbs(call, caplog, run):
  """Report, sample and resume -> {verb: (exit code, what it makes, lines that it says)}."""
  outcomes = {}
  for verb, args in VERBS.items():
    caplog.clear()
    code, out, err = call(*args, f'--workdir={run}')
    result = None
    if code == 0 and verb == 'train':
      result = {path: x.tobytes() for path, x in tiny_runs.arrays(run).items()}
    elif code == 0:
      result = out if verb == 'sample' else (run / 'report.html').read_text()
    said = [*out.splitlines(), *err.splitlines(), *caplog.text.splitlines()]
    said += result.splitlines() if verb == 'report' and result else []
    outcomes[verb] = code, result, said
  return outcomes


def silent_flips(call, caplog, run, count):
  """Flip single bits -> (what a verb made of another value without naming the file, how many were said)."""
  pristine, silent, said = run.parent.parent / 'pristine', [], collections.Counter()
  shutil.copytree(run, pristine)
  expected = run_verbs(call, caplog, run)
  assert not any(code for code, *_ in expected.values())
  for number in range(count):
    rng, group = random.Random(number), [*FLIPPED][number % len(FLIPPED)]
    shutil.rmtree(run)
    shutil.copytree(pristine, run)
    files = sorted({p for glob in FLIPPED[group] for p in run.glob(glob) if p.is_file() and p.stat().st_size})
    path = rng.choice(files)
    path.write_bytes(mutants.flip(path.read_bytes(), rng))
    for verb, (code, result, lines) in run_verbs(call, caplog, run).items():
      is_named = any(path.name in line for line in {*lines} - {*expected[verb][2]})
      said[group] += is_named
      if (code, result) != expected[verb][:2] and not is_named:
        silent.append((number, verb, str(path.relative_to(run)), sorted({*lines} - {*expected[verb][2]})[:3]))
      assert code in (0, 1, 2)
  return silent, said


@pytest.mark.slow
def test_a_flipped_bit_of_a_run_is_named_or_harmless(unfinished, capsys, monkeypatch, caplog):
  """In the report, in a sample and in the weights of the resumed run, bit by bit."""
  call = command_line.in_process(capsys, monkeypatch)
  silent, said = silent_flips(call, caplog, unfinished, FLIPS)
  assert not silent
  assert said['samples'] and said['diff'] and said['arrays'] and said['records']


def test_a_flipped_bit_of_a_sample_or_diff_is_named_by_the_report(tmp_path_factory, tmp_path):
  run = pathlib.Path(shutil.copytree(tiny_runs.finished(tmp_path_factory), tmp_path / 'run'))
  (run / 'uncommitted.diff').write_text('+x = 1\n')
  versions = {'uncommitted': provenance.short_hash(b'+x = 1\n')}
  records.append_line(run / 'events.jsonl', {'event': 'resume', 'versions': versions})
  assert not history.read_history(run).altered_files()
  for path in [run / 'uncommitted.diff', *sorted(run.glob('samples/*'))]:
    content = path.read_bytes()
    path.write_bytes(mutants.flip(content, random.Random(0)))
    said = f'Altered since the run wrote them: {path.relative_to(run)}.'
    assert said in run_report.rewrite_report(run) and said in (run / 'report.html').read_text()
    path.write_bytes(content)
