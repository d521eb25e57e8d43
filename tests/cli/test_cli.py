"""The command line: what verbs do, and their errors.

Most commands run in this process, by cli.main; `slow` ones in a process of their own.
"""

import dataclasses
import importlib
import json
import logging
import os
import pathlib
import re
import resource
import shutil
import subprocess
import sys
import tomllib

import pytest

import launch
from gpt_jax import config
from gpt_jax.ablation import store
from gpt_jax.cli import args, entry, experiment_file, main, verbs
from gpt_jax.cli import evaluate as evaluate_verb
from gpt_jax.data import Source
from gpt_jax.evaluation import trained
from gpt_jax.runs import records, run_folder
from gpt_jax.sampling import prompt_batch
from gpt_jax.training import memory
from tests import command_line, tiny_runs
from tests.command_line import assert_user_error
from tests.tiny_runs import assert_two_lines, snapshot

USER_ERROR = 2  # bad config or arguments


@pytest.fixture(scope='module', autouse=True)
def compiled(tmp_path_factory):
  """Equal programs are compiled once."""
  with tiny_runs.compiled_programs(tmp_path_factory):
    yield


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """The run folder of the tiny experiment. Do not change it."""
  return tiny_runs.finished(tmp_path_factory)


@pytest.fixture
def copy(run, tmp_path):
  """A run folder to harm."""
  shutil.copytree(run, tmp_path / 'copy')
  return tmp_path / 'copy'


@pytest.fixture
def call(capsys, monkeypatch):
  """call('train', '--workdir=x') -> (exit code, stdout, stderr), as `python launch.py` would."""
  return command_line.in_process(capsys, monkeypatch)


@pytest.fixture
def experiment(tmp_path):
  """--config of the experiment that `run` has finished."""
  path = tmp_path / 'again.py'
  path.write_text("""from tests import tiny_runs

def get_config(arg=''):
  return tiny_runs.section()
""")
  return f'--config={path}'


# ------------------------------------------------------------------------ errors in arguments


@pytest.mark.parametrize(
  'words, parts, fix',
  [
    (['--config.optim.lrr=1'], ['config.optim.lrr'], 'did you mean lr?'),
    (['--config.modle.width=8'], ['config.modle.width'], 'did you mean model?'),
    (['--config.data.mixture.text.pth=x'], ['mixture.text.pth'], 'did you mean path?'),
    (['--config.data.mixture.txt.path=x'], ['mixture.txt'], 'did you mean text?'),
    (['--config.optim.lr=fast'], ['--config.optim.lr=fast is not a number'], '--config.optim.lr=0.'),
    (['--config.train.steps=1.5'], ['config.train.steps=1.5 is not an integer'], ''),
    (['--config.log.tensorboard=maybe'], ['tensorboard=maybe is not true or false'], 'tensorboard=true'),
    (['--config.model=3'], ['config.model'], ''),
    (['--config.optim.lr_multipliers=(1,)'], ['optim.lr_multipliers[0]=1'], 'type str'),
    (['--config.model.heads=5', '--config.model.width=128'], ['heads=5', 'width=128'], '2, 4, 8'),
    (['--config.model.kv_heads=7'], ['kv_heads=7'], 'one of 1, 2'),
    (['--config.optim.name=adam'], ["optim.name='adam'"], 'adamw'),
    (['--config.data.mixture.text.kind=txt'], ['kind=txt'], 'text'),
    (['--config.data.mixture.text.path=x'], ["path='x' has no effect"], 'kind=synthetic'),
    (['--config.data.mixture.web.kind=text'], ['web is not a config key'], ''),
    (['--config.data.packing=first-fit'], ['data.packing=first-fit'], 'first_fit'),
    (['--config.mesh.preset=gpu7'], ['mesh.preset=gpu7'], 'gpu8'),
    (['--config.mesh.fsdp=2'], ['fsdp=2 does not fit 1 device'], 'mesh.data=-1'),
    (['--config.model.vocab=100'], ['272 ids', 'model.vocab=100'], 'model.vocab=0'),
    (['--config.train.init_from=nowhere'], ['train.init_from=nowhere does not exist'], ''),
    (['--config.train.tasks=perplexity,continu'], ["train.tasks has 'continu', not a task"], 'perplexity'),
    (['--cnfig=x'], ['--cnfig is not a flag of train'], 'did you mean --config?'),
    (['--wrkdir=x'], ['--wrkdir is not a flag of train'], 'did you mean --workdir?'),
    (['--work=x'], ['--work is not a flag of train'], 'did you mean --workdir?'),
    (['stray'], ["'stray' is not a flag"], '--name=value'),
    (['--config'], ['--config has no value'], ''),
    (['--config.train.steps'], ['--config.train.steps has no value'], '--config.train.steps=VALUE'),
    (['--config.sample.begin=nonsense', '--config.train.sample_prompts=()'], ["begin='nonsense'"], 'bos'),
  ],
)
def test_train_errors(call, experiment, tmp_path, words, parts, fix):
  workdir = tmp_path / 'run'
  given = [] if words == ['--config'] else [experiment]
  outcome = call('train', *given, f'--workdir={workdir}', *words)
  assert fix in assert_user_error(outcome, *parts)
  assert all(name.startswith('cache/') for name in snapshot(workdir) or ())


