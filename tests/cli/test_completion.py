"""Completion of verbs, flags, values and files, by real shells."""

import shlex
import shutil
import subprocess

import pytest

from tests import command_line


@pytest.fixture(scope='module')
def script(tmp_path_factory):
  """The script for bash, which the command line printed."""
  with pytest.MonkeyPatch.context() as patch:
    path = tmp_path_factory.mktemp('completion') / 'gpt-jax.bash'
    for name, value in command_line.ENVIRONMENT.items():
      patch.setenv(name, value)
    with open(path, 'w') as file:
      patch.setattr('sys.stdout', file)
      assert command_line.run_verb('--completion=bash') == 0
  return path


def complete(script, words, folder):
  """The completions of the last of the words, which are cut as bash cuts them."""
  code = (
    f'source {shlex.quote(str(script))}; COMP_WORDS=({shlex.join(words)}); '
    f'COMP_CWORD={len(words) - 1}; _gpt_jax; printf "%s\\n" "${{COMPREPLY[@]}}"'
  )
  done = subprocess.run(['bash', '-c', code], capture_output=True, text=True, cwd=folder)
  assert done.returncode == 0 and not done.stderr, done.stderr
  return done.stdout.split()


@pytest.mark.parametrize(
  ('words', 'expected'),
  [
    (['gpt-jax', 'ev'], ['evaluate']),
    (['gpt-jax', 'train', '--config.optim.sch'], ['--config.optim.schedule=']),
    (['gpt-jax', 'train', '--work'], ['--workdir=']),
    (['gpt-jax', 'ablate', '--dry'], ['--dry_run']),
    (['gpt-jax', 'render', '--to', '=', 'sl'], ['slurm']),
    (['gpt-jax', 'train', '--workdir', '=', 'ru'], ['runs']),
    (['gpt-jax', 'sample', '--to=im'], ['--to=image']),  # as zsh passes it
  ],
)
def test_bash_completes(script, tmp_path, words, expected):
  (tmp_path / 'runs').mkdir()
  assert complete(script, words, tmp_path) == expected


def test_shipped_experiments_are_completed(script, tmp_path):
  assert {'demo', 'norms'} <= set(complete(script, ['gpt-jax', 'train', '--config', '='], tmp_path))


@pytest.mark.skipif(not shutil.which('zsh'), reason='zsh is not installed')
def test_zsh_reads_the_script(script, tmp_path):
  code = f'autoload -Uz compinit bashcompinit; compinit -u; bashcompinit; source {script}; which _gpt_jax'
  done = subprocess.run(['zsh', '-fc', code], capture_output=True, text=True, cwd=tmp_path)
  assert done.returncode == 0 and 'COMPREPLY' in done.stdout, done.stderr


def test_another_shell_and_the_version(capsys, monkeypatch):
  call = command_line.in_process(capsys, monkeypatch)
  command_line.assert_user_error(call('--completion=fish'), '--completion=fish')
  code, out, _ = call('--version')
  assert code == 0 and out.startswith('gpt_jax ')
