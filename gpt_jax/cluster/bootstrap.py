"""Find the distributed job that this process belongs to, and join it.

Flags come first, then JAX_COORDINATOR_ADDRESS, then a scheduler's variables. Without any, the process is
a job of one on this machine: always a job, so that preemption and saving are one code path. Partial settings
fail immediately instead of waiting for processes that never come.

How JAX itself reads schedulers: jax/_src/clusters.
"""

import contextlib
import dataclasses
import glob
import importlib.util
import os
import re
import secrets
import socket
import sys
import threading
import time

import jax
import numpy as np
from jax._src.distributed import global_state  # jax.distributed has no public name for any of it
from jax.experimental import multihost_utils

from gpt_jax.cluster import watchdog
from gpt_jax.runs.loggers import say

HEARTBEAT_SECONDS = 20  # a process that is silent for longer is dead, and ends the others
# A process alone may be silent for long: nobody waits for it, and a laptop sleeps over a night.
HEARTBEAT_ALONE = 10**7
JOIN_SECONDS = 300  # nodes of a large job start minutes apart
QUIET_SECONDS = 5  # of joining, until a process prints whom it waits for
ADDRESS = r'([\w.-]+|\[[\da-fA-F:.]+\]):(?P<port>\d{1,5})'  # name, IPv4 or [IPv6], and port
# What the error of a collective contains when a process that it needs is gone.
PEER_LOST = r'(?i)gloo|nccl|connection|peer|heartbeat|coordination|unavailable|deadline'
UNSET = {'coordinator': '', 'processes': 0, 'process': -1}
VARIABLES = ('JAX_COORDINATOR_ADDRESS', 'JAX_NUM_PROCESSES', 'JAX_PROCESS_ID')  # of the same fields


@dataclasses.dataclass(frozen=True)
class DistributedJob:
  """A job of one or more processes, and which of them this one is."""

  scheduler: str = ''  # row of SCHEDULERS that JAX asks for the rest; '' = the fields below say all
  coordinator: str = ''  # host:port of process 0
  processes: int = 1
  process: int = 0


@dataclasses.dataclass(frozen=True)
class Scheduler:
  """How to detect a scheduler, and what JAX needs of it."""

  signs: tuple[str, ...]  # variables or files of which any one means that it started this process
  needs: tuple[str, ...]  # variables without which a process does not know its index
  fix: str  # how to start the job instead
  package: str = ''  # Python package that JAX needs to ask it


def find_job(environ, coordinator='', processes=0, process=-1):
  """The DistributedJob of this process; starts nothing.

  Args:
    environ: dict of environment variables.
    coordinator, processes, process: values of the flags; '', 0 and -1 where they are not set.

  Raises:
    ValueError: the settings are incomplete or contradict each other.
  """
  if processes == 1 and process <= 0:
    return DistributedJob()
  values = {'coordinator': coordinator, 'processes': processes, 'process': process}
  if values != UNSET:
    return complete_job('flags', values, [f'--{name}' for name in UNSET if values[name] == UNSET[name]])
  missing = [name for name in VARIABLES if not environ.get(name)]
  if not missing:
    address, count, index = VARIABLES
    numbers = int_variable(environ, count), int_variable(environ, index)
    return complete_job(address, dict(zip(UNSET, (environ[address], *numbers), strict=True)))
  if scheduler := detect_scheduler(environ):
    return DistributedJob(scheduler)
  if len(missing) < len(VARIABLES):
    return complete_job(' and '.join(name for name in VARIABLES if name not in missing), {}, missing)
  return DistributedJob()


def complete_job(source, values, missing=()):
  """A DistributedJob of these values; ValueError if some are missing or out of range."""
  if missing:
    raise ValueError(
      f'{source} describe this job in part: {", ".join(missing)} missing\n'
      'fix: give all of coordinator, processes and process, or --processes=1 to run alone'
    )
  if not 0 <= values['process'] < values['processes']:
    raise ValueError(
      f'process {values["process"]} of {values["processes"]} processes\n'
      'fix: number them from 0 to one less than their number'
    )
  address = re.fullmatch(ADDRESS, values['coordinator'])
  if not address or not 0 < int(address['port']) < 2**16:  # JAX would crash
    raise ValueError(
      f'coordinator={values["coordinator"]} is not HOST:PORT\n'
      'fix: give the address of process 0, such as 10.0.0.1:1234'
    )
  return DistributedJob(**values)


def int_variable(environ, name):
  """The integer in an environment variable."""
  try:
    return int(environ[name])
  except ValueError as error:
    raise ValueError(f'{name}={environ[name]} is not an integer\nfix: set it to one') from error


def detect_scheduler(environ):
  """The row of SCHEDULERS that started this process or ''; ValueError if its variables are incomplete."""
  for name, row in SCHEDULERS.items():
    has_package = not row.package or bool(importlib.util.find_spec(row.package))
    # A device may belong to another program: without the package this one does not compute on it.
    devices = [sign for sign in row.signs if sign[0] == '/' and has_package and glob.glob(sign)]
    if not devices and environ.keys().isdisjoint(row.signs):
      continue
    if name == 'slurm' and environ.get('SLURM_NTASKS') == '1':
      return ''  # a batch script of one task runs it with or without srun
    missing = [variable for variable in row.needs if variable not in environ]
    if not has_package:
      missing.append(f'the package {row.package}')
    if missing:
      raise ValueError(
        f'this process seems to belong to a {name} job, but has no {", ".join(missing)}\n'
        f'fix: {row.fix}, or give --processes=1 to run alone'
      )
    return name
  return ''