@pytest.mark.parametrize(
  'spec, parts, fix',
  [
    ('experiments/dem.py', ['experiments/dem.py'], 'did you mean experiments/demo.py?'),
    ('experiments/demo.py:runlocal', ["'runlocal' is not known"], 'takes none'),
    ('experiments/gpt2.py:sise=xl', ["'sise' is not known"], 'did you mean size?'),
    ('experiments/gpt2.py:size=huge', ['size=huge'], 'small, medium'),
    ('experiments/gpt2.py:runlocal=maybe', ['runlocal=maybe'], ''),
    ('experiments/finetune.py:base=runs/none', ['train.init_from=runs/none does not exist'], ''),
  ],
)
def test_experiment_file_errors(call, tmp_path, spec, parts, fix):
  outcome = call('train', f'--config={spec}', f'--workdir={tmp_path}/run')
  assert fix in assert_user_error(outcome, *parts)
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
  'words, parts',
  [
    (['sample'], ['--workdir is missing']),
    (['sample', '--workdir=/nowhere/run'], ['/nowhere/run does not exist']),
    (['evaluate', '--workdir=/nowhere/run'], ['/nowhere/run does not exist']),
    (['export', '--workdir=/nowhere/run', '--out=x'], ['/nowhere/run does not exist']),
    (['export', '--workdir=/nowhere/run'], ['--out']),
    (['import', '--workdir=/nowhere/run'], ['--source']),
    (['smaple', '--workdir=x'], ['smaple']),
    (['sample', '--workdir=x', '--temprature=1'], ['--temprature is not a flag of sample']),
    (['sample', '--workdir=x', '--to=video'], ['--to=video is not known']),
    (['sample', '--workdir=x', '--top_k=1.5'], ['--top_k=1.5 is not an integer']),
    (['sample', '--workdir=x', '--config.model.layers=3'], ['--config.model.layers is not a flag of sample']),
    (['sample', '--workdir'], ['--workdir has no value']),
    (['doctor', 'now'], ["'now' is not a flag"]),
  ],
)
def test_errors_of_other_verbs(call, words, parts):
  assert_user_error(call(*words), *parts)


def test_a_folder_without_a_run_trains_the_demo_and_says_so(tmp_path, run):
  note = args.demo_note(['--workdir', f'{tmp_path}/none', '--config.train.steps=3'])
  assert note.startswith(f'{tmp_path}/none has no run to resume')
  for words in (['--workdir', str(run)], ['--workdir=x', '--config=demo'], ['--config.train.steps=3']):
    assert not args.demo_note(words)
  assert not args.demo_note(['--workdir=x', '--config.train.branch_from=runs/y'])


def test_help_lists_every_config_key_with_its_meaning(call):
  code, out, _ = call('train', '--help')
  keys = re.findall(r'^  --config\.([\w.]+) +\S.* \(default: ', out, re.M)
  sections = dataclasses.fields(config.Config)
  of = lambda s: dataclasses.fields(s.type) if dataclasses.is_dataclass(s.type) else ()
  fields = [f'{s.name}.{f.name}' if of(s) else s.name for s in sections for f in of(s) or (s,)]
  assert keys == fields and 'plugins' in keys  # none without a comment


