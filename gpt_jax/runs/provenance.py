"""Provenance: the versions, command line, commit and uncommitted changes behind a run.

A commit alone does not identify the code where files were edited, or are new and were never added. Of files
that git does not track only name, size and hash are kept: `git add` one to keep its text, too.
"""

import collections
import functools
import hashlib
import importlib.metadata
import pathlib
import platform
import re
import shlex
import subprocess
import sys

from gpt_jax.runs import secrets

PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'grain', 'numpy', 'gpt_jax')
MAX_DIFF_BYTES = 1_000_000
PLAIN_DIFF = ('--no-ext-diff', '--no-textconv', '--no-color', '--src-prefix=a/', '--dst-prefix=b/')


def versions(device=''):
  """Return versions, device, command line and commit; never environment variables, which hold secrets.

  Returns {name: str}: python, packages, platform, device (such as '8 x NVIDIA H100'), command, and in a
  git checkout git (the commit); uncommitted: `short_hash` of `uncommitted_diff()`, if that is not '';
  redacted: how many of its lines held secrets of which kinds, if any.
  """
  result = {'python': platform.python_version()}
  for package in PACKAGES:
    try:
      result[package] = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
      result[package] = 'source tree' if package == 'gpt_jax' else 'not installed'
  result |= {'platform': platform.platform(), 'device': device}
  commit, diff, redacted = commit_and_diff()
  if commit:
    result['git'] = commit
  if diff:
    result['git'] += ' with uncommitted changes'
    result['uncommitted'] = short_hash(diff.encode())
  if redacted:
    result['redacted'] = redacted
  executable, *arguments = sys.orig_argv
  args = secrets.redact('\0'.join([pathlib.Path(executable).name, *arguments])).split('\0')
  return result | {'command': shlex.join(args)}


def uncommitted_diff():
  """Return the running source's difference from its commit, without secrets; '' if it is clean."""
  return commit_and_diff()[1]


def short_hash(content):
  """Return the first 12 hex digits of the sha256 of some bytes."""
  return hashlib.sha256(content).hexdigest()[:12]


@functools.cache
def commit_and_diff():
  """Return (commit, diff, what was redacted) of this checkout; all '' outside a checkout or without git.

  The diff is of tracked files against the commit, and `git apply` takes it. Before it: new .py files, and the
  largest changes if all are longer than MAX_DIFF_BYTES, by name, size and hash. Cached for the process: later
  edits are not what it runs.
  """
  # A checkout that does not track this file is another project that contains our package.
  if not run_git('ls-files', pathlib.Path(__file__).name):
    return '', '', ''
  root = pathlib.Path(run_git('rev-parse', '--show-toplevel').strip())
  text = run_git('diff', *PLAIN_DIFF, 'HEAD', '--', ':/', ':!/benchmarks/results')
  parts, head, counts = (
    re.split(r'(?m)^(?=diff --git )', text)[text.startswith('diff') :],
    [],
    collections.Counter(),
  )
  for k in sorted(range(len(parts)), key=lambda k: -len(parts[k])):
    name = parts[k].partition('\n')[0].rpartition(' b/')[2]
    if sum(map(len, parts)) > MAX_DIFF_BYTES:
      head.append(describe_file('left out of this diff', name, parts[k].encode()))
      parts[k] = ''
    parts[k], redacted = secrets.redact_lines(parts[k], code=name.endswith('.py'))
    counts.update(redacted)
  for name in run_git('ls-files', '-z', '--others', '--exclude-standard', '--full-name', ':/*.py').split(
    '\0'
  ):
    path = root / name
    if name and path.is_file() and not path.is_symlink():
      head.append(describe_file('not tracked', name, path.read_bytes()))
  redacted = secrets.describe(counts)
  diff = ''.join(f'{line}\n' for line in (*head, redacted) if line) + ''.join(parts)
  return run_git('rev-parse', 'HEAD').strip(), diff, redacted


def describe_file(state, name, content):
  """Return a line with the name, size and hash of a file or of its change."""
  return (
    f'{state}: {secrets.redact(name)}, {len(content):,} bytes, sha256 {hashlib.sha256(content).hexdigest()}'
  )


def run_git(*arguments):
  """Return the output of a git command in this checkout, '' if it fails."""
  command = ('git', '-C', str(pathlib.Path(__file__).resolve().parent), *arguments)
  try:
    done = subprocess.run(command, capture_output=True, timeout=20, check=True)
  except (OSError, subprocess.SubprocessError):  # no git, or no checkout
    return ''
  return done.stdout.decode('utf-8', 'replace')
