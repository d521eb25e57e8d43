"""Provenance: the versions, command line, commit and uncommitted changes behind a run.

A commit alone does not identify the code where files were edited, or are new and were never added.
"""

import functools
import hashlib
import importlib.metadata
import pathlib
import platform
import shlex
import subprocess
import sys

from gpt_jax.runs.secrets import redact, redact_lines

PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'grain', 'numpy', 'gpt_jax')
MAX_DIFF_BYTES = 1_000_000
PLAIN_DIFF = ('--no-ext-diff', '--no-textconv', '--no-color', '--src-prefix=a/', '--dst-prefix=b/')


def versions(device=''):
  """Return versions, device, command line and commit; never environment variables, which hold secrets.

  Returns {name: str}: python, packages, platform, device (such as '8 x NVIDIA H100'), command, and in a
  git checkout git (the commit); uncommitted: `short_hash` of `uncommitted_diff()`, if that is not ''.
  """
  result = {'python': platform.python_version()}
  for package in PACKAGES:
    try:
      result[package] = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
      result[package] = 'source tree' if package == 'gpt_jax' else 'not installed'
  result |= {'platform': platform.platform(), 'device': device}
  commit, _ = commit_and_diff()
  if commit:
    result['git'] = commit
  if diff := uncommitted_diff():
    result['git'] += ' with uncommitted changes'
    result['uncommitted'] = short_hash(diff.encode())
  executable, *arguments = sys.orig_argv
  args = redact('\0'.join([pathlib.Path(executable).name, *arguments])).split('\0')
  return result | {'command': shlex.join(args)}


def uncommitted_diff():
  """Return the running source's difference from its commit, without secrets; '' if it is clean."""
  return redact_lines(commit_and_diff()[1])


def short_hash(content):
  """Return the first 12 hex digits of the sha256 of some bytes."""
  return hashlib.sha256(content).hexdigest()[:12]


@functools.cache
def commit_and_diff():
  """Return (commit, diff) of this checkout; ('', '') outside a checkout or without git.

  The diff is of tracked files against the commit, plus new .py files unless git ignores them;
  `git apply` takes it. Cached for the process: later edits are not what it runs.
  """
  # A checkout that does not track this file is another project that contains our package.
  if not run_git('ls-files', pathlib.Path(__file__).name):
    return '', ''
  root = pathlib.Path(run_git('rev-parse', '--show-toplevel').strip())
  diff = run_git('diff', *PLAIN_DIFF, 'HEAD', '--', ':/', ':!/benchmarks/results')
  names = run_git('ls-files', '-z', '--others', '--exclude-standard', '--full-name', ':/*.py')
  for name in filter(None, names.split('\0')):
    path = root / name
    if len(diff) < MAX_DIFF_BYTES and path.is_file() and not path.is_symlink():
      with open(path, 'rb') as file:
        diff += new_file_diff(name, file.read(MAX_DIFF_BYTES + 1).decode('utf-8', 'replace'))
  content = diff.encode()
  if len(content) > MAX_DIFF_BYTES:
    head = content[:MAX_DIFF_BYTES].decode('utf-8', 'ignore')
    diff = f'{head}\ncut here: it is longer than {MAX_DIFF_BYTES} bytes\n'
  return run_git('rev-parse', 'HEAD').strip(), diff


def new_file_diff(name, text):
  """Return the git diff that adds a file."""
  head = f'diff --git a/{name} b/{name}\nnew file mode 100644\n'
  if not text:
    return head
  lines = text.removesuffix('\n').split('\n')
  head += f'--- /dev/null\n+++ b/{name}\n@@ -0,0 +1,{len(lines)} @@\n'
  end = '' if text.endswith('\n') else '\\ No newline at end of file\n'
  return head + ''.join(f'+{line}\n' for line in lines) + end


def run_git(*arguments):
  """Return the output of a git command in this checkout, '' if it fails."""
  command = ('git', '-C', str(pathlib.Path(__file__).resolve().parent), *arguments)
  try:
    done = subprocess.run(command, capture_output=True, timeout=20, check=True)
  except (OSError, subprocess.SubprocessError):  # no git, or no checkout
    return ''
  return done.stdout.decode('utf-8', 'replace')
