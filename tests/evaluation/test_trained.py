"""A trained model from Python: load, generate, score; and the checkpoints of a run."""

import shutil
from unittest import mock

import numpy as np
import pytest

import gpt_jax
from gpt_jax.evaluation import trained
from tests import tiny_runs
from tests.tiny_runs import assert_two_lines


@pytest.fixture(scope='module', autouse=True)
def compiled(tmp_path_factory):
  with tiny_runs.compiled_programs(tmp_path_factory):
    yield


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return tiny_runs.finished(tmp_path_factory)


@pytest.fixture(scope='module')
def run(folder):
  return gpt_jax.load(folder)


def test_texts_are_generated_in_three_lines(run):
  texts = run.generate(['a b', 'the'], temperature=0.0)
  assert all(isinstance(text, str) and text for text in texts)
  assert run.generate(['the'], temperature=0.0) == texts[1:]
  [several] = run.generate([{'text': 'the'}], num_samples=3, max_new_tokens=2)
  assert len(several) == 3


@pytest.mark.parametrize(
  'call, cause, fix',
  [
    (lambda run: run.generate('the'), "prompts='the' is not a list", "['the']"),
    (lambda run: run.generate([3]), 'the prompt 3 is neither a string nor a dict', 'text, images'),
    (
      lambda run: run.generate([{'image': 'x.png'}]),
      'is neither a string nor a dict of known keys',
      'images',
    ),
    (
      lambda run: run.generate(['a'], temp=0.5),
      'temp=0.5 is not a sampling setting',
      'did you mean temperature?',
    ),
    (
      lambda run: run.generate(['a'], temperature='hot'),
      "temperature='hot' is not a number",
      'default is 1.0',
    ),
    (lambda run: run.generate(['a'], top_k=2.5), 'top_k=2.5 is not an integer', 'default is 0'),
    (lambda run: run.generate(['a'], block='the'), "block='the' is not a list of texts", 'default is ()'),
    (lambda run: run.score('the'), "texts='the' is not a list", "['the']"),
    (lambda run: run.score(['a', 'b'], ['c']), 'contexts has 1 items, and texts 2', 'each text'),
  ],
)
def test_wrong_arguments_have_a_cause_and_a_fix(run, call, cause, fix):
  with pytest.raises(ValueError) as error:
    call(run)
  assert fix in assert_two_lines(error.value, cause)[1]


def test_no_prompts_have_no_texts(run):
  assert run.generate([]) == [] and run.score([]) == []


def test_scores_add_up_and_do_not_depend_on_other_texts(run):
  long = 'words ' * 20  # longer than the context
  scores = run.score(['a short text', long])
  assert run.score([long])[0].nats == pytest.approx(scores[1].nats, rel=1e-5)
  assert (scores[1].tokens, scores[1].bytes) == (120, 120)
  assert scores[1].bits_per_byte == pytest.approx(scores[1].nats / np.log(2) / 120)
  [whole] = run.score(['abcdef'])
  [first] = run.score(['abc'])
  [rest] = run.score(['def'], contexts=['abc'])
  begins = trained.completions.begin_special(run.cfg, run.tokenizers)
  if begins:  # else a context has no start token, and a text alone has one
    assert whole.nats == pytest.approx(first.nats + rest.nats, rel=1e-5)
  assert (first.tokens, rest.tokens) == (3, 3)
  [spaced] = run.score(['d'], contexts=['abc '])
  assert (spaced.tokens, spaced.bytes) == (2, 2)


def test_a_checkpoint_is_chosen_by_its_step(folder):
  steps = trained.good_steps(folder)
  verified, verify = [], trained.checkpoint.Checkpoints.verify
  count = lambda self, step: verified.append(step) or verify(self, step)
  with mock.patch.object(trained.checkpoint.Checkpoints, 'verify', count):
    assert trained.good_steps(folder, after=steps[-2]) == steps[-1:]
  assert verified == steps[-1:]  # older ones are not read again
  assert steps == sorted(steps) and steps[-1] == 12 and len(steps) > 1
  assert gpt_jax.load(folder, steps[0]).step == steps[0]
  with pytest.raises(ValueError, match='step=1 is not a good checkpoint') as caught:
    gpt_jax.load(folder, 1)
  assert_two_lines(caught.value)


def test_watch_yields_checkpoints_as_they_come_until_the_result(folder, tmp_path):
  copy, aside = tmp_path / 'run', tmp_path / 'aside'
  shutil.copytree(folder, copy)
  aside.mkdir()
  later = [copy / 'checkpoints' / '12', copy / 'checkpoints/digests/12.json', copy / 'result.json']
  for path in later:
    shutil.move(path, aside / path.name)
  earlier = trained.good_steps(copy)
  runs = trained.watch(copy, poll=0.01)
  assert [next(runs).step for _ in earlier] == earlier
  for path in later:
    shutil.move(aside / path.name, path)
  assert [run.step for run in runs] == [12]
