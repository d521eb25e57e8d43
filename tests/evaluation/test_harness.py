"""lm-eval through our adapter: the same answers as through its own Hugging Face model."""

import shutil
import types

import numpy as np
import pytest

from benchmarks import harness as benchmark
from gpt_jax.evaluation import harness, trained
from gpt_jax.runs import records
from tests import command_line, tiny_runs
from tests.command_line import assert_user_error
from tests.tiny_runs import assert_two_lines


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  return trained.load(tiny_runs.finished(tmp_path_factory))


def test_settings_of_a_task_become_sampling_fields():
  greedy = {'num_samples': 1, 'guidance': 1.0, 'temperature': 0.0}
  assert harness.sampling_fields({'until': '\n'}) == (greedy | {'max_new_tokens': 256}, ['\n'])
  settings = {'until': ['Q:', ''], 'max_gen_toks': 7, 'do_sample': True, 'temperature': 0.5, 'top_p': 0.9}
  expected = greedy | {'max_new_tokens': 7, 'temperature': 0.5, 'top_p': 0.9}
  assert harness.sampling_fields(settings) == (expected, ['Q:'])
  assert harness.sampling_fields({'temperature': 0.7})[0]['temperature'] == 0.0


def test_completions_keep_the_order_of_requests_and_end_at_stop_strings(run):
  subject = run.subject()
  prompts = ['a', 'the first word', 'b c']
  texts = harness.generate(subject, [(text, {'max_gen_toks': 6}) for text in prompts])
  alone = [harness.generate(subject, [(text, {'max_gen_toks': 6})])[0] for text in prompts]
  assert texts == alone
  assert all(texts)
  stop = texts[0][1]
  [cut] = harness.generate(subject, [('a', {'max_gen_toks': 6, 'until': [stop]})])
  assert cut == texts[0][: texts[0].index(stop)]


def test_a_task_that_generates_beyond_the_context_is_an_error(run):
  with pytest.raises(ValueError, match='a task generates 256 tokens and the context is 32') as caught:
    harness.generate(run.subject(), [('a', {})])
  assert_two_lines(caught.value)


def test_an_unknown_task_names_its_neighbors():
  manager = types.SimpleNamespace(all_tasks=['arc_easy', 'arc_challenge', 'piqa'])
  with pytest.raises(ValueError, match='--harness=arc_esy is not a task') as caught:
    harness.check_names(['piqa', 'arc_esy'], manager)
  assert 'did you mean arc_easy' in assert_two_lines(caught.value)[1]
  assert harness.check_names(['piqa', 'piqa'], manager) == ('piqa',)


SAMPLES = [
  # multiple choice, schema, last word and generated answer
  (
    dict(
      target='1', filtered_resps=[(-3, False), (-1, True)], arguments=[('Q', ' no'), ('Q', ' yes')], acc=1.0
    ),
    ('Q', 'yes', 'yes', True),
  ),
  (
    dict(
      target='0', filtered_resps=[(-3, False), (-1, True)], arguments=[('A b', ' c'), ('A d', ' c')], acc=0.0
    ),
    ('A b', 'A b', 'A d', False),
  ),
  (
    dict(target=' end', filtered_resps=[(-1, True)], arguments=[('The', ' end')], acc=1, perplexity=-1),
    ('The', 'end', '', True),
  ),
  (
    dict(target='4', filtered_resps=['5'], arguments=[('2+2=', {'until': []})], exact_match=0.0),
    ('2+2=', '4', '5', False),
  ),
  (
    dict(target='4', filtered_resps=['5', '4'], arguments=[('2+2=', {}), ('2+2=', {})], exact_match=0.5),
    ('2+2=', '4', '5', False),
  ),
  (  # acc_mutual_info: each option without its context, too
    dict(
      target='0',
      filtered_resps=[(-3, False), (-2, False), (-1, False), (-0.5, True)],
      arguments=[('Q', ' no'), ('Q', ' yes'), ('', ' no'), ('', ' yes')],
      acc=0.0,
    ),
    ('Q', 'no', 'yes', False),
  ),
  (dict(target='x', filtered_resps=['y'], arguments=[('t', {})], bleu=0.1), ('t', 'x', 'y', None)),
]


@pytest.mark.parametrize(('sample', 'judged'), SAMPLES)
def test_samples_of_lm_eval_become_predictions(sample, judged):
  sample['arguments'] = {
    f'gen_args_{i}': {'arg_0': a, 'arg_1': b} for i, (a, b) in enumerate(sample['arguments'])
  }
  assert harness.judge(sample) == judged


