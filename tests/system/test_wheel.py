"""The package: what its files hold, and its command from an empty environment in another directory."""

import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile

import pytest

from tests import command_line

STUDY = """
from gpt_jax.ablation.design import Study


def get_study(arg=''):
  return Study(
    base='experiments/sums.py:runlocal', question='Which rate?', factors={'optim.lr': [1e-3, 2e-3]}, seeds=2
  )
"""


def run(*command, **options):
  """Run a command -> its output."""
  done = subprocess.run([*map(str, command)], capture_output=True, text=True, **options)
  assert done.returncode == 0, done.stdout + done.stderr
  return done.stdout


def project():
  """pyproject.toml as a dict."""
  return tomllib.loads((command_line.ROOT / 'pyproject.toml').read_text())


def version_of(source):
  """The version that a build in a folder would have."""
  return run(sys.executable, '-m', 'setuptools_scm', cwd=source).strip().splitlines()[-1]


@pytest.mark.slow
def test_the_package_works_from_a_fresh_environment(tmp_path):
  """Source -> sdist -> wheel -> environment; the libraries are those of this one."""
  pytest.importorskip('setuptools_scm', reason='setuptools-scm is not installed')
  source, dist, elsewhere = tmp_path / 'source', tmp_path / 'dist', tmp_path / 'elsewhere'
  for name in ('gpt_jax', 'experiments'):
    shutil.copytree(command_line.ROOT / name, source / name, ignore=shutil.ignore_patterns('__pycache__'))
  for name in ('pyproject.toml', 'README.md', 'LICENSE'):
    shutil.copy(command_line.ROOT / name, source)
  (source / 'tests').mkdir()
  (source / 'tests' / '__init__.py').touch()
  assert version_of(source) == project()['tool']['setuptools_scm']['fallback_version']  # without git
  git = ('git', '-c', 'user.name=a', '-c', 'user.email=a@example.org')
  run('git', 'init', '--quiet', cwd=source)
  run('git', 'add', '.', cwd=source)
  run(*git, 'commit', '--quiet', '--message=All', cwd=source)
  run(*git, 'tag', '--annotate', '--message=Nine', 'v9.8.7', cwd=source)
  assert version_of(source) == '9.8.7'
  dist.mkdir()
  elsewhere.mkdir()
  build = f'from setuptools import build_meta; build_meta.build_sdist({str(dist)!r})'
  run(sys.executable, '-c', build, cwd=source)
  [sdist] = dist.glob('gpt_jax-9.8.7.tar.gz')
  with tarfile.open(sdist) as file:
    names = [name.partition('/')[2] for name in file.getnames()]
  assert {'LICENSE', 'README.md', 'experiments/demo.py', 'gpt_jax/cli/entry.py'} <= set(names)
  offline = ('--no-deps', '--no-build-isolation', '--no-index')
  run(sys.executable, '-m', 'pip', 'wheel', *offline, '--wheel-dir', dist, sdist)
  [wheel] = dist.glob('gpt_jax-9.8.7-*.whl')  # an sdist has no git, but PKG-INFO
  with zipfile.ZipFile(wheel) as file:
    names = file.namelist()
    [entry_points] = [file.read(name).decode() for name in names if name.endswith('entry_points.txt')]
  assert 'gpt-jax = gpt_jax.cli.entry:run' in entry_points
  assert {name.split('/')[0].split('-')[0] for name in names} == {'gpt_jax'}
  assert 'gpt_jax/reports/report.css' in names
  assert any(name.endswith('share/gpt_jax/experiments/demo.py') for name in names)

  venv.create(tmp_path / 'venv', symlinks=True)
  python = tmp_path / 'venv' / 'bin' / 'python'
  run(sys.executable, '-m', 'pip', '--python', python, 'install', *offline, wheel)
  [packages] = (tmp_path / 'venv').glob('lib/*/site-packages')
  libraries = [path for path in sys.path if path.endswith('site-packages')]
  (packages / 'libraries.pth').write_text('\n'.join(libraries))
  environment = os.environ | {
    'JAX_PLATFORMS': 'cpu',
    'JAX_DISABLE_MOST_OPTIMIZATIONS': '1',
    'JAX_COMPILATION_CACHE_DIR': str(tmp_path / 'compiled'),
    'HOME': str(elsewhere),
  }
  environment.pop('PYTHONPATH', None)
  command = lambda *arguments: run(python.with_name('gpt-jax'), *arguments, cwd=elsewhere, env=environment)
  where = run(python, '-c', 'import gpt_jax; print(gpt_jax.__file__)', cwd=elsewhere, env=environment)
  assert where.startswith(str(packages))
  command('train', '--config=sums.py:runlocal', '--workdir=runs/sums')
  assert (elsewhere / 'runs/sums/report.html').exists()
  assert command('sample', '--workdir=runs/sums', '--prompt=12+34', '--temperature=0').strip()
  (elsewhere / 'rates.py').write_text(STUDY)
  plan = command('ablate', '--config=rates.py', '--workdir=runs/rates', '--dry_run')
  assert 'optim.lr' in plan
  assert 'in five tasks' in command('train', '--config=demo', '--help')
  assert command('--version') == 'gpt_jax 9.8.7\n'
