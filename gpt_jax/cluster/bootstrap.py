"""Who am I? Finds the job that this process belongs to, and joins it.

Flags come before JAX_COORDINATOR_ADDRESS, that before what a scheduler says, and a process that
nobody speaks to is a job of one on 127.0.0.1: always a job, so that stopping and saving work alike.
A scheduler that says half of it is an error now, not a wait for processes that never come.

How JAX itself reads schedulers: jax/_src/clusters.
"""

import dataclasses
import glob
import importlib.util
import os
import re
import socket
import sys
import time

import jax
import numpy as np
from jax.experimental import multihost_utils

from gpt_jax.cluster import guard

# Seconds: a process that is silent for longer is dead, and ends the others.
SILENCE = 20
# Seconds that a process alone may be silent: nobody waits for it, and a laptop sleeps over a night.
ALONE = 10**7
# Seconds until all must have joined: nodes of a large job start minutes apart.
GATHERING = 300
# What a collective says when a process that it needs is gone.
LOST = r'(?i)gloo|nccl|connection|peer|heartbeat|coordination|unavailable|deadline'


@dataclasses.dataclass(frozen=True)
class Job:
  """What this process is told about its job."""

  scheduler: str = ''  # row of SCHEDULERS that JAX shall ask; '' = the fields below say all
  coordinator: str = ''  # host:port of process 0
  processes: int = 1
  process: int = 0


@dataclasses.dataclass(frozen=True)
class Scheduler:
  """How to tell that a scheduler started this process, and that it told all."""

  signs: tuple[str, ...]  # any of these variables, or files, means: it did
  needs: tuple[str, ...]  # variables without which a process knows not who it is
  fix: str  # how it should have been started
  package: str = ''  # that JAX needs to ask it


def find(environ, coordinator='', processes=0, process=-1):
  """The Job of this process from flags and environment variables; starts nothing.

  Args:
    environ: dict of environment variables.
    coordinator, processes, process: values of the flags; '', 0 and -1 where they were not given.

  Raises:
    ValueError: what was said is incomplete.
  """
  if processes == 1 and process <= 0:
    return Job()
  if coordinator or processes or process >= 0:
    given = {'coordinator': coordinator, 'processes': processes, 'process': process}
    unset = {'coordinator': '', 'processes': 0, 'process': -1}
    missing = [f'--{name}' for name, value in given.items() if value == unset[name]]
    return complete('flags', given, missing)
  names = {'processes': 'JAX_NUM_PROCESSES', 'process': 'JAX_PROCESS_ID'}
  if address := environ.get('JAX_COORDINATOR_ADDRESS'):
    missing = [name for name in names.values() if name not in environ]
    if not missing:
      numbers = {key: whole(environ, name) for key, name in names.items()}
      return complete('JAX_COORDINATOR_ADDRESS', {'coordinator': address, **numbers}, ())
    if not detected(environ):
      return complete('JAX_COORDINATOR_ADDRESS', {}, missing)
  if name := detected(environ):
    return Job(scheduler=name)
  if told := [name for name in names.values() if name in environ]:
    return complete(' and '.join(told), {}, ['JAX_COORDINATOR_ADDRESS'])
  return Job()


def complete(source, given, missing):
  """A Job of what was given, if it is all there."""
  if missing:
    raise ValueError(
      f'{source} name this job in part: {", ".join(missing)} missing\n'
      'fix: give all of coordinator, processes and process, or --processes=1 to run alone'
    )
  if not 0 <= given['process'] < given['processes']:
    raise ValueError(
      f'process {given["process"]} of {given["processes"]} processes\n'
      'fix: number them from 0 to one less than their number'
    )
  if ':' not in given['coordinator']:
    raise ValueError(f'coordinator {given["coordinator"]} names no port\nfix: give HOST:PORT of process 0')
  return Job(**given)


def whole(environ, name):
  """The whole number in a variable."""
  try:
    return int(environ[name])
  except ValueError as error:
    raise ValueError(f'{name}={environ[name]} is no number\nfix: set it to one') from error