def test_help_of_an_experiment_describes_its_arguments(call, tmp_path):
  file = tmp_path / 'mine.py'
  file.write_text('"""Mine.\n\nArguments: size, speed.\n"""\nraise SystemExit\n')
  code, out, _ = call('train', f'--config={file}:size=3', '--help')
  assert code == 0 and out.endswith(f'{file}:size=3:\nMine.\n\nArguments: size, speed.\n')
  assert call('train', f'--config={tmp_path}/none.py', '--help')[0] == 0


def test_help_lists_verbs_and_flags(call):
  code, out, _ = call()
  assert code == USER_ERROR and '  train    [--config=FILE' in out
  code, out, _ = call('--help')
  assert code == 0 and '  doctor' in out
  code, out, _ = call('sample', '--help')
  assert code == 0 and 'Continue a prompt' in out
  for line in ('  --workdir ', '  --[no]stream ', '(default: true)'):
    assert line in out
  assert '--[no]help' not in out  # flags of absl
  assert '--config.train.profile=' in call('train', '--help')[1]
  temperature = ' '.join(call('evaluate', '--help')[1].split()).partition('--temperature')[2]
  assert 'from the run; tasks answer, translate and summarize: 0' in temperature[:200]


def test_a_warning_is_printed_once(capsys, monkeypatch):
  root = logging.getLogger()
  handlers = [*root.handlers]
  monkeypatch.setattr(sys, 'argv', ['launch.py', 'help'])
  try:
    root.handlers = [logging.StreamHandler(sys.stderr)]  # as a library that is imported leaves it
    with pytest.raises(SystemExit):
      main.run()
    logging.getLogger('gpt_jax.data').warning('540 images resized from %s', '40x40')
  finally:
    root.handlers = handlers
  assert capsys.readouterr().err == 'note: 540 images resized from 40x40\n'


def test_the_console_script_runs_the_same_verbs(capsys, monkeypatch):
  project = tomllib.loads((command_line.ROOT / 'pyproject.toml').read_text())['project']
  module, _, function = project['scripts']['gpt-jax'].partition(':')
  run = getattr(importlib.import_module(module), function)
  assert run is launch.run is entry.run
  for arguments, code in ((['--help'], 0), ([], USER_ERROR), (['smaple'], USER_ERROR)):
    monkeypatch.setattr(sys, 'argv', ['gpt-jax', *arguments])
    with pytest.raises(SystemExit) as exit_:
      main.run()  # which entry.run calls after it has set up signals and started again
    assert exit_.value.code == code
  assert "error: 'smaple' is not a verb" in capsys.readouterr().err


