"""Job files: what they say, that nothing in them becomes a command, and that they run."""

import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import yaml

from gpt_jax.cluster import bootstrap, render
from gpt_jax.runs import history, run_folder
from tests import command_line, tiny_runs
from tests.command_line import assert_user_error

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden' / 'render'
SPEC = 'experiments/gpt2.py:size=small'
MORE = {  # what each scheduler knows
  'slurm': {'nodes': 2, 'accelerators': 'h100:8', 'queue': 'gpu', 'hours': 4},
  'jobset': {
    'nodes': 2,
    'accelerators': 'nvidia.com/gpu:8',
    'queue': 'research',
    'image': 'registry.example/gpt_jax:1',
    'storage': 'runs',
  },
  'skypilot': {'nodes': 2, 'accelerators': 'H100:8', 'storage': 's3://my-runs'},
  'tpu-vm': {'accelerators': 'v6e-16', 'storage': 'gs://my-runs', 'zone': 'us-east5-b'},
}
HOSTILE = ('/runs/$(touch pwned) "`touch pwned`"', "/runs/'; touch pwned; '", '/runs/a b\\ #{{name}}')


def job(to, overrides=(), workdir='/runs/gpt2', **changes):
  """A job on two nodes, where that can be said."""
  spec = changes.pop('spec', SPEC)
  given = {'name': '', 'shares': 0} | MORE[to] | changes
  return render.job_spec(spec, overrides, workdir=workdir, **given)


def made(to, **changes):
  return render.render(to, job(to, **changes))


def study(to):
  """The job file of a study of which each of four nodes trains a share."""
  more = {'spec': 'experiments/ablations/norms.py', 'workdir': '/runs/norms', 'shares': 4}
  return made(to, **more, nodes=1)


@pytest.fixture
def call(capsys, monkeypatch):
  return command_line.in_process(capsys, monkeypatch)


# ------------------------------------------------------------------------------------ what they say


@pytest.mark.parametrize('to', render.TARGETS)
def test_files_are_as_they_were(to, monkeypatch):
  """To accept a change: write what is rendered into the golden file, and read the difference."""
  monkeypatch.setattr(render, 'ROOT', pathlib.Path('/code'))
  spec = '/code/experiments/gpt2.py:size=small'
  text = made(to, spec=spec, overrides=('--config.optim.lr=1e-3',))
  assert text == (GOLDEN / render.TARGETS[to].template).read_text()
  assert '{{' not in text


@pytest.mark.parametrize('to', ['slurm', 'tpu-vm'])
def test_shells_can_read_them(to):
  texts = [made(to, workdir=workdir) for workdir in ('/runs/gpt2', *HOSTILE)]
  for text in [*texts, *([study(to)] if to == 'slurm' else [])]:
    subprocess.run(['bash', '-n'], input=text, text=True, check=True)


def test_a_line_with_nothing_to_say_is_left_out():
  text = made('slurm', accelerators='', queue='', hours=0)
  assert not [word for word in ('gpus', 'partition', '--time', 'array') if word in text]
  assert '--ntasks-per-node=1\n' in text
  bare = yaml.safe_load(made('jobset', accelerators='', queue=''))
  assert list(bare['metadata']['labels']) == ['app.kubernetes.io/name']
  assert 'resources' not in container(bare)


def test_slurm_starts_a_task_for_each_accelerator():
  """JAX gives a SLURM task the one device of its SLURM_LOCALID."""
  text = made('slurm')
  assert '--ntasks-per-node=8\n' in text and '--gpus-per-node=h100:8\n' in text
  assert '--ntasks-per-node=1\n' in study('slurm')  # which divides the devices of its node itself


