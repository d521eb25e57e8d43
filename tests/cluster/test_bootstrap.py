"""Detect the distributed job of a process from flags and environment variables."""

import subprocess
import sys

import pytest

from gpt_jax.cluster import bootstrap
from gpt_jax.cluster.bootstrap import DistributedJob, find_job
from tests.tiny_runs import assert_two_lines

SLURM = {
  'SLURM_JOB_ID': '7',
  'SLURM_STEP_NODELIST': 'a[1-2]',
  'SLURM_NTASKS': '4',
  'SLURM_PROCID': '1',
  'SLURM_LOCALID': '1',
}
MPI = {
  'OMPI_MCA_orte_hnp_uri': '7.0;tcp://10.0.0.1:5',
  'OMPI_COMM_WORLD_SIZE': '2',
  'OMPI_COMM_WORLD_RANK': '0',
  'OMPI_COMM_WORLD_LOCAL_RANK': '0',
}
ADDRESS = {'JAX_COORDINATOR_ADDRESS': 'a:1234', 'JAX_NUM_PROCESSES': '4', 'JAX_PROCESS_ID': '3'}
PODS = {'JOB_COMPLETION_INDEX': '1', 'KUBERNETES_SERVICE_HOST': '10.0.0.1'}


@pytest.fixture(autouse=True)
def no_accelerators(monkeypatch):
  """This machine has no accelerators and all packages."""
  monkeypatch.setattr(bootstrap.glob, 'glob', lambda pattern: [])
  monkeypatch.setattr(bootstrap.importlib.util, 'find_spec', lambda name: name)


def without(variables, name):
  return {key: value for key, value in variables.items() if key != name}


@pytest.mark.parametrize(
  ('environ', 'flags', 'job'),
  [
    ({}, {}, DistributedJob()),
    ({'HOME': '/', 'WORLD_SIZE': '8'}, {}, DistributedJob()),
    (SLURM, {}, DistributedJob('slurm')),
    (SLURM | {'SLURM_NTASKS': '1'}, {}, DistributedJob()),
    ({'SLURM_JOB_ID': '7', 'SLURM_NTASKS': '1'}, {}, DistributedJob()),  # in a batch script, without srun
    (SLURM, {'processes': 1}, DistributedJob()),
    (MPI, {}, DistributedJob('Open MPI')),
    (PODS, {}, DistributedJob('Kubernetes')),
    ({'TPU_WORKER_HOSTNAMES': 'a,b'}, {}, DistributedJob('TPU')),
    ({'MEGASCALE_COORDINATOR_ADDRESS': 'a'}, {}, DistributedJob('TPU')),
    (ADDRESS, {}, DistributedJob('', 'a:1234', 4, 3)),
    (ADDRESS | SLURM, {}, DistributedJob('', 'a:1234', 4, 3)),
    ({'JAX_COORDINATOR_ADDRESS': 'a:1234'} | SLURM, {}, DistributedJob('slurm')),  # it knows the rest
    (ADDRESS | SLURM, dict(coordinator='b:5', processes=2, process=0), DistributedJob('', 'b:5', 2, 0)),
    (ADDRESS, {'processes': 1}, DistributedJob()),
  ],
)
def test_flags_come_before_address_before_scheduler(environ, flags, job):
  assert find_job(environ, **flags) == job


def test_an_accelerator_in_the_machine_is_a_tpu(monkeypatch):
  monkeypatch.setattr(bootstrap.glob, 'glob', lambda pattern: [pattern] * ('accel' in pattern))
  assert find_job({}) == DistributedJob('TPU')
  monkeypatch.setattr(bootstrap.importlib.util, 'find_spec', lambda name: None)
  assert find_job({}) == DistributedJob()  # nobody means to compute on it


