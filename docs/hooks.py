"""What the site adds to the pages of docs/: README as its first page, the config keys, and linked files.

Pages link to files of the repository as ../PATH, which works where the repository is read. The site has
copies of these files in files/, Markdown as plain text; a link to a folder becomes its words.
"""

import pathlib
import re

from mkdocs.structure import files

from gpt_jax import config as configs
from gpt_jax.cli import config_help

ROOT = pathlib.Path(__file__).parents[1]
LINK = re.compile(r'(!?)\[([^]]*)\]\(\.\./([^)#]+)(?:#[^)]*)?\)')
CONFIG = '<!-- config -->'


def copy_of(path):
  """The place of a file of the repository on the site."""
  return f'files/{path}.txt' if path.endswith('.md') else f'files/{path}'


def first_page():
  """README with links as from docs/."""
  text = (ROOT / 'README.md').read_text()
  return re.sub(r'\]\((?!http|#)(docs/)?', lambda match: '](' if match[1] else '](../', text)


def on_files(pages, config):
  """Add the first page and the linked files."""
  texts = [page.content_string for page in pages if page.src_uri.endswith('.md')] + [first_page()]
  linked = {path for text in texts for _, _, path in LINK.findall(text) if (ROOT / path).is_file()}
  pages.append(files.File.generated(config, 'index.md', content=texts[-1]))
  for path in sorted(linked):
    pages.append(files.File.generated(config, copy_of(path), abs_src_path=str(ROOT / path)))
  return pages


def on_page_markdown(markdown, **_):
  """Write the table of config keys, and point links at the copies."""

  def relink(match):
    mark, words, path = match.groups()
    return f'{mark}[{words}]({copy_of(path)})' if (ROOT / path).is_file() else words

  return LINK.sub(relink, markdown.replace(CONFIG, config_help.format_tables(configs.Config)))
