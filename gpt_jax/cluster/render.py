"""Job files for schedulers: how an experiment or a study starts, is stopped, and is requeued.

A job file is a template in templates/: {{name}} stands for a value, {{name|sh}} and {{name|yaml}} for it
quoted for that language. A line with an empty value is left out. Values that are not quoted must match a
pattern, so that no name or path can become a command. On preemption a process saves and exits with code
75, and each file tells its scheduler to run the same command again.

Sources: the manual pages of sbatch and srun; the JobSet API jobset.x-k8s.io/v1alpha2 and Job's
podFailurePolicy; SkyPilot's task YAML; gcloud's reference of queued-resources.
"""

import dataclasses
import json
import re
import shlex
from pathlib import Path

from gpt_jax.runs import secrets

ROOT = Path(__file__).resolve().parents[2]
TEMPLATES = Path(__file__).parent / 'templates'
IMAGE_ROOT = '/gpt_jax'  # this code in a container
CONSTANTS = {
  'stopped': 75,  # exit code of launch.py: preempted and saved, run the same command again
  'bad_arguments': 2,  # exit code: another try does not help
  'grace': 120,  # seconds to save: a step and a checkpoint have to fit
  'port': 8476,  # of process 0; the job has its nodes for itself
  'retries': 3,  # of a job that fails by itself
  'pause': 60,  # seconds between two polls of a queued slice
}
RUNTIMES = {  # runtime version of a TPU VM by generation, from Google's documentation
  'v4': 'tpu-ubuntu2204-base',
  'v5litepod': 'v2-alpha-tpuv5-lite',
  'v5p': 'v2-alpha-tpuv5',
  'v6e': 'v2-alpha-tpuv6e',
}
SETUP = (  # cloud images have older Pythons
  'command -v uv || python3 -m pip install --quiet uv; export PATH="$HOME/.local/bin:$PATH"; '
  'uv venv --clear --python 3.12 .venv && '
  'VIRTUAL_ENV=.venv uv pip install --require-hashes -r requirements/{}.lock'
)


@dataclasses.dataclass(frozen=True)
class JobSpec:
  """The command of a job, and the resources that it needs; the rows of HELP describe the fields."""

  args: tuple[str, ...]  # of launch.py: verb and flags
  workdir: str
  name: str
  nodes: int = 1
  shares: int = 0
  accelerators: str = ''
  image: str = ''
  queue: str = ''
  hours: int = 0
  storage: str = ''
  zone: str = ''


HELP = {  # of the flags of `launch.py render`
  'workdir': 'run or study folder, as all nodes see it',
  'name': 'name of the job; default: that of the experiment file',
  'nodes': 'machines',
  'shares': 'tasks that split a study, each on a node of its own; 0: no study',
  'accelerators': 'of a node: h100:8 (slurm), nvidia.com/gpu:8 (jobset), H100:8 (skypilot); of the '
  'slice: v6e-16 (tpu-vm)',
  'image': 'container with this code in /gpt_jax (jobset)',
  'queue': "partition (slurm), or Kueue's local queue (jobset)",
  'hours': 'time limit (slurm)',
  'storage': 'of the run folder: a volume claim (jobset), a bucket (skypilot, tpu-vm)',
  'zone': 'of Google Cloud (tpu-vm)',
}


@dataclasses.dataclass(frozen=True)
class Target:
  """One scheduler."""

  template: str  # file
  share: str  # expression of its language for the index of a task of a study
  patterns: dict  # field of JobSpec that it uses -> (pattern, example)
  needs: tuple[str, ...] = ()  # those of them that must be set