# A part of jobset.x-k8s.io/v1alpha2 and of the Kubernetes kinds in it: fields that we may set, with
# a ! those that the API wants. A list is one of such, a string or type what the value must be.
POD = {
  'restartPolicy!': 'Never',  # podFailurePolicy wants it
  'terminationGracePeriodSeconds': int,
  'containers!': [
    {
      'name!': str,
      'image!': str,
      'workingDir': str,
      'command': [str],
      'args': [str],
      'env': [{'name!': str, 'value': str, 'valueFrom': {'fieldRef': {'fieldPath!': str}}}],
      'ports': [{'containerPort!': int}],
      'resources': {'limits': dict},
      'volumeMounts': [{'name!': str, 'mountPath!': str}],
    }
  ],
  'volumes': [{'name!': str, 'persistentVolumeClaim': {'claimName!': str}, 'emptyDir': {'medium': 'Memory'}}],
}
JOBSET = {
  'apiVersion!': 'jobset.x-k8s.io/v1alpha2',
  'kind!': 'JobSet',
  'metadata!': {'name!': str, 'labels': dict},
  'spec!': {
    'network': {'enableDNSHostnames': bool, 'publishNotReadyAddresses': bool},
    'failurePolicy': {
      'maxRestarts': int,
      'restartStrategy': 'BlockingRecreate',
      'rules': [{'name!': str, 'action!': 'RestartJobSetAndIgnoreMaxRestarts', 'onJobFailureReasons': [str]}],
    },
    'replicatedJobs!': [
      {
        'name!': str,
        'replicas': int,
        'template!': {
          'spec!': {
            'completionMode': 'Indexed',
            'completions': int,
            'parallelism': int,
            'backoffLimit': int,
            'podFailurePolicy': {
              'rules!': [
                {
                  'action!': 'FailJob',
                  'onExitCodes': {'containerName': str, 'operator!': 'In', 'values!': [int]},
                  'onPodConditions': [{'type!': 'DisruptionTarget', 'status!': 'True'}],
                }
              ]
            },
            'template!': {'spec!': POD},
          }
        },
      }
    ],
  },
}


def assert_fits(value, schema, where='JobSet'):
  if isinstance(schema, dict):
    assert isinstance(value, dict), where
    wanted = {name.rstrip('!'): inner for name, inner in schema.items()}
    assert value.keys() <= wanted.keys(), (where, value.keys() - wanted.keys())
    missing = {name[:-1] for name in schema if name[-1] == '!'} - value.keys()
    assert not missing, (where, missing)
    for name, inner in value.items():
      assert_fits(inner, wanted[name], f'{where}.{name}')
  elif isinstance(schema, list):
    assert isinstance(value, list) and value, where
    for inner in value:
      assert_fits(inner, schema[0], f'{where}[]')
  elif isinstance(schema, type):
    assert type(value) is schema, (where, value)
  else:
    assert value == schema, where


def container(jobset):
  pods = jobset['spec']['replicatedJobs'][0]['template']['spec']['template']['spec']
  return pods['containers'][0]


@pytest.mark.parametrize(
  'changes', [{}, {'queue': '', 'accelerators': ''}, {'queue': 'true', 'name': 'null'}]
)
def test_a_jobset_is_what_the_api_takes(changes):
  made_of = yaml.safe_load(made('jobset', **changes))
  assert_fits(made_of, JOBSET)
  for value in made_of['metadata']['labels'].values():
    assert isinstance(value, str)
  with pytest.raises(AssertionError):
    assert_fits(made_of | {'spec': made_of['spec'] | {'replicas': 2}}, JOBSET)


def test_a_jobset_puts_back_what_was_stopped_and_nothing_else_for_ever():
  spec = yaml.safe_load(made('jobset'))['spec']
  inner = spec['replicatedJobs'][0]['template']['spec']
  codes = [r['onExitCodes']['values'] for r in inner['podFailurePolicy']['rules'] if 'onExitCodes' in r]
  assert codes == [[75]] and inner['backoffLimit'] == 0
  [rule] = spec['failurePolicy']['rules']
  assert rule['onJobFailureReasons'] == ['PodFailurePolicy']
  assert spec['failurePolicy']['maxRestarts'] == 3


def test_skypilot_is_told_what_to_recover():
  task = yaml.safe_load(made('skypilot'))
  assert task['resources']['job_recovery']['recover_on_exit_codes'] == [75]
  assert task['resources']['use_spot'] and task['num_nodes'] == 2
  assert task['file_mounts'] == {'/runs': {'source': 's3://my-runs', 'mode': 'MOUNT'}}
  for script in (task['setup'], task['run']):
    subprocess.run(['bash', '-n'], input=script, text=True, check=True)


# ------------------------------------------------------------------ who am I, in each of these jobs