def test_without_a_config_the_demo_is_trained_from_any_directory(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  section, rest = args.load_experiment(['launch.py', '--config.train.steps=3'])
  assert section == experiment_file.load_config(str(command_line.ROOT / 'experiments/demo.py'))
  assert rest == ['launch.py', '--config.train.steps=3']


# ----------------------------------------------------------------------------- mistakes in files


@pytest.mark.parametrize(
  'content, parts',
  [
    (None, ['matches no file']),
    (b'', ['is empty']),
    (b'To be\xff or not', ['is not UTF-8', 'offset 5']),
    (b'short', ['tokens, a row needs']),
  ],
)
def test_unreadable_texts_fail(call, experiment, tmp_path, content, parts):
  path = tmp_path / 'text.txt'
  if content is not None:
    path.write_bytes(content)
  text = '--config.data.mixture.text.'
  outcome = call(
    'train',
    experiment,
    f'--workdir={tmp_path}/run',
    f'{text}kind=text',
    f'{text}path={path}',
    f'{text}documents=1000',
  )
  assert_user_error(outcome, *parts)
  assert not (tmp_path / 'run/config.json').exists()


def test_unusable_workdirs_fail(call, experiment, tmp_path):
  (tmp_path / 'file').write_text('x')
  (tmp_path / 'other').mkdir()
  (tmp_path / 'other/thesis.tex').write_text('x')
  before = snapshot(tmp_path)
  for workdir, part in (
    (tmp_path / 'file', 'is a file'),
    (tmp_path / 'file/run', 'is a file'),
    (tmp_path / 'other', 'thesis.tex'),
    ('/proc/gpt_jax_run', '/proc/gpt_jax_run'),
    ('gs://bucket/run', 'gs://bucket/run'),
  ):
    assert_user_error(call('train', experiment, f'--workdir={workdir}'), part)
  assert snapshot(tmp_path) == before


def test_workdir_of_another_experiment_fails(call, experiment, copy):
  before = snapshot(copy)
  outcome = call('train', experiment, f'--workdir={copy}', '--config.train.steps=24', '--config.log.every=2')
  assert '--workdir' in assert_user_error(
    outcome, 'train.steps=24 changes the learning rates of the 12 steps'
  )
  outcome = call('train', experiment, f'--workdir={copy}', '--config.optim.lr=1', '--config.log.every=2')
  assert '--workdir' in assert_user_error(outcome, 'another config: optim.lr 0.02 -> 1.0')
  assert 'log.every' not in outcome[2]  # it may differ
  assert_user_error(call('train', f'--workdir={copy}', '--config.train.seed=1'), 'train.seed 0 -> 1')
  assert snapshot(copy) == before


def test_a_branch_needs_no_config(call, run, tmp_path):
  """It takes the config of its parent, with what the command line changes."""
  workdir = tmp_path / 'branch'
  branch = f'--config.train.branch_from={run}@9'
  code, out, _ = call(
    'train', branch, f'--workdir={workdir}', '--config.train.steps=10', '--config.optim.lr=0'
  )
  assert code == 0 and 'from step 9' in out
  config, parent = (run_folder.read_config(folder) for folder in (workdir, run))
  assert records.diff(parent, config).keys() == {'train.branch_from', 'train.steps', 'optim.lr'}
  code, out, _ = call('report', f'--workdir={workdir}')
  assert code == 0 and 'train.branch_from finished@9' in out and 'optim.lr 0.02 -> 0.0' in out


def test_init_from_a_model_of_another_shape_fails(call, experiment, run, tmp_path):
  outcome = call(
    'train',
    experiment,
    f'--workdir={tmp_path}/run',
    f'--config.train.init_from={run}',
    '--config.model.width=32',
  )
  assert_user_error(outcome, 'does not fit the model: model.width 16 -> 32')
  assert not (tmp_path / 'run/config.json').exists()


def test_only_truncated_checkpoints_fail(call, copy):
  (copy / 'result.json').unlink()
  for step in ('9', '12'):
    files = [path for path in (copy / 'checkpoints' / step).rglob('*') if path.is_file()]
    victim = max(files, key=lambda path: path.stat().st_size)
    victim.write_bytes(victim.read_bytes()[:-3])
  before = snapshot(copy)
  for words in (['train'], ['sample', '--prompt=a'], ['evaluate']):
    outcome = call(*words, f'--workdir={copy}')
    assert_user_error(outcome, 'no good checkpoint', 'checkpoint 12', 'checkpoint 9')
  assert snapshot(copy) == before


def test_config_json_of_another_version_fails(call, copy):
  content = records.read_json(copy / 'config.json')
  content['optim']['momentum'] = 0.9
  records.write_json(copy / 'config.json', content)
  for verb in ('train', 'sample', 'evaluate'):
    assert_user_error(call(verb, f'--workdir={copy}'), 'optim.momentum')
  (copy / 'config.json').write_text('{')
  for verb in ('train', 'sample', 'evaluate'):
    assert_user_error(call(verb, f'--workdir={copy}'), 'config.json is not readable')


def test_gradients_that_stay_non_finite_are_an_error_of_the_run(call, experiment, tmp_path):
  outcome = call(
    'train', experiment, f'--workdir={tmp_path}/run', '--config.optim.lr=1e20', '--config.train.max_skipped=3'
  )
  assert_user_error(outcome, 'not finite in 3 steps in a row', code=1)


# ----------------------------------------------------------------------------------------- sample


@pytest.mark.parametrize(
  'words, parts',
  [
    (['--prompt=' + 'x' * 40], ['the prompt has 40 tokens', 'context is 32']),
    (['--prompt=abc', '--max_new_tokens=30'], ['max_new_tokens=30 after 3', 'context of 32']),
    (['--temperature=-1'], ['temperature=-1']),
    (['--top_p=1.5'], ['top_p=1.5']),
    (['--num_samples=0'], ['num_samples=0']),
    (['--num_samples=3', '--beams=2'], ['num_samples=3']),
    (['--beams=2', '--top_k=5'], ['beams=2', 'top_k']),
    (['--prompt=a', '--seed=one'], ['seed', 'one']),
    (['--prompt=a', '--stream=false', '--out=/proc/none/x.jsonl'], ['/proc/none']),
    (['--prompt=\udcff'], ['surrogate']),
  ],
)
def test_sample_errors(call, run, words, parts):
  before = snapshot(run)
  assert_user_error(call('sample', f'--workdir={run}', *words), *parts)
  assert snapshot(run) == before


def test_invalid_prompt_ids_fail(run):
  cfg = trained.load(run).model.cfg
  for prompt, part in (
    ([5, 272], 'token id 272 is out of range: the model has 272 ids'),
    ([-1], 'token id -1'),
    ([], 'the prompt is empty'),
    ([1] * 32, 'the prompt has 32 tokens'),
  ):
    with pytest.raises(ValueError) as error:
      prompt_batch.check_prompts([[1, 2], prompt], 1, cfg)
    tiny_runs.assert_two_lines(error.value, part)
  prompt_batch.check_prompts([[0], [271] * 31], 1, cfg)


def text_of(outcome, prompt):
  """What was streamed after a prompt."""
  code, out, err = outcome
  assert code == 0, err
  assert out.startswith(prompt) and out.endswith('\n')
  return out[len(prompt) : -1]


def test_sampling(call, run, tmp_path):
  before = snapshot(run)
  words = ['sample', f'--workdir={run}', '--prompt=bama']
  streamed = lambda *more: text_of(call(*words, *more), 'bama')

  greedy = streamed('--temperature=0')
  assert len(greedy) > 1
  code, _, error = call(*words, '--temperature=0', '--seed=5')
  assert code == 2 and 'seed has no use' in error

  plain = streamed('--seed=3')
  assert plain == streamed('--seed=3')
  assert plain != streamed('--seed=4')
  code, out, _ = call(*words, '--seed=3', '--nostream')
  assert code == 0
  assert out == f'--- 1 of 1\nbama{plain}\n'

  stop = plain[2:4]
  assert streamed('--seed=3', f'--stop={stop}') == plain[: plain.index(stop)]
  code, out, _ = call(*words, '--seed=3', '--nostream', f'--stop={stop}', '--stop=zzz')
  assert out == f'--- 1 of 1\nbama{plain[: plain.index(stop)]}\n'

  file = tmp_path / 'new' / 'texts.jsonl'
  code, out, _ = call(*words, '--seed=3', '--num_samples=2', f'--out={file}', '--log_probs')
  assert code == 0
  records = [json.loads(line) for line in file.read_text().splitlines()]
  assert [record['prompt'] for record in records] == ['bama', 'bama']
  assert records[0]['text'] == plain != records[1]['text']
  for number, record in enumerate(records, 1):
    mean = sum(record['log_probs']) / len(record['log_probs'])
    assert f'--- {number} of 2  mean log-probability {mean:.3f}\nbama{record["text"]}\n' in out
  assert snapshot(run) == before


def test_long_prompt_limits_new_tokens(call, run):
  """The run's default of new tokens gives way; the empty prompt begins a document."""
  assert len(text_of(call('sample', f'--workdir={run}', '--prompt=' + 'a' * 30), 'a' * 30)) <= 2
  code, out, _ = call('sample', f'--workdir={run}')
  assert code == 0 and out.endswith('\n')


# ------------------------------------------------------------------------------- the other verbs


def test_evaluate_prints_and_appends_rows(call, copy):
  before = snapshot(copy)
  code, out, err = call('evaluate', f'--workdir={copy}')
  assert code == 0, err
  rows = records.read_lines(copy / 'evaluations.jsonl')
  assert rows == run_folder.read_result(copy)['evaluations']
  shown = re.findall(r'^perplexity +(\w+) +([\d.]+) +text valid, (\d+) tokens, stride 32$', out, re.M)
  assert [(name, float(value), int(tokens)) for name, value, tokens in shown] == [
    (row['metric'], round(row['value'], 4), row['tokens']) for row in rows
  ]
  after = snapshot(copy)
  assert {name for name in after if before.get(name) != after[name]} == {'evaluations.jsonl', 'report.html'}
  assert_user_error(call('evaluate', f'--workdir={copy}', '--tasks=draw'), '--tasks=draw')
  assert_user_error(call('evaluate', f'--workdir={copy}', '--stride=33'), 'stride=33')
  assert_user_error(call('evaluate', f'--workdir={copy}', '--split=test'), 'split', 'test')
  assert snapshot(copy) == after


def test_evaluate_scores_chosen_data_and_names_them(call, copy):
  code, out, err = call('evaluate', f'--workdir={copy}', '--config.data.mixture.text.seed=5')
  assert code == 0, err
  rows = records.read_lines(copy / 'evaluations.jsonl')
  assert all(row['data.mixture.text.seed'] == '5' for row in rows)
  own = run_folder.read_result(copy)['evaluations'][0]
  assert rows[0]['value'] != own['value']
  scores = store.task_scores(copy, run_folder.read_result(copy))
  assert scores['perplexity/text/nats_per_token'] == own['value']  # not that of other data
  error = call('evaluate', f'--workdir={copy}', '--config.data.workers', '--config.data.cache')
  assert_user_error(error, 'config.data')
  error = call('evaluate', f'--workdir={copy}', '--config.model.width=8')
  assert_user_error(error, '--config.model.width cannot be changed')
  for key in ('packing=first_fit', 'mask_documents=True', 'stages='):  # say how training makes rows
    error = call('evaluate', f'--workdir={copy}', f'--config.data.{key}')
    assert 'leave it out' in assert_user_error(error, f'--config.data.{key.partition("=")[0]}')


@pytest.mark.parametrize('verb, flag', [('report', '--against'), ('evaluate', '--reference')])
def test_a_run_that_does_not_exist_is_named_by_its_flag(call, copy, verb, flag):
  error = call(verb, f'--workdir={copy}', f'{flag}=/nowhere/run')
  assert_user_error(error, f'{flag}=/nowhere/run does not exist')


def test_attacks_and_the_card_need_the_data_of_the_run(call, copy):
  refused = lambda *words: assert_user_error(call(*words, f'--workdir={copy}'), words[1])
  refused('evaluate', '--tasks=canaries')
  refused('evaluate', '--prefix=5')
  refused('evaluate', '--tasks=membership', '--config.data.mixture.text.seed=5')
  refused('report', '--card', '--against=x')
  code, out, err = call('report', '--card', f'--workdir={copy}')
  assert code == 0, err
  assert f'card: {copy}/CARD.md' in out
  card = (copy / 'CARD.md').read_text()
  assert '| text | synthetic | `{text}` | not stated | 54 documents, ' in card
  assert '- begins with' not in card
  assert 'Not measured: `launch.py evaluate --tasks=extraction,membership`.' in card


def test_an_imported_run_is_scored_on_the_data_that_are_given_alone():
  run = trained.TrainedRun(pathlib.Path('gpt2'), config.Config(), None, None, None, 0, imported='hub/gpt2')
  with pytest.raises(ValueError) as error:
    evaluate_verb.with_given_data(run, {'data.valid_fraction': '0.5'})
  _, fix = assert_two_lines(error.value, 'workdir=gpt2 is imported from hub/gpt2 and has no data to score')
  assert '--config.data.mixture.text.path=FILE.txt' in fix and '--harness' in fix
  data = dataclasses.replace(run.cfg.data, mixture={'text': Source(), 'arc': Source(weight=0.0)})
  run = run._replace(cfg=dataclasses.replace(run.cfg, data=data))
  chosen = evaluate_verb.with_given_data(run, {'data.mixture.arc.kind': 'builtin'})
  assert list(chosen.cfg.data.mixture) == ['arc']


def test_evaluate_scores_all_kept_checkpoints(call, copy):
  steps = trained.good_steps(copy)
  code, out, err = call('evaluate', f'--workdir={copy}', '--step=all', '--limit=100')
  assert code == 0, err
  note = 'note: no bits per byte of text: they need the whole split, and limit=100 scores a part\n'
  assert out.count(note) == len(steps) and 'bits_per_byte' not in out
  rows = records.read_lines(copy / 'evaluations.jsonl')
  assert [row['step'] for row in rows if row['metric'] == 'nats_per_token'] == steps
  own = run_folder.read_result(copy)['evaluations'][0]
  assert (
    store.task_scores(copy, run_folder.read_result(copy))['perplexity/text/nats_per_token'] == own['value']
  )
  assert_user_error(call('evaluate', f'--workdir={copy}', '--step=5'), 'step=5')
  assert_user_error(call('evaluate', f'--workdir={copy}', '--step=last'), '--step=last')
  assert_user_error(call('evaluate', f'--workdir={copy}', '--step=all', '--watch'), '--watch')


@pytest.mark.parametrize(
  'words',
  [
    ['evaluate', '--workdir={run}'],
    ['export', '--workdir={run}'],
    ['data', '--source={run}/config.json'],
    ['sample', '--workdir={run}', '--prompt=a'],
    ['render', '--to=slurm', '--workdir=/runs/x'],
  ],
)
def test_an_out_that_cannot_be_written_is_an_error_before_any_work(call, run, tmp_path, words):
  (tmp_path / 'file').write_text('')
  words = [word.format(run=run) for word in words]
  outcome = call(*words, f'--out={tmp_path}/file/x/y')
  assert_user_error(outcome, f'--out={tmp_path}/file/x/y cannot be written: ')
  assert not outcome[1]


def test_evaluate_adds_a_benchmark_by_the_command_line(call, copy, tmp_path):
  path = tmp_path / 'questions.jsonl'
  path.write_text('{"q": "Ice is", "options": ["cold", "hot"], "answer": 0}\n' * 2)
  fields = {'kind': 'jsonl', 'path': path, 'template': '{q} {options[answer]}'}
  words = [f'--config.data.mixture.ice.{key}={value}' for key, value in fields.items()]
  code, out, err = call('evaluate', f'--workdir={copy}', '--tasks=choose', *words)
  assert code == 0, err
  assert re.search(r'^choose +accuracy +[01]\.0000', out, re.M)
  assert_user_error(call('evaluate', f'--workdir={copy}', words[1]), 'ice')


def test_train_then_resume(call, experiment, run, tmp_path, monkeypatch):
  """`train` with a config and overrides, then the same run by its folder alone."""
  monkeypatch.setenv('HOME', str(tmp_path))
  monkeypatch.chdir(tmp_path)
  words = '--workdir=~/run', '--config.log.every=7', '--config.checkpoint.keep=3'
  code, out, err = call('train', experiment, *words)
  assert code == 0, err
  workdir = tmp_path / 'run'
  assert 'step 12/12' in out and str(workdir / 'report.html') in out
  assert not (tmp_path / '~').exists()
  cfg = json.loads((workdir / 'config.json').read_text())
  assert (cfg['log']['every'], cfg['checkpoint']['keep']) == (7, 3)
  assert len(list((workdir / 'checkpoints/digests').iterdir())) == 3
  assert run_folder.read_result(workdir)['valid_loss'] == run_folder.read_result(run)['valid_loss']

  before = snapshot(workdir)
  code, out, err = call('train', '--workdir=~/run')
  assert code == 0, err
  assert 'done' in out
  after = snapshot(workdir)
  assert {name for name in after if after[name] != before.get(name)} <= {'events.jsonl', '.lock'}


@pytest.mark.slow
def test_doctor(call):
  code, out, err = call('doctor')
  assert code == 0, out + err
  for word in ('python', 'jax', 'one step', 'TFLOP/s', 'GiB'):
    assert word in out
  assert 'FAILS' not in out


# ------------------------------------------------------------------------------- as a user does it


def test_an_error_cannot_drive_the_terminal(call):
  _, _, err = call('sample', '--workdir=runs/\x1b[31mnone\u202e')
  assert '\x1b' not in err and '\u202e' not in err and 'runs/\\x1b[31mnone\\u202e does not exist' in err


def test_user_error_in_a_real_process(tmp_path):
  code, output = command_line.launch(
    'train',
    f'--config={command_line.experiment(tmp_path)}',
    f'--workdir={tmp_path}/run',
    '--config.model.heads=5',
    folder=tmp_path,
  )
  assert code == USER_ERROR
  cause, fix = output.strip().split('\n')
  assert cause == 'error: model.heads=5 does not divide model.width=16'
  assert fix.startswith('fix: use one of 1, 2, 4')
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
  'failure',
  [
    MemoryError(),
    RuntimeError('RESOURCE_EXHAUSTED: Out of memory allocating 137438953472 bytes.'),
    OSError(12, 'Cannot allocate memory'),
    RuntimeError("can't start new thread"),
    ImportError('_image.so: failed to map segment from shared object'),
  ],
)
def test_running_out_of_memory_ends_in_two_lines(monkeypatch, call, failure):
  def run(argv):
    raise failure

  monkeypatch.setitem(verbs.VERBS, 'doctor', verbs.VERBS['doctor']._replace(run=run))
  code, _, err = call('doctor')
  cause, fix = err.strip().split('\n')
  assert code == verbs.ERROR
  assert cause.startswith('error: out of memory: ') and 'train.batch_size' in fix