@pytest.mark.slow
def test_the_same_answers_as_the_hugging_face_model_of_lm_eval(data_dir, tmp_path):
  """200 examples of each of six tasks; `choose` and `cloze` give the same shares of right answers."""
  for package in ('torch', 'transformers', 'lm_eval', 'accelerate', 'peft'):
    pytest.importorskip(package)
  from gpt_jax.interop import huggingface

  benchmark.random_gpt2(tmp_path / 'source', data_dir)
  huggingface.import_run(tmp_path / 'source', tmp_path / 'run')
  run = trained.load(tmp_path / 'run')
  names = ('arc_easy', 'piqa', 'boolq', 'copa', 'winogrande', 'lambada')
  for name, facts in benchmark.compare(run, tmp_path / 'source', data_dir, names, limit=200).items():
    assert facts['examples'] == (100 if name == 'copa' else 200)
    assert facts['equal'] == 1.0, (name, facts)
    assert facts['difference'] < 1e-3
  whole = benchmark.compare(run, tmp_path / 'source', data_dir, ('copa',), limit=0)['copa']['hf']
  own = benchmark.own_scores(run, data_dir, ('copa',))['copa']
  for metric, name in benchmark.METRICS.items():
    np.testing.assert_allclose(own[metric], whole[f'{name},none'])


@pytest.fixture
def task_folder(tmp_path):
  """A folder with one task over four questions of its own."""
  pytest.importorskip('lm_eval')
  (tmp_path / 'mc_evals').mkdir()
  lines = [{'query': 'Ice is', 'choices': ['cold', 'hot'], 'gold': n % 2} for n in range(4)]
  (tmp_path / 'mc_evals' / 'copa.jsonl').write_text(''.join(map(records_line, lines)))
  benchmark.write_task_files(tmp_path / 'tasks', tmp_path, ['copa'])
  return tmp_path / 'tasks'


def records_line(record):
  return records.format_object(record).decode()


@pytest.mark.slow
def test_the_command_line_writes_scores_with_versions(
  tmp_path_factory, task_folder, tmp_path, capsys, monkeypatch
):
  call, workdir = command_line.in_process(capsys, monkeypatch), tmp_path / 'run'
  shutil.copytree(tiny_runs.finished(tmp_path_factory), workdir)
  (workdir / 'evaluations.jsonl').unlink(missing_ok=True)
  words = ('evaluate', f'--workdir={workdir}', '--harness=local_copa', f'--harness_files={task_folder}')
  code, _, err = call(*words, '--shots=1')
  assert code == 0, err
  rows = records.read_lines(workdir / 'evaluations.jsonl')
  row = next(row for row in rows if row['metric'] == 'acc')
  assert [row[key] for key in ('task', 'source', 'n', 'shots', 'version')] == [
    'harness',
    'local_copa',
    4,
    1,
    1,
  ]
  assert row['harness'][0].isdigit()
  assert {row['task'] for row in rows} == {'harness'}
  lines = records.read_lines(workdir / 'predictions.jsonl')
  assert [line['target'] for line in lines] == ['cold', 'hot', 'cold', 'hot']
  (task_folder.parent / 'mc_evals' / 'copa.jsonl').unlink()
  assert_user_error(call(*words), '--harness=local_copa cannot read its data')


def test_options_of_the_harness_alone_are_errors(tmp_path_factory, capsys, monkeypatch):
  call, workdir = command_line.in_process(capsys, monkeypatch), tiny_runs.finished(tmp_path_factory)
  assert_user_error(call('evaluate', f'--workdir={workdir}', '--shots=1'), '--shots=1', '--tasks=perplexity')


@pytest.mark.parametrize(
  ('error', 'told'),
  [
    (FileNotFoundError('no copa.jsonl'), 'cannot read its data: FileNotFoundError: no copa.jsonl'),
    (ModuleNotFoundError('No module', name='antlr4'), 'needs a package: No module\nfix: pip install antlr4'),
    (AttributeError('no such method'), ''),
  ],
)
def test_errors_of_a_library_are_not_told_as_those_of_data(monkeypatch, error, told):
  def load(names):
    raise error

  manager = types.SimpleNamespace(all_tasks=['a'], load=load)
  monkeypatch.setattr(harness, '_task_manager', lambda files: manager)
  with pytest.raises(ValueError if told else AttributeError) as caught:
    harness.run(None, ['a'])
  assert not told or told in str(caught.value)
