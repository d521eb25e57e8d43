"""The wheel: the console script and the package, and no top-level package beside it."""

import shutil
import subprocess
import sys
import zipfile

import pytest

from tests import command_line


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_its_command(tmp_path):
  pytest.importorskip('setuptools')
  source = tmp_path / 'source'
  for name in ('gpt_jax', 'experiments'):
    shutil.copytree(command_line.ROOT / name, source / name, ignore=shutil.ignore_patterns('__pycache__'))
  for name in ('pyproject.toml', 'README.md', 'LICENSE'):
    shutil.copy(command_line.ROOT / name, source)
  (source / 'tests').mkdir()
  (source / 'tests' / '__init__.py').touch()
  options = ('--no-deps', '--no-build-isolation', '--wheel-dir', str(tmp_path))
  command = (sys.executable, '-m', 'pip', 'wheel', '--quiet', *options, str(source))
  subprocess.run(command, check=True, capture_output=True, text=True)
  [path] = tmp_path.glob('*.whl')
  with zipfile.ZipFile(path) as wheel:
    names = wheel.namelist()
    [entry_points] = [wheel.read(name).decode() for name in names if name.endswith('entry_points.txt')]
  assert 'gpt-jax = gpt_jax.cli.entry:run' in entry_points
  tops = {name.split('/')[0].split('-')[0] for name in names}
  assert tops == {'gpt_jax'}
  assert 'gpt_jax/reports/report.css' in names
  assert any(name.endswith('share/gpt_jax/experiments/demo.py') for name in names)