def test_a_limit_of_addresses_that_aborts_jax_is_said_first(monkeypatch, call):
  monkeypatch.setitem(verbs.VERBS, 'doctor', verbs.VERBS['doctor']._replace(run=lambda argv: 0))
  assert call('doctor') == (0, '', '')
  monkeypatch.setattr(resource, 'getrlimit', lambda _: (800_000 * 1024, -1))
  note = 'warning: `ulimit -v` allows 0.8 GB of address space: raise it to 3 GB or more\n'
  assert call('doctor') == (0, '', note)


@pytest.mark.parametrize(('gib', 'code', 'cause'), [(1e-4, 2, 'optimizer'), (0.002, 1, 'activations')])
def test_a_run_that_memory_cannot_hold_is_refused(call, tmp_path, monkeypatch, gib, code, cause):
  """The state before the run starts, a step before the first one."""
  monkeypatch.setattr(memory, 'available_bytes', lambda: gib * 2**30)
  workdir, config = f'--workdir={tmp_path}/run', f'--config={command_line.experiment(tmp_path)}'
  exit_code, _, err = call('train', config, workdir, '--config.train.batch_size=64')
  assert exit_code == code
  [line, fix] = err.strip().split('\n')[-2:]
  assert line.startswith('error: ') and cause in line and 'GiB are available' in line
  assert fix.startswith('fix: ')
  assert (tmp_path / 'run/config.json').exists() == (code == 1)