def job_spec(spec, overrides, name, workdir, shares, **fields):
  """The JobSpec that trains the experiment `spec` ('x.py:args') with --config.key=value overrides.

  shares: above 0, `spec` is a study. name: '' = that of the file.
  """
  path, dot, arguments = spec.partition('.py')
  full = Path(path + dot).resolve()
  args = (
    'ablate' if shares else 'train',
    f'--config={full.relative_to(ROOT) if full.is_relative_to(ROOT) else full}{arguments}',
    *overrides,
    f'--workdir={workdir}',
  )
  name = name or re.sub(r'[^a-z0-9]+', '-', Path(path).stem.lower()).strip('-')
  return JobSpec(args, workdir, name, shares=shares, **fields)


def render(to, job):
  """The text of the job file for a row of TARGETS; ValueError for a job that it cannot express."""
  target = TARGETS[to]
  check(to, target, job)
  return fill((TEMPLATES / target.template).read_text(), template_values(target, job))


def template_values(target, job):
  """{name: text} of every name in the templates; '' = leave its line out.

  Slurm starts one task per accelerator, as JAX counts them, and one per node of a study. Elsewhere a node
  has one process.
  """
  share = f'{target.share}/{job.shares}'
  shell_share = f' --share="{share}"' if job.shares else ''
  pod_args = [arg.replace('$', '$$') for arg in job.args]  # Kubernetes expands $(NAME)
  resource, _, count = job.accelerators.rpartition(':')
  runtime = RUNTIMES.get(job.accelerators.partition('-')[0], '')
  kind = 'tpu' if runtime or job.accelerators.startswith('tpu') else 'gpu' if job.accelerators else 'cpu'
  setup, command = SETUP.format(kind), shlex.join(job.args) + shell_share
  mount = str(Path(job.workdir).parent)
  where = shlex.quote(mount)
  values = CONSTANTS | dataclasses.asdict(job)
  values |= {
    'code': ROOT,
    'root': IMAGE_ROOT,
    'mount': mount,
    'nodes': job.shares or job.nodes,
    'nodes_of_task': 1 if job.shares else job.nodes,
    'last_share': str(job.shares - 1) if job.shares else '',
    'tasks': 1 if job.shares else count or 1,
    'command': command,
    'args': to_yaml(pod_args + [f'--share={share}'] * bool(job.shares)),
    'resource': resource,
    'count': count,
    'runtime': runtime,
    'setup': setup,
    'prepare': 'mkdir -p gpt_jax && tar xzf gpt_jax.tar.gz -C gpt_jax && cd gpt_jax && '
    f'{{ {setup}; }} && sudo install -d -o "$USER" {where} && {{ mountpoint -q {where} || '
    f'gcsfuse --implicit-dirs {job.storage.removeprefix("gs://")} {where}; }}',
    'run': f'cd gpt_jax && exec .venv/bin/python -u launch.py {command}',
  }
  return {name: '' if value == 0 else str(value) for name, value in values.items()}


def to_yaml(value):
  """A value in YAML, which contains JSON."""
  return json.dumps(value, ensure_ascii=False)


QUOTE = {None: str, 'sh': shlex.quote, 'yaml': to_yaml}


def fill(template, values):
  """Fill in the names of a template, without the lines of which a value is ''."""
  placeholder = re.compile(r'\{\{(\w+)(?:\|(\w+))?\}\}')
  lines = [
    placeholder.sub(lambda match: QUOTE[match[2]](values[match[1]]), line)
    for line in template.splitlines()
    if all(values[name] for name, _ in placeholder.findall(line))
  ]
  return '\n'.join(lines) + '\n'