def slurm_environment(process):
  """What srun sets for a task of a job on two nodes with eight tasks each."""
  return {
    'SLURM_JOB_ID': '7',
    'SLURM_STEP_NODELIST': 'node[1-2]',
    'SLURM_NTASKS': '16',
    'SLURM_PROCID': str(process),
    'SLURM_LOCALID': str(process % 8),
  }


def test_tasks_of_srun_find_their_job():
  assert '\nsrun ' in made('slurm')
  assert bootstrap.find_job(slurm_environment(9)) == bootstrap.DistributedJob(scheduler='slurm')


def test_pods_of_a_jobset_find_their_job():
  """fieldRef: Kubernetes puts the completion index of the pod there."""
  environment = {
    row['name']: row.get('value', '1') for row in container(yaml.safe_load(made('jobset')))['env']
  }
  pod = environment | {'JOB_COMPLETION_INDEX': '1', 'KUBERNETES_SERVICE_HOST': '10.0.0.1'}
  assert bootstrap.find_job(pod) == bootstrap.DistributedJob('', 'gpt2-host-0-0.gpt2:8476', 2, 1)


def test_nodes_of_skypilot_find_their_job():
  script = yaml.safe_load(made('skypilot'))['run'].replace('exec ', 'env #')
  given = {'SKYPILOT_NODE_IPS': '10.0.0.4\n10.0.0.5', 'SKYPILOT_NUM_NODES': '2', 'SKYPILOT_NODE_RANK': '1'}
  done = subprocess.run(
    ['bash', '-c', script], env=os.environ | given, capture_output=True, text=True, check=True
  )
  actual = dict(line.partition('=')[::2] for line in done.stdout.splitlines())
  assert bootstrap.find_job(actual) == bootstrap.DistributedJob('', '10.0.0.4:8476', 2, 1)


# --------------------------------------------------------------- nothing in them becomes a command


def stand_in(folder, name, script):
  """A program for PATH."""
  path = folder / name
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(f'#!/usr/bin/env bash\n{script}')
  path.chmod(0o755)


def on_path(folder, **more):
  return os.environ | {'PATH': f'{folder}:{os.environ["PATH"]}'} | more


@pytest.mark.parametrize('workdir', HOSTILE)
@pytest.mark.parametrize('to', ['slurm', 'skypilot'])
def test_shells_get_words_as_they_were_given(to, workdir, tmp_path, monkeypatch):
  monkeypatch.setattr(render, 'ROOT', tmp_path)
  spec = job(to, (f'--config.train.init_from={workdir}',), workdir, spec=f'{tmp_path}/x.py:$(touch b)')
  text = render.render(to, spec)
  text = yaml.safe_load(text)['run'] if to == 'skypilot' else text
  stand_in(tmp_path, 'srun', 'shift; exec "$@"')
  stand_in(tmp_path, '.venv/bin/python', 'printf "%s\\n" "$@"')
  nodes = {'SKYPILOT_NODE_IPS': 'a', 'SKYPILOT_NUM_NODES': '1', 'SKYPILOT_NODE_RANK': '0'}
  done = subprocess.run(
    ['bash', '-c', text],
    cwd=tmp_path,
    env=on_path(tmp_path, **nodes),
    capture_output=True,
    text=True,
    check=True,
  )
  assert done.stdout.splitlines() == ['-u', 'launch.py', *spec.args]
  assert {path.name for path in tmp_path.iterdir()} == {'srun', '.venv'}


@pytest.mark.parametrize('workdir', HOSTILE)
def test_kubernetes_gets_words_as_they_were_given(workdir):
  spec = job('jobset', ('--config.train.init_from=$(JAX_PROCESS_ID)$$',), workdir)
  args = container(yaml.safe_load(render.render('jobset', spec)))['args']
  assert [word.replace('$$', '$') for word in args] == list(spec.args)  # as it expands them
  assert not any('$(' in word.replace('$$', '') for word in args)


