"""The checkout that this code comes from: its commit, and what of it was never committed.

A commit alone does not say what ran where files were edited, or are new and were never added.
"""

import functools
import pathlib
import subprocess

MOST = 1_000_000  # bytes of a diff that are kept
PLAIN = ('--no-ext-diff', '--no-textconv', '--no-color', '--src-prefix=a/', '--dst-prefix=b/')


@functools.cache
def source():
  """-> (commit, diff); ('', '') where this is no checkout or there is no git.

  The diff is of tracked files against the commit, and has new .py files whole unless git ignores
  them; `git apply` takes it. Asked once a process: what is edited later is not what it runs.
  """
  # Asking for this very file tells our checkout from a project that merely contains our package.
  if not git('ls-files', pathlib.Path(__file__).name):
    return '', ''
  root = pathlib.Path(git('rev-parse', '--show-toplevel').strip())
  places = (':/', ':!/benchmarks/results')
  diff = git('diff', *PLAIN, 'HEAD', '--', *places)
  names = git('ls-files', '-z', '--others', '--exclude-standard', '--full-name', ':/*.py')
  for name in filter(None, names.split('\0')):
    path = root / name
    if len(diff) < MOST and path.is_file() and not path.is_symlink():
      with open(path, 'rb') as file:
        diff += added(name, file.read(MOST + 1).decode('utf-8', 'replace'))
  content = diff.encode()
  if len(content) > MOST:
    diff = f'{content[:MOST].decode("utf-8", "ignore")}\ncut here: it is longer than {MOST} bytes\n'
  return git('rev-parse', 'HEAD').strip(), diff


def added(name, text):
  """A new file as git diff shows it."""
  head = f'diff --git a/{name} b/{name}\nnew file mode 100644\n'
  if not text:
    return head
  lines = text.removesuffix('\n').split('\n')
  head += f'--- /dev/null\n+++ b/{name}\n@@ -0,0 +1,{len(lines)} @@\n'
  end = '' if text.endswith('\n') else '\\ No newline at end of file\n'
  return head + ''.join(f'+{line}\n' for line in lines) + end


def git(*arguments):
  """What a git command says of this checkout, '' if it fails."""
  command = ('git', '-C', str(pathlib.Path(__file__).resolve().parent), *arguments)
  try:
    done = subprocess.run(command, capture_output=True, timeout=20, check=True)
  except (OSError, subprocess.SubprocessError):  # no git, or no checkout
    return ''
  return done.stdout.decode('utf-8', 'replace')