def check(to, target, job):
  """Raise ValueError unless this scheduler takes every value, and none is a secret."""
  for word in (*job.args, *map(str, dataclasses.astuple(job)[1:])):
    if not word.isprintable():
      raise ValueError(f'{word!r} has a character that cannot be printed\nfix: remove it')
    if secrets.redact(word) != word:
      raise ValueError(
        f'{secrets.redact(word)} is a secret, and others can read a job file\n'
        "fix: set it in the environment of the job, by the scheduler's own means for secrets"
      )
  path = job.args[1].removeprefix('--config=')
  if path.startswith('/') and to != 'slurm':
    raise ValueError(
      f'--config={path} is not in {ROOT}, and --to={to} copies only that folder\n'
      'fix: put the file into experiments/'
    )
  if not re.fullmatch(r'/[^:]+/[^/:]+/?', job.workdir):
    raise ValueError(
      f'--workdir={job.workdir} is not a path that all nodes share\n'
      'fix: give an absolute path in a shared folder, such as /runs/name'
    )
  if not re.fullmatch(r'[a-z]([a-z0-9-]{0,38}[a-z0-9])?', job.name):
    raise ValueError(
      f'--name={job.name} is not a job name for every scheduler\n'
      'fix: use up to 40 of a-z, 0-9 and -, beginning with a letter'
    )
  if job.shares and job.nodes > 1:
    raise ValueError(
      f'--nodes={job.nodes}: each of the --shares={job.shares} has a node of its own\nfix: leave --nodes out'
    )
  for field in dataclasses.fields(JobSpec)[3:]:
    check_field(to, target, field, getattr(job, field.name))


def check_field(to, target, field, value):
  """Raise ValueError unless the target uses this field and its value fits, or it is at its default."""
  pattern, example = target.patterns.get(field.name, ('', ''))
  if value == field.default:
    if field.name in target.needs:
      raise ValueError(f'--to={to} needs --{field.name}\nfix: add it, as in --{field.name}={example}')
  elif not pattern:
    users = [f'--to={name}' for name, other in TARGETS.items() if field.name in other.patterns]
    raise ValueError(
      f'--{field.name}={value} means nothing to --to={to}\nfix: leave it out, or use {" or ".join(users)}'
    )
  elif not re.fullmatch(pattern, str(value)):
    raise ValueError(
      f'--{field.name}={value} has the wrong format for --to={to}\n'
      f'fix: write it as in --{field.name}={example}'
    )


COUNT = (r'[1-9]\d{0,3}', '4')
LABEL = r'[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?'
TARGETS = {
  'slurm': Target(
    'slurm.sh',
    '$SLURM_ARRAY_TASK_ID',
    {
      'nodes': COUNT,
      'shares': COUNT,
      'hours': COUNT,
      'queue': (LABEL, 'gpu'),
      'accelerators': (rf'({LABEL}:)?[1-9]\d?', 'h100:8'),
    },
  ),
  'jobset': Target(
    'jobset.yaml',
    '$(JAX_PROCESS_ID)',
    {
      'nodes': COUNT,
      'shares': COUNT,
      'queue': (r'[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?', 'research'),
      'accelerators': (r'[a-z0-9.-]+/[a-z0-9.-]+:[1-9]\d?', 'nvidia.com/gpu:8'),
      'image': (r'[A-Za-z0-9][\w./:@-]*', 'registry.example/gpt_jax:1'),
      'storage': (r'[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?', 'runs'),
    },
    needs=('image', 'storage'),
  ),
  'skypilot': Target(
    'skypilot.yaml',
    '$JAX_PROCESS_ID',
    {
      'nodes': COUNT,
      'shares': COUNT,
      'accelerators': (r'[A-Za-z0-9-]+(:[1-9]\d*)?', 'H100:8'),
      'storage': (r'(gs|s3|r2|cos|https)://[\w./-]+', 's3://my-runs'),
    },
    needs=('storage',),
  ),
  'tpu-vm': Target(
    'tpu-vm.sh',
    '',
    {
      'accelerators': (rf'({"|".join(RUNTIMES)})-[1-9]\d{{0,4}}', 'v6e-16'),
      'storage': (r'gs://[a-z0-9][a-z0-9._-]+', 'gs://my-runs'),
      'zone': (r'[a-z]+-[a-z]+\d+-[a-z]', 'us-east5-b'),
    },
    needs=('accelerators', 'storage', 'zone'),
  ),
}
