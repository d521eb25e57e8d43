"""What must be equal in all processes of a job is compared, and every difference is named."""

import dataclasses
import json
import threading

import pytest

from gpt_jax import config
from gpt_jax.cluster import agreement, bootstrap
from gpt_jax.runs import records
from tests.tiny_runs import assert_two_lines

VALUES = records.flatten(records.to_json({'config': dataclasses.asdict(config.Config())}))


class FakeStore:
  """The key-value store of jax.distributed for processes that are threads."""

  def __init__(self):
    self.values, self.changed = {}, threading.Condition()

  def key_value_set(self, key, value):
    with self.changed:
      self.values[key] = value
      self.changed.notify_all()

  def blocking_key_value_get(self, key, timeout_ms):
    with self.changed:
      assert self.changed.wait_for(lambda: key in self.values, timeout_ms / 1000)
      return self.values[key]


@pytest.fixture
def exchange(monkeypatch):
  """exchange(messages) -> the verdict that each process reads."""

  def run(messages):
    store = FakeStore()
    monkeypatch.setattr(bootstrap, 'key_value_store', lambda: store)
    verdicts = [None] * len(messages)

    def process(i):
      verdicts[i] = agreement.exchange('test', i, len(messages), messages[i])

    threads = [threading.Thread(target=process, args=(i,)) for i in range(len(messages))]
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join(30)
    return verdicts

  return run


def another(value):
  """A value of the same JSON type that is not equal."""
  if isinstance(value, bool):
    return not value
  if isinstance(value, int | float):
    return value + 1
  return [*value, 'x'] if isinstance(value, list) else {'x': 1} if isinstance(value, dict) else f'{value}x'


@pytest.mark.parametrize('key', VALUES)
def test_every_config_key_that_differs_is_named(key):
  other = VALUES | {key: another(VALUES[key])}
  cause, _ = agreement.describe_differences([{'values': x} for x in (VALUES, other)]).split('\n')
  assert cause == (
    f'the processes of this job differ: {key}={json.dumps(VALUES[key])[:200]} in process 0, '
    f'{json.dumps(other[key])[:200]} in process 1'
  )


def test_all_processes_read_one_verdict(exchange):
  assert exchange([{'values': VALUES}] * 3) == [''] * 3
  changed = {'values': VALUES | {'config.optim.lr': 0.5}}
  lost = {'values': {key: x for key, x in VALUES.items() if key != 'config.optim.lr'}}
  first, *others = exchange([{'values': VALUES}, changed, changed, lost])
  assert others == [first] * 3
  cause, _ = assert_two_lines(ValueError(first), 'the processes of this job differ')
  assert cause.endswith('optim.lr=0.001 in process 0, 0.5 in processes 1, 2, absent in process 3')
  many, _ = exchange([{'values': VALUES}, {'values': {}}])
  assert f'and {len(VALUES) - agreement.MAX_LINES} more' in many


def test_a_failure_of_one_process_is_the_verdict_of_all(exchange):
  failure = {'error': 'optim.lr=-1 is negative\nfix: use more than 0'}
  assert (
    exchange([{'values': VALUES}, failure, failure])
    == ['processes 1, 2: optim.lr=-1 is negative\nfix: use more than 0'] * 3
  )
  assert exchange([{'error': 'no such file'}, failure])[1].startswith('process 0: no such file\nfix: ')


def test_a_process_alone_compares_nothing(monkeypatch):
  monkeypatch.setattr(agreement, 'exchange', None)
  assert agreement.require_equal('test', lambda: 3, lambda _: 1 / 0) == 3


def test_settings_code_and_versions_are_compared(monkeypatch):
  flags = {'prompt': 'a', 'coordinator': 'b:1', 'process': 1}
  monkeypatch.setattr(bootstrap, 'process_and_count', lambda: (0, 2))
  monkeypatch.setenv('XLA_FLAGS', '--xla_dump_to=/tmp/0 --xla_b=2 --xla_a=1')
  values = agreement.job_values('sample', flags, {'optim': {'lr': 1}})
  assert values['--prompt'] == 'a' and values['verb'] == 'sample' and values['processes'] == 2
  assert '--coordinator' not in values and '--process' not in values
  assert values['XLA_FLAGS'] == ['--xla_a=1', '--xla_b=2']  # dumps are of a process
  assert {'python', 'jax', 'jaxlib', 'flax', 'numpy', 'gpt_jax/train.py', 'jax_enable_x64'} <= values.keys()
  assert 'jax_compilation_cache_dir' not in values
  json.dumps(records.to_json(values))