@pytest.mark.parametrize(
  'to, changes, part',
  [
    ('slurm', {'workdir': 'runs/x'}, '--workdir=runs/x is not a path'),
    ('slurm', {'workdir': '~/runs/x'}, '--workdir=~/runs/x is not a path'),
    ('jobset', {'workdir': 'gs://bucket/x'}, '--workdir=gs://bucket/x is not a path'),
    ('slurm', {'workdir': '/x'}, '--workdir=/x is not a path'),
    ('slurm', {'workdir': '/runs/a\n#SBATCH --wrap'}, 'cannot be printed'),
    ('slurm', {'name': 'a b'}, '--name=a b is not a job name'),
    ('slurm', {'name': '$(x)'}, '--name=$(x) is not a job name'),
    ('slurm', {'queue': 'gpu --wrap=x'}, '--queue=gpu --wrap=x has the wrong format'),
    ('slurm', {'accelerators': 'h100'}, '--accelerators=h100 has the wrong format'),
    ('slurm', {'nodes': -1}, '--nodes=-1 has the wrong format'),
    ('slurm', {'image': 'x'}, '--image=x means nothing to --to=slurm'),
    ('slurm', {'shares': 4}, '--nodes=2: each of the --shares=4'),
    ('jobset', {'image': ''}, '--to=jobset needs --image'),
    ('jobset', {'image': 'a" }'}, 'wrong format'),
    ('jobset', {'accelerators': '8'}, '--accelerators=8 has the wrong format'),
    ('jobset', {'spec': '/elsewhere/x.py'}, '--config=/elsewhere/x.py is not in'),
    ('skypilot', {'storage': 'runs'}, '--storage=runs has the wrong format'),
    ('tpu-vm', {'nodes': 2}, '--nodes=2 means nothing to --to=tpu-vm'),
    ('tpu-vm', {'shares': 2}, '--shares=2 means nothing to --to=tpu-vm'),
    ('tpu-vm', {'accelerators': 'v3-8'}, '--accelerators=v3-8 has the wrong format'),
    ('tpu-vm', {'zone': ''}, '--to=tpu-vm needs --zone'),
    ('slurm', {'overrides': ('--config.log.wandb_key=abcdefgh12345',)}, 'is a secret'),
    ('jobset', {'overrides': ('--config.log.wandb=hf_abcdefghijkl',)}, 'is a secret'),
  ],
)
def test_mistakes(to, changes, part):
  with pytest.raises(ValueError) as error:
    made(to, **changes)
  tiny_runs.assert_two_lines(error.value, part)
  assert 'abcdefgh' not in str(error.value)


def test_the_verb(call, tmp_path):
  words = ('--to=slurm', '--config=experiments/gpt2.py:size=small', '--workdir=/runs/x')
  code, out, _ = call('render', *words, '--config.optim.lr', '1e-3', '--config.log.tensorboard')
  overrides = ('--config.optim.lr=1e-3', '--config.log.tensorboard')
  assert code == 0
  assert out == render.render('slurm', render.job_spec(SPEC, overrides, '', '/runs/x', 0))
  file = tmp_path / 'jobs' / 'job.sh'
  code, out, _ = call('render', *words, f'--out={file}')
  assert code == 0 and out == ''
  assert file.read_text().startswith('#!/usr/bin/env bash\n#SBATCH')
  study_words = ('--to=slurm', '--config=experiments/ablations/norms.py', '--workdir=/runs/norms')
  code, out, _ = call('render', *study_words, '--shares=4')
  plain = {'nodes': 1, 'accelerators': '', 'queue': '', 'hours': 0, 'shares': 4}
  spec, folder = 'experiments/ablations/norms.py', '/runs/norms'
  assert code == 0 and out == made('slurm', spec=spec, workdir=folder, **plain)


@pytest.mark.parametrize(
  'words, part',
  [
    (['--workdir=/runs/x'], '--to is missing'),
    (['--to=pbs', '--workdir=/runs/x'], 'pbs'),
    (['--to=slurm'], '--workdir= is not a path'),
    (['--to=slurm', '--workdir=/runs/x', '--config.optim.lrr=1'], 'config.optim.lrr'),
    (['--to=slurm', '--workdir=/runs/x', '--config.model.heads=5'], 'model.heads=5'),
    (['--to=slurm', '--workdir=/runs/x', '--shares=2', '--config=experiments/gpt2.py'], 'get_study'),
  ],
)
def test_mistakes_of_the_verb(call, words, part):
  assert_user_error(call('render', *words), part)


# ------------------------------ they run: stand-ins for what schedulers have on PATH, all else real

