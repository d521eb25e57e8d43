"""The locks in requirements/: exact versions, hashes, the versions that the tests run with."""

import re
import tomllib

import pytest

from tests import command_line

KINDS = {'cpu': 'jaxlib', 'gpu': 'jax-cuda13-plugin', 'tpu': 'libtpu'}  # and what only it needs
PIN = re.compile(r'([A-Za-z0-9._-]+)(\[[\w,-]+\])?==([A-Za-z0-9.]+)( ; [\w .\'=<>!]+)?')


def plain(name):
  return re.sub(r'[-_.]+', '-', name).lower()


def locked(kind):
  """{name: version} of a lock; asserts that it has nothing but pins with hashes."""
  text = (command_line.ROOT / 'requirements' / f'{kind}.lock').read_text()
  body = '\n'.join(line for line in text.splitlines() if line[0] != '#')
  actual = {}
  for entry in body.replace('\\\n', '').splitlines():
    pin, *hashes = re.split(r'\s+--hash=', entry)
    match = PIN.fullmatch(pin.strip())
    assert match, pin
    assert hashes and all(re.fullmatch(r'sha256:[0-9a-f]{64}', one) for one in hashes), pin
    assert plain(match[1]) not in actual, pin
    actual[plain(match[1])] = match[3]
  assert not re.search(r'://|git\+|@|--index|--find-links', text)
  return actual


@pytest.mark.parametrize('kind', KINDS)
def test_a_lock_has_every_dependency_with_hashes(kind):
  actual = locked(kind)
  project = tomllib.loads((command_line.ROOT / 'pyproject.toml').read_text())['project']
  names = {plain(re.split(r'[<>=\[ ]', line)[0]) for line in project['dependencies']}
  assert names | {KINDS[kind]} <= actual.keys()
  others = {name for other, name in KINDS.items() if other not in (kind, 'cpu')}
  assert not others & actual.keys()


@pytest.mark.parametrize('kind', KINDS)
def test_a_lock_has_the_versions_that_the_tests_run_with(kind):
  lines = (command_line.ROOT / 'requirements.txt').read_text().splitlines()
  tested = {plain(l.partition('==')[0]): l.partition('==')[2] for l in lines if '==' in l}
  actual = locked(kind)
  assert len(actual.keys() & tested.keys()) > 70
  assert [name for name in actual.keys() & tested.keys() if actual[name] != tested[name]] == []


def test_a_line_without_a_hash_is_noticed(tmp_path, monkeypatch):
  monkeypatch.setattr(command_line, 'ROOT', tmp_path)
  (tmp_path / 'requirements').mkdir()
  for text in ('jax==0.10.2\n', 'jax>=0.10 --hash=sha256:' + 'a' * 64, 'jax @ git+x'):
    (tmp_path / 'requirements' / 'cpu.lock').write_text(text)
    with pytest.raises(AssertionError):
      locked('cpu')