def detected(environ):
  """The scheduler that started this process, '' if none did; ValueError if it told only half."""
  for name, row in SCHEDULERS.items():
    packaged = not row.package or bool(importlib.util.find_spec(row.package))
    # A device may be another's: without the package nobody means to compute on it.
    devices = [sign for sign in row.signs if sign[0] == '/' and packaged and glob.glob(sign)]
    if not devices and environ.keys().isdisjoint(row.signs):
      continue
    if name == 'slurm' and environ.get('SLURM_NTASKS') == '1':
      return ''  # a batch script of one task runs it with or without srun
    missing = [variable for variable in row.needs if variable not in environ]
    if not packaged:
      missing.append(f'the package {row.package}')
    if missing:
      raise ValueError(
        f'this process looks like one of a {name} job, but has no {", ".join(missing)}\n'
        f'fix: {row.fix}, or give --processes=1 to run alone'
      )
    return name
  return ''


def join(job, agree=True):
  """Join the job; before anything else touches a device.

  agree: whether its processes shall agree on when to stop (guard.Guard); else signals end them.
  """
  alone = not (job.scheduler or job.coordinator)
  # A process alone has nobody to agree with, and JAX's service would take its signals.
  jax.config.update('jax_enable_preemption_service', agree and not alone)
  if job.scheduler:
    jax.distributed.initialize(heartbeat_timeout_seconds=SILENCE, initialization_timeout=GATHERING)
    return
  address, bind = job.coordinator, None
  if alone:
    address = bind = f'127.0.0.1:{free_port()}'  # of no interest to other machines
    jax.config.update('jax_check_proxy_envs', False)  # nothing goes through a proxy
  jax.distributed.initialize(
    address,
    job.processes,
    job.process,
    cluster_detection_method='deactivate',
    coordinator_bind_address=bind,
    heartbeat_timeout_seconds=ALONE if alone else SILENCE,
    initialization_timeout=GATHERING,
  )


def now():
  """The time in process 0, as time.localtime gives it: clocks differ."""
  seconds = np.int32(time.time())
  if jax.process_count() > 1:
    seconds = multihost_utils.broadcast_one_to_all(seconds)
  return time.localtime(int(seconds))


def free_port():
  """A port of this machine that nobody listens on now."""
  with socket.socket() as listener:
    listener.bind(('127.0.0.1', 0))
    return listener.getsockname()[1]


def primary():
  """Whether this process of a job writes and prints; the others compute."""
  return jax.process_index() == 0


def say(*words, **options):
  """Print, in one process of a job."""
  if primary():
    print(*words, **options)


def leave(code, error=None):
  """End a process of several that failed: waiting for the others would last for minutes."""
  if jax.distributed.is_initialized() and jax.process_count() > 1:
    if isinstance(error, jax.errors.JaxRuntimeError) and re.search(LOST, str(error)):
      print(guard.DEAD, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


SCHEDULERS = {
  'slurm': Scheduler(
    signs=('SLURM_JOB_ID',),
    needs=('SLURM_STEP_NODELIST', 'SLURM_NTASKS', 'SLURM_PROCID', 'SLURM_LOCALID'),
    fix='start it by srun, as `launch.py render --to=slurm` does',
  ),
  'Open MPI': Scheduler(
    signs=('OMPI_COMM_WORLD_SIZE', 'OMPI_MCA_orte_hnp_uri'),
    needs=(
      'OMPI_MCA_orte_hnp_uri',
      'OMPI_COMM_WORLD_SIZE',
      'OMPI_COMM_WORLD_RANK',
      'OMPI_COMM_WORLD_LOCAL_RANK',
    ),
    fix='give --coordinator, --processes and --process (mpirun of Open MPI 5 tells no address)',
  ),
  'TPU': Scheduler(
    signs=('TPU_WORKER_HOSTNAMES', 'MEGASCALE_COORDINATOR_ADDRESS', '/dev/accel[0-9]*', '/dev/vfio/[0-9]*'),
    needs=(),
    fix='pip install libtpu',
    package='libtpu',
  ),
  'Kubernetes': Scheduler(
    signs=('JOB_COMPLETION_INDEX',),
    needs=('KUBERNETES_SERVICE_HOST',),
    fix='set JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, as `launch.py render '
    '--to=jobset` does, or pip install kubernetes',
    package='kubernetes',
  ),
}