GCLOUD = r"""
echo "$3 $4" >> log
case "$3 $4" in
  'queued-resources describe')
    case $(cat state 2> /dev/null) in
      '') echo 'ERROR: NOT_FOUND: no such resource' >&2; exit 1 ;;
      DEAF) echo ACTIVE > state; echo 'ERROR: UNAVAILABLE: no network' >&2; exit 1 ;;
    esac
    cat state ;;
  'queued-resources create')
    read -r state < created
    case $state in [0-9]*) exit "$state" ;; esac
    echo "$state" > state ;;
  'queued-resources delete') rm -f state ;;
  'tpu-vm ssh')
    for word in "$@"; do last=$word; done
    case $last in *launch.py*) ;; *) exit 0 ;; esac
    read -r code next < <(head -n1 codes); sed -i 1d codes
    [ -z "$next" ] || echo "$next" > state
    exit "$code" ;;
esac
"""


def slice_of_tpus(tmp_path, monkeypatch, codes, created='ACTIVE'):
  """The script of a slice on which launch.py ends with each of `codes` -> (exit code, calls).

  created: the state of a new slice, or the exit code of what cannot make one.
  """
  monkeypatch.setitem(render.CONSTANTS, 'pause', 0)
  stand_in(tmp_path, 'gcloud', GCLOUD)
  (tmp_path / 'codes').write_text('\n'.join(codes) + '\n')
  (tmp_path / 'created').write_text(f'{created}\n')
  (tmp_path / 'tmp').mkdir()
  done = subprocess.run(
    ['bash', '-c', made('tpu-vm')],
    cwd=tmp_path,
    timeout=60,
    stderr=subprocess.PIPE,
    text=True,
    env=on_path(tmp_path, TMPDIR=str(tmp_path / 'tmp')),
  )
  assert not list((tmp_path / 'tmp').iterdir())
  assert ('\nfix: ' in f'\n{done.stderr}') == (done.returncode > 0), done.stderr
  return done.returncode, (tmp_path / 'log').read_text().splitlines()


def test_a_slice_is_queued_again_until_the_run_is_done(tmp_path, monkeypatch):
  """Stopped and saved, then taken away, then done."""
  code, calls = slice_of_tpus(tmp_path, monkeypatch, ['75', '255 SUSPENDED', '0'])
  assert code == 0
  assert calls.count('queued-resources create') == 2
  assert calls.count('queued-resources delete') == 2
  assert calls.count('tpu-vm scp') == 3


@pytest.mark.parametrize('codes, tries', [(['2'], 1), (['1'] * 9, 4)])
def test_a_slice_whose_run_fails_by_itself_is_kept(tmp_path, monkeypatch, codes, tries):
  code, calls = slice_of_tpus(tmp_path, monkeypatch, codes)
  assert code == int(codes[0])
  assert calls.count('tpu-vm scp') == tries
  assert 'queued-resources delete' not in calls


@pytest.mark.parametrize('created, code, tries', [('1', 1, 4), ('2', 2, 1), ('FAILED', 1, 4)])
def test_a_slice_that_cannot_be_made_is_given_up(tmp_path, monkeypatch, created, code, tries):
  actual, calls = slice_of_tpus(tmp_path, monkeypatch, [], created)
  assert actual == code
  assert calls.count('queued-resources create') == tries
  assert calls.count('tpu-vm ssh') == 0


def test_a_slice_of_which_gcloud_does_not_say_the_state_is_not_queued_again(tmp_path, monkeypatch):
  code, calls = slice_of_tpus(tmp_path, monkeypatch, ['255 DEAF', '255 DEAF', '0'])
  assert code == 0 and calls.count('queued-resources create') == 1


def test_without_an_answer_of_gcloud_nothing_is_queued(tmp_path, monkeypatch):
  (tmp_path / 'state').write_text('DEAF')
  code, calls = slice_of_tpus(tmp_path, monkeypatch, [])
  assert code == 1 and calls == ['queued-resources describe']


SRUN = r"""
shift # --kill-on-bad-exit
for i in 0 1; do
  SLURM_STEP_NODELIST=localhost SLURM_NTASKS=2 SLURM_PROCID=$i SLURM_LOCALID=$i "$@" & pids[i]=$!
done
echo "${pids[1]}" > pid; code=0
for pid in "${pids[@]}"; do wait "$pid" || { c=$?; [ $c -le $code ] || code=$c; }; done
exit $code
"""
LONG = ('--config.train.steps=80', '--config.checkpoint.every=10', '--config.train.eval_every=0')