def has_peers(job):
  """Whether other processes belong to the job."""
  return bool(job.scheduler or job.coordinator)


def join(job, agree=True, seconds=JOIN_SECONDS):
  """Join the job, before anything else uses a device.

  agree: whether its processes agree on when to stop (Watchdog); else a signal ends each of them.
  seconds: to wait for the others; the process then exits with an error.
  """
  alone = not has_peers(job)
  # A process alone has no peers to agree with, and JAX's service would take its signals.
  jax.config.update('jax_enable_preemption_service', agree and not alone)
  options = {}  # of a scheduler, JAX detects all
  if not job.scheduler:
    options = dict(num_processes=job.processes, process_id=job.process, coordinator_address=job.coordinator)
    options['cluster_detection_method'] = 'deactivate'
  if alone:
    address = own_address()
    options |= dict(coordinator_address=address, coordinator_bind_address=address)
    jax.config.update('jax_check_proxy_envs', False)  # nothing goes through a proxy
  else:
    watchdog.handle_abort()
  with time_limit(job, seconds):
    try:
      jax.distributed.initialize(
        heartbeat_timeout_seconds=HEARTBEAT_ALONE if alone else HEARTBEAT_SECONDS,
        initialization_timeout=10 * seconds,  # JAX's own limit ends in a C++ abort
        **options,
      )
    except jax.errors.JaxRuntimeError as error:
      raise ValueError(
        f'coordinator={job.coordinator}: {error}\nfix: give a free port of the machine of process 0'
      ) from error


@contextlib.contextmanager
def time_limit(job, seconds):
  """Print whom this process waits for if the body takes long; exit when it takes so many seconds."""
  joined = threading.Event()
  place = f'at {job.coordinator}' if job.coordinator else f'of this {job.scheduler} job'
  others = f'process 0 {place}' if job.process else f'the other processes {place}'
  if job.processes > 1 and not job.process:
    others = f'processes 1 to {job.processes - 1} to come to {job.coordinator}'

  def wait():
    if joined.wait(QUIET_SECONDS):
      return
    print(f'waiting for {others}, up to {seconds} s', file=sys.stderr, flush=True)
    if not joined.wait(seconds - QUIET_SECONDS):
      watchdog.exit_now(
        f'error: waited {seconds} s for {others}\n'
        'fix: start all processes of the job with one --coordinator address that all can reach'
      )

  threading.Thread(target=wait, daemon=True, name='join').start()
  try:
    yield
  finally:
    joined.set()


def process_and_count():
  """Return (index of this process, number of processes) of the job that it has joined; starts no backend."""
  return global_state.process_id, global_state.num_processes or 1


def key_value_store():
  """Return the client of the job's key-value store, which needs no device and compiles nothing."""
  return global_state.client


def local_time():
  """time.localtime() of process 0, in all processes: clocks differ."""
  seconds = np.uint32(time.time() % 2**32)  # jax has no int64 here
  if jax.process_count() > 1:
    seconds = multihost_utils.broadcast_one_to_all(seconds)
  return time.localtime(int(seconds))


def own_address():
  """An address that only this process has, and no other machine reaches.

  Not a port where a socket by name does: another process may take a free port before this one listens, and
  gRPC lets both listen, so that each gets calls that are meant for the other, and dies of them.
  """
  if sys.platform != 'linux':
    return f'127.0.0.1:{free_port()}'
  return f'unix-abstract:gpt_jax.{os.getpid()}.{secrets.token_hex(8)}'


def free_port():
  """A free port of this machine."""
  with socket.socket() as listener:
    listener.bind(('127.0.0.1', 0))
    return listener.getsockname()[1]


def is_primary():
  """Whether this process writes and prints for its job; the others only compute."""
  return jax.process_index() == 0


def print_once(*values, **options):
  """Print in one process of a job."""
  if is_primary():
    say(*values, **options)


def exit_failed(code, error=None):
  """Exit at once in a job of several processes: waiting for the others would take minutes."""
  if process_and_count()[1] > 1:
    if isinstance(error, jax.errors.JaxRuntimeError) and re.search(PEER_LOST, str(error)):
      print(watchdog.PEER_LOST, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


MPI = 'OMPI_COMM_WORLD_'
SCHEDULERS = {
  'slurm': Scheduler(
    signs=('SLURM_JOB_ID',),
    needs=('SLURM_STEP_NODELIST', 'SLURM_NTASKS', 'SLURM_PROCID', 'SLURM_LOCALID'),
    fix='start it with srun, as `launch.py render --to=slurm` does',
  ),
  'Open MPI': Scheduler(
    signs=(f'{MPI}SIZE', 'OMPI_MCA_orte_hnp_uri'),
    needs=('OMPI_MCA_orte_hnp_uri', f'{MPI}SIZE', f'{MPI}RANK', f'{MPI}LOCAL_RANK'),
    fix='give --coordinator, --processes and --process (mpirun of Open MPI 5 sets no address)',
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