@pytest.mark.parametrize(
  ('environ', 'flags', 'cause', 'fix'),
  [
    ({}, {'coordinator': 'a:1'}, '--processes, --process missing', '--processes=1'),
    ({}, dict(processes=1, process=5), '--coordinator missing', 'give all'),
    (without(ADDRESS, 'JAX_COORDINATOR_ADDRESS'), {}, 'JAX_COORDINATOR_ADDRESS missing', 'give'),
    (SLURM, {'process': 0}, '--coordinator, --processes missing', '--processes=1'),
    ({}, dict(coordinator='a:1', processes=2, process=2), 'process 2 of 2', 'from 0'),
    *(
      ({}, dict(coordinator=address, processes=2, process=1), f'coordinator={address} is not', '10.0.0.1:1')
      for address in ('a', 'a:port', ':1', 'a:0', 'a:65536', 'a b:1', 'http://a:1', '::1:1', 'a:1/x')
    ),
    ({'JAX_COORDINATOR_ADDRESS': 'a:1'}, {}, 'JAX_NUM_PROCESSES, JAX_PROCESS_ID', '--processes=1'),
    (ADDRESS | {'JAX_PROCESS_ID': 'two'}, {}, 'JAX_PROCESS_ID=two is not an integer', 'set it'),
    *((without(SLURM, name), {}, name, 'srun') for name in SLURM if name != 'SLURM_JOB_ID'),
    ({'SLURM_JOB_ID': '7', 'SLURM_NTASKS': '4'}, {}, 'SLURM_PROCID', '--processes=1 to run alone'),
    *((without(MPI, name), {}, name, '--coordinator') for name in MPI if 'SIZE' not in name),
    ({'OMPI_COMM_WORLD_SIZE': '2'}, {}, 'OMPI_MCA_orte_hnp_uri', 'Open MPI 5'),
    (without(PODS, 'KUBERNETES_SERVICE_HOST'), {}, 'KUBERNETES_SERVICE_HOST', 'jobset'),
  ],
)
def test_partial_settings_fail_immediately(environ, flags, cause, fix):
  with pytest.raises(ValueError) as error:
    find_job(environ, **flags)
  assert fix in assert_two_lines(error.value, cause)[1]


@pytest.mark.parametrize(
  ('environ', 'package'), [(PODS, 'kubernetes'), ({'TPU_WORKER_HOSTNAMES': 'a'}, 'libtpu')]
)
def test_a_missing_package_of_a_scheduler_fails(monkeypatch, environ, package):
  monkeypatch.setattr(bootstrap.importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(ValueError) as error:
    find_job(environ)
  _, fix = assert_two_lines(error.value, f'the package {package}')
  assert f'pip install {package}' in fix


def test_free_port_is_unprivileged():
  assert 1024 < bootstrap.free_port() < 65536


@pytest.mark.skipif(sys.platform != 'linux', reason='sockets by name are of Linux')
def test_a_process_alone_listens_on_no_port():
  """Two runs of one machine that chose the same free port died of each other."""
  code = (
    'from gpt_jax.cluster import bootstrap\n'
    'bootstrap.free_port = None\n'  # not called
    'bootstrap.join(bootstrap.DistributedJob())\n'
    'bootstrap.key_value_store().key_value_set("key", "value")\n'
    'print(bootstrap.key_value_store().blocking_key_value_get("key", 1000), bootstrap.process_and_count())\n'
    'import psutil; print([c.laddr for c in psutil.Process().net_connections("tcp") if c.status == "LISTEN"])'
  )
  result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
  assert result.stdout.splitlines() == ['value (0, 1)', '[]']
  assert bootstrap.own_address() != bootstrap.own_address()


@pytest.mark.parametrize(
  'job, silence',
  [(bootstrap.DistributedJob(), 10**6), (bootstrap.DistributedJob(coordinator='10.0.0.1:1234'), 30)],
)
def test_only_a_single_process_may_miss_heartbeats(monkeypatch, job, silence):
  """A laptop that slept goes on; a peer that sleeps ends the others within 30 s."""
  options, config = {}, []
  monkeypatch.setattr(bootstrap.jax.distributed, 'initialize', lambda *args, **named: options.update(named))
  monkeypatch.setattr(bootstrap.jax.config, 'update', lambda *args: config.append(args))
  bootstrap.join(job)
  alone = not job.coordinator
  assert (options['heartbeat_timeout_seconds'] >= silence) == alone
  assert ('jax_enable_preemption_service', not alone) in config
