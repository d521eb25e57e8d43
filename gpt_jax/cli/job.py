"""Join the distributed job that a command line belongs to, and agree with its other processes."""

import dataclasses
import os

from absl import flags

from gpt_jax.cli import args
from gpt_jax.cluster.watchdog import process_watchdog

FLAGS = flags.FLAGS
VERBS = ('train', 'sample', 'evaluate', 'import')  # that several processes may run together


def join(verb, read_config, agree=False, **values):
  """Join the job of this process, and return read_config(), which must be equal in all its processes.

  agree: its processes stop together when one is asked to. values: what else must be equal.
  """
  from gpt_jax.cluster import agreement, bootstrap

  own_job = bootstrap.find_job(os.environ, FLAGS.coordinator, FLAGS.processes, FLAGS.process)
  bootstrap.join(own_job, agree)
  if agree:
    process_watchdog().wait_for_save()
    process_watchdog().share_requests(*bootstrap.process_and_count())
  own = {name: x for name, x in FLAGS.flag_values_dict().items() if not name.startswith('config')} | values
  as_dict = lambda config: dataclasses.asdict(config) if dataclasses.is_dataclass(config) else config
  config = agreement.require_equal(
    agreement.FIRST_TOPIC, read_config, lambda config: agreement.job_values(verb, own, as_dict(config))
  )
  agreement.require_equal('devices', lambda: None, lambda _: agreement.device_values())
  return config


def report_failure(argv, error):
  """Tell the other processes of the job, if there are any, why this one failed before it joined them."""
  from gpt_jax.cluster import agreement, bootstrap

  number = lambda name, default: int(args.flag_value(argv, name) or default)
  try:
    job = bootstrap.find_job(
      os.environ, args.flag_value(argv, 'coordinator'), number('processes', 0), number('process', -1)
    )
  except ValueError:  # it does not know its job
    return
  if bootstrap.has_peers(job) and bootstrap.process_and_count()[1] == 1:
    agreement.report_failure(job, error)
