"""The compilation cache: writable by its owner only, and never in a run."""

import os
import pathlib

import pytest

from gpt_jax.runs.compilation_cache import VARIABLE, enable_compilation_cache
from tests import command_line, tiny_runs


def test_the_default_folder_is_private(tmp_path):
  environment = {'XDG_CACHE_HOME': str(tmp_path)}
  folder = enable_compilation_cache(environment)
  assert folder.parent == tmp_path / 'gpt_jax' / 'compiled'
  assert folder.stat().st_mode & 0o777 == 0o700
  assert environment[VARIABLE] == str(folder)


def test_a_home_that_others_can_write_to_is_not_used(tmp_path):
  environment = {'XDG_CACHE_HOME': str(tmp_path)}
  enable_compilation_cache(environment).chmod(0o777)
  del environment[VARIABLE]
  assert enable_compilation_cache(environment) is None and VARIABLE not in environment


def test_an_empty_variable_disables_the_cache(tmp_path):
  environment = {'XDG_CACHE_HOME': str(tmp_path), VARIABLE: ''}
  assert enable_compilation_cache(environment) is None
  assert VARIABLE not in environment and not list(tmp_path.iterdir())


@pytest.mark.parametrize('mode', [0o720, 0o702, 0o777])
def test_a_folder_that_others_can_write_to_is_an_error(tmp_path, mode):
  folder = tmp_path / 'compiled'
  folder.mkdir()
  folder.chmod(mode)
  (tmp_path / 'link').symlink_to(folder)
  for name in ('compiled', 'link'):
    with pytest.raises(ValueError) as error:
      enable_compilation_cache({VARIABLE: str(tmp_path / name)})
    tiny_runs.assert_two_lines(error.value, str(tmp_path / name), 'can be written by others')


@pytest.mark.skipif(os.getuid() != 0, reason='only root can give a folder away')
def test_a_folder_of_another_owner_is_an_error(tmp_path):
  folder = tmp_path / 'compiled'
  folder.mkdir(mode=0o700)
  os.chown(folder, 12345, 12345)
  with pytest.raises(ValueError, match='can be written by others'):
    enable_compilation_cache({VARIABLE: str(folder)})


@pytest.mark.parametrize('place', ['run/compiled', 'run', 'run/checkpoints/3/compiled'])
def test_a_folder_in_a_run_is_an_error(tmp_path, place):
  run = tmp_path / 'run'
  run.mkdir()
  with pytest.raises(ValueError) as error:  # also before the run exists
    enable_compilation_cache({VARIABLE: str(tmp_path / place)}, [str(run)])
  tiny_runs.assert_two_lines(error.value, 'lies in a run')
  (run / 'config.json').write_text('{}')
  with pytest.raises(ValueError, match='lies in a run'):
    enable_compilation_cache({VARIABLE: str(tmp_path / place)})


def test_the_command_line_reports_the_error(capsys, monkeypatch, tmp_path):
  call = command_line.in_process(capsys, monkeypatch)
  monkeypatch.setenv(VARIABLE, str(tmp_path / 'run' / 'compiled'))
  outcome = call('sample', f'--workdir={tmp_path}/run')
  command_line.assert_user_error(outcome, 'lies in a run')


def test_nothing_deserializes_executables():
  """Compiled programs come from that folder or from a compiler, never from a file of a run."""
  for path in [command_line.ROOT / 'launch.py', *pathlib.Path(command_line.ROOT, 'gpt_jax').rglob('*.py')]:
    assert 'serialize_executable' not in path.read_text(), path
