"""Compare config, code, versions and environment of all processes of a job before they compute together.

Without it, processes with different learning rates train to the end with a wrong loss, and processes with
different eval_every hang. Compared is everything but the flags of PER_PROCESS and paths of logs and caches.
The values travel through the key-value store of jax.distributed.
"""

import hashlib
import importlib.metadata
import json
import os
import platform
import re
from pathlib import Path

import jax

from gpt_jax.cluster import bootstrap
from gpt_jax.runs import records
from gpt_jax.runs.text_table import join_some

PER_PROCESS = ('coordinator', 'process', 'processes', 'traceback')  # flags that may differ
PER_PROCESS_SETTINGS = r'cache|dump|debug_log|logging|visible_devices|transport_address|socket_address'
ENVIRONMENT = ('XLA_FLAGS', 'LIBTPU_INIT_ARGS', 'NVIDIA_TF32_OVERRIDE')  # JAX_* are in jax.config
PACKAGES = (  # whose versions must be equal
  r'jax|libtpu|nvidia|flax|optax|orbax|grain|numpy|scipy|ml.dtypes|tokenizers|sentencepiece|pillow|soundfile'
)
FIRST_TOPIC = 'config'  # of the first comparison of a job
REPORT_SECONDS = 30  # to wait for the others in order to tell them of a failure
MAX_LINES = 12  # differences that an error names
WAIT_SECONDS = 120  # for a process that has joined, and imports or reads its config
DATA_SECONDS = 6 * 3600  # for one that hashes token caches: a terabyte at 50 MB/s
SOURCE = Path(__file__).parents[1]


def require_equal(topic, build, values_of, seconds=WAIT_SECONDS):
  """Return build() after checking that values_of(build()) is equal in all processes of the job.

  topic: name of this comparison, used once in a process. values_of: returns a nested dict for JSON. seconds:
  to wait for the slowest process.

  Raises:
    ValueError: in all processes, naming every key that differs with its values; or what one of them
      raised in `build`.
  """
  index, count = bootstrap.process_and_count()
  if count == 1:
    return build()
  result = failure = None
  try:
    result = build()
    message = {'values': records.flatten(records.to_json(values_of(result)))}
  except (ValueError, OSError) as error:
    failure, message = error, {'error': str(error)}
  if verdict := exchange(topic, index, count, message, seconds):
    jax.distributed.shutdown()  # waits for all, so that none of them dies of the death of another
    raise failure or ValueError(verdict)
  return result


def require_equal_data(fingerprint):
  """Check that all processes read the same data; waits for one that still hashes its token caches."""
  require_equal('data', lambda: None, lambda _: {'data': fingerprint}, DATA_SECONDS)


def report_failure(job, error):
  """Join the job of a process that cannot take part, so that the others fail at once with its error.

  They would wait for minutes for a process whose command line or experiment file is wrong.
  """
  bootstrap.join(job, agree=False, seconds=REPORT_SECONDS)
  exchange(FIRST_TOPIC, *bootstrap.process_and_count(), {'error': str(error)})
  jax.distributed.shutdown()


def exchange(topic, index, count, message, seconds=WAIT_SECONDS):
  """Send this process's message, and return the verdict of process 0 on those of all: '' or an error."""
  client, folder, timeout_ms = bootstrap.key_value_store(), f'gpt_jax/{topic}', seconds * 1000
  client.key_value_set(f'{folder}/{index}', json.dumps(message))
  try:
    if index == 0:
      messages = [
        json.loads(client.blocking_key_value_get(f'{folder}/{i}', timeout_ms)) for i in range(count)
      ]
      client.key_value_set(f'{folder}/verdict', describe_differences(messages))
    return client.blocking_key_value_get(f'{folder}/verdict', 2 * timeout_ms)
  except jax.errors.JaxRuntimeError as error:
    raise RuntimeError(
      f'{topic}: another process of this job ended, or has not answered in {seconds} s\n'
      'fix: read its log, then run the same command again in all processes'
    ) from error


def describe_differences(messages):
  """Return the error, cause and fix, for the messages of all processes in order; '' if they agree."""
  failures = [(i, message['error']) for i, message in enumerate(messages) if 'error' in message]
  if failures:
    cause, _, fix = failures[0][1].partition('\nfix: ')
    alike = [i for i, text in failures if text == failures[0][1]]
    return f'{processes(alike)}: {cause}\nfix: {fix or "correct that"}'
  values, lines = [message['values'] for message in messages], []
  for key in dict.fromkeys(key for own in values for key in own):
    by_value = {}
    for i, own in enumerate(values):
      by_value.setdefault(json.dumps(own[key]) if key in own else 'absent', []).append(i)
    if len(by_value) > 1:
      sides = [f'{value[:200]} in {processes(indices)}' for value, indices in by_value.items()]
      lines.append(f'{key}={join_some(sides, 4)}')
  if not lines:
    return ''
  more = f'; and {len(lines) - MAX_LINES} more' if len(lines) > MAX_LINES else ''
  return (
    f'the processes of this job differ: {"; ".join(lines[:MAX_LINES])}{more}\n'
    'fix: start all of them with the same command, files, packages and environment'
  )


def processes(indices):
  """Return 'process 3' or 'processes 1, 2, 5'."""
  return f'process{"es" * (len(indices) > 1)} {join_some(map(str, indices))}'


def job_values(verb, flags, config):
  """Return all that must be equal for the processes of a job to compute the same.

  verb: of the command line. flags: {name: value}. config: nested dict, of the experiment or of the run.
  """
  environ = {name: os.environ.get(name, '').split() for name in ENVIRONMENT}
  return {
    'verb': verb,
    'processes': bootstrap.process_and_count()[1],
    **{f'--{name}': value for name, value in flags.items() if name not in PER_PROCESS},
    'config': config,
    **{name: str(x) for name, x in jax.config.values.items() if not re.search(PER_PROCESS_SETTINGS, name)},
    **{name: sorted(flag for flag in flags if 'dump' not in flag) for name, flags in environ.items()},
    **package_versions(),
    **code_digests(),
  }


def package_versions():
  """Return {package: version} of Python and of what the numbers of a run depend on."""
  installed = {package.name.lower(): package.version for package in importlib.metadata.distributions()}
  return {'python': platform.python_version()} | {
    name: version for name, version in sorted(installed.items()) if re.match(PACKAGES, name)
  }


def code_digests():
  """Return {path of a source file of the package: hash}."""
  return {
    f'gpt_jax/{path.relative_to(SOURCE)}': hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    for path in sorted(SOURCE.rglob('*.py'))
  }


def device_values():
  """Return the devices of this process, which every process must have alike."""
  return {'devices': f'{jax.local_device_count()} x {jax.local_devices()[0].device_kind}'}