@pytest.mark.slow
def test_a_slurm_job_of_two_tasks_is_stopped_queued_again_and_ends(tmp_path, monkeypatch):
  """Real processes that meet as SLURM's do; SIGTERM to one task, as at the end of the time."""
  monkeypatch.setattr(render, 'ROOT', tmp_path)
  spec, workdir = command_line.experiment(tmp_path), tmp_path / 'runs' / 'x'
  text = render.render('slurm', render.job_spec(str(spec), LONG, '', str(workdir), 0, nodes=2))
  for name in ('launch.py', 'gpt_jax', 'tests'):
    (tmp_path / name).symlink_to(command_line.ROOT / name)
  stand_in(tmp_path, 'srun', SRUN)
  stand_in(tmp_path, 'scontrol', 'echo "$@" >> queued')
  environment = on_path(
    tmp_path,
    SLURM_JOB_ID=str(os.getpid()),
    PYTHON=sys.executable,
    JAX_PLATFORMS='cpu',
    JAX_COMPILATION_CACHE_DIR=str(tmp_path / 'compiled'),
    JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS='0',
  )
  start = lambda: subprocess.Popen(
    ['bash', '-c', text],
    env=environment,
    cwd=tmp_path,
    text=True,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
  )
  first = start()
  while 'step 15/' not in (line := first.stdout.readline()):
    assert line, first.wait()
  os.kill(int((tmp_path / 'pid').read_text()), signal.SIGTERM)
  output, _ = first.communicate(timeout=120)
  assert first.returncode == 75, output
  assert (tmp_path / 'queued').read_text() == f'requeue {os.getpid()}\n'
  second = start()
  output, _ = second.communicate(timeout=120)
  assert second.returncode == 0, output
  events = [event['event'] for event in run_folder.read_events(workdir)]
  assert events.count('start') == events.count('preempted') == events.count('resume') == 1
  assert events[-1] == 'done' and run_folder.read_result(workdir)['steps'] == 80


@pytest.mark.slow
def test_the_loop_of_any_scheduler_comes_to_the_end_of_the_run(tmp_path):
  """Until the exit code is 0, whatever kills it: the result is that of a run which nothing did.

  And the phases of its time add up to what a watch says, from the first start to the end.
  """
  spec = command_line.experiment(tmp_path)
  words = lambda name: ('train', f'--config={spec}', f'--workdir={tmp_path}/{name}', *LONG)
  code, output = command_line.launch(*words('whole'), folder=tmp_path)
  assert code == 0, output
  harms, chance, codes = [signal.SIGTERM, signal.SIGKILL, signal.SIGTERM], random.Random(0), []
  began = time.time()
  while not codes or codes[-1]:
    process = command_line.start(*words('loop'), folder=tmp_path)
    if harms:
      line = f'step {20 * len(codes) + chance.randrange(2, 9)}/'
      while line not in process.stdout.readline():
        assert process.poll() is None
      process.send_signal(harms.pop(0))
    output, _ = process.communicate(timeout=120)
    codes.append(process.returncode)
    assert codes[-1] in (0, 75, -9), output
  assert codes == [75, -9, 75, 0]
  actual, expected = tiny_runs.arrays(tmp_path / 'loop'), tiny_runs.arrays(tmp_path / 'whole')
  for path, array in expected.items():
    np.testing.assert_array_equal(actual[path], array, err_msg=path)
  run = history.read_history(tmp_path / 'loop')
  phases, ended = history.seconds_by_phase(run), history.unix_seconds(run.events[-1]['time'])
  assert sum(phases.values()) == pytest.approx(ended - began, rel=0.01)
  assert min(phases.values()) >= 0 and phases['lost'] > 0
  starts = [event for event in run.events if event['event'] in history.SESSION_STARTS]
  assert len(starts) == 4
  for event in starts:
    assert list(event['startup']) == ['import', 'join', 'setup', 'restore', 'open']
  code, output = command_line.launch('report', f'--workdir={tmp_path}/loop', folder=tmp_path)
  assert code == 0 and f'goodput {phases["steps"] / sum(phases.values()):.1%} of' in output
  assert 'goodput' in (tmp_path / 'loop' / 'report.html').read_text()