@pytest.mark.slow
def test_traceback_flag(tmp_path):
  code, output = command_line.launch('sample', f'--workdir={tmp_path}/run', '--traceback', folder=tmp_path)
  assert code == 1
  assert 'Traceback' in output and 'FileNotFoundError' in output


@pytest.mark.slow
def test_train_sample_evaluate_in_processes(tmp_path):
  folder, workdir = tmp_path, f'--workdir={tmp_path}/run'
  code, output = command_line.launch(
    'train', f'--config={command_line.experiment(folder)}', workdir, folder=folder
  )
  assert code == 0, output
  for words in (['sample', '--prompt=a'], ['evaluate'], ['doctor'], ['train', '--help']):
    where = [] if words[0] == 'doctor' or '--help' in words else [workdir]
    code, output = command_line.launch(*words, *where, folder=folder)
    assert code == 0, output
    assert output.strip()
  before = snapshot(pathlib.Path(folder / 'run'))
  assert 'evaluations.jsonl' in before
  code, output = command_line.launch('train', workdir, '--config.train.seed=2', folder=folder)
  assert code == USER_ERROR
  assert [line.split(':')[0] for line in output.strip().split('\n')][-2:] == ['error', 'fix']
  assert snapshot(pathlib.Path(folder / 'run')) == before
  assert os.listdir(folder / 'run/checkpoints')


def test_nothing_that_a_library_left_behind_follows_the_two_lines(tmp_path):
  """As a checkpoint's coroutine does whose file was not written: its cleanup needs a loop that has gone."""
  script = tmp_path / 'abandon.py'
  script.write_text(
    f'import sys; sys.path.insert(0, {str(pathlib.Path(launch.__file__).parent)!r})\n'
    'from gpt_jax.cli import main, verbs\n'
    'class Leftover:\n'
    '  def __del__(self):\n'
    '    raise RuntimeError("Event loop is closed")\n'
    'def run(argv):\n'
    '  leftover = Leftover()\n'
    '  raise ValueError("no\\nfix: yes")\n'
    'verbs.VERBS["doctor"] = verbs.Verb(run, lambda: None)\n'
    'main.run()\n'
  )
  command = [sys.executable, script, 'doctor']
  ended = subprocess.run(command, capture_output=True, text=True)
  assert (ended.returncode, ended.stderr) == (USER_ERROR, 'error: no\nfix: yes\n')
  ended = subprocess.run([*command, '--traceback'], capture_output=True, text=True)
  assert 'Event loop is closed' in ended.stderr
