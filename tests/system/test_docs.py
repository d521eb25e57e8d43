"""The site of the documentation: built without a warning, offline, with README and linked files."""

import subprocess
import sys

import pytest

from benchmarks import table
from gpt_jax import config
from gpt_jax.cli import config_help
from tests import command_line


def test_every_page_is_in_the_navigation():
  listed = (command_line.ROOT / 'mkdocs.yml').read_text().partition('nav:')[2]
  assert {path.name for path in table.DOCS[1:]} == set(listed.replace('-', ' ').split()) & {
    path.name for path in (command_line.ROOT / 'docs').iterdir()
  }


def test_readme_fits_two_screens_and_links_every_page():
  text = table.DOCS[0].read_text()
  assert len(text.splitlines()) <= 90
  assert all(f'docs/{path.name}' in text for path in table.DOCS[1:])


def test_config_keys_are_listed_with_their_meaning():
  rows = [*config_help.keys(config.Config)]
  assert len(rows) > 150 and all(text for _, _, text in rows)
  assert '| `layers` | `4` | blocks |' in config_help.format_tables(config.Config)


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path):
  for package in ('material', 'mkdocstrings'):
    pytest.importorskip(package, reason="needs pip install -e '.[docs]'")
  command = [sys.executable, '-m', 'mkdocs', 'build', '--strict', '--quiet', '-d', str(tmp_path)]
  done = subprocess.run(command, cwd=command_line.ROOT, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  page = (tmp_path / 'index.html').read_text()
  assert 'src="files/benchmarks/results/shakespeare_char.png"' in page
  assert (tmp_path / 'files/benchmarks/results/demo.json').exists()
  assert 'muon' in (tmp_path / 'search/search_index.json').read_text()
  assert 'https://fonts' not in page
