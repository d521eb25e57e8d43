"""Digests: whatever is altered in files or in their manifest is found."""

import hashlib
import json
import random

import pytest

from gpt_jax.runs import digests


@pytest.fixture
def folder(tmp_path):
  """A folder of three files, one of them empty, and the manifest beside it."""
  step = tmp_path / 'step'
  (step / 'deep').mkdir(parents=True)
  for name, content in {'a': b'abc', 'deep/b': bytes(range(256)) * 9, 'deep/empty': b''}.items():
    (step / name).write_bytes(content)
  digests.write_manifest(tmp_path / 'step.json', step)
  return step


def check(folder, full=True):
  digests.verify_folder(folder.parent / 'step.json', folder, full)


def test_a_manifest_tells_sizes_and_digests(folder):
  manifest = json.loads((folder.parent / 'step.json').read_text())
  assert {name: entry['bytes'] for name, entry in manifest['files'].items()} == {
    'a': 3,
    'deep/b': 2304,
    'deep/empty': 0,
  }
  assert manifest['files']['a']['sha256'] == hashlib.sha256(b'abc').hexdigest()
  assert digests.total_bytes(folder.parent / 'step.json') == 2307
  assert digests.total_bytes(folder.parent / 'none.json') == 0
  check(folder)
  check(folder, full=False)


def flip(path, rng):
  content = bytearray(path.read_bytes())
  content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
  path.write_bytes(content)


def test_any_flipped_bit_of_the_manifest_is_found(folder):
  """Also in blanks, keys and digests; the manifest is read before files or sizes are compared."""
  path = folder.parent / 'step.json'
  content = path.read_bytes()
  for bit in range(8 * len(content)):
    altered = bytearray(content)
    altered[bit // 8] ^= 1 << bit % 8
    path.write_bytes(altered)
    with pytest.raises(digests.Corrupt, match=r'file .*/step\.json is changed'):
      check(folder, full=False)


def test_a_flipped_bit_is_found_in_full_and_not_by_size(folder):
  flip(folder / 'deep/b', random.Random(0))
  with pytest.raises(digests.Corrupt, match='^file deep/b is changed$'):
    check(folder)
  check(folder, full=False)


def truncate(folder):
  (folder / 'deep/b').write_bytes(b'short')


def remove(folder):
  (folder / 'deep/b').unlink()


def add(folder):
  (folder / 'deep/c').write_bytes(b'')


@pytest.mark.parametrize('full', [True, False], ids=['full', 'size'])
@pytest.mark.parametrize(
  ('harm', 'words'), [(truncate, 'b is changed'), (remove, 'b is missing'), (add, 'c is foreign')]
)
def test_sizes_tell_what_is_missing_foreign_or_cut(folder, harm, words, full):
  harm(folder)
  with pytest.raises(digests.Corrupt, match=f'^file deep/{words}$'):
    check(folder, full)


def test_files_of_the_operating_system_are_no_change(folder):
  for name in ('.DS_Store', 'deep/._b', 'deep/.nfs0000001', 'Thumbs.db'):
    (folder / name).write_bytes(b'icons')
  check(folder)


def test_a_file_that_can_be_made_again_is_made_again_and_that_is_said(tmp_path, caplog):
  path, calls = tmp_path / 'deep' / 'plan.npy', []

  def write(file):
    calls.append(file.write(b'0123456789'))

  for _ in range(2):
    assert digests.write_or_verify(path, write) == path
  assert calls == [10] and not caplog.text
  for harmed in (path, path.with_name('plan.npy.json')):
    flip(harmed, random.Random(0))
    digests.write_or_verify(path, write)
    assert f'writing {path} again: file ' in caplog.text
    caplog.clear()
  assert calls == [10] * 3 and path.read_bytes() == b'0123456789'
