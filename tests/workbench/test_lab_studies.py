"""The lab's pages of studies, finished and under way; and the whole lab in a real browser."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from gpt_jax.data import media_io
from gpt_jax.runs import records
from gpt_jax.workbench.lab import app
from tests import ablation_study, tiny_runs
from tests.workbench.test_lab import NASTY, ORIGIN, get, write_run

pytest.importorskip('starlette', reason='starlette is not installed: pip install .[lab]')
testclient = pytest.importorskip('starlette.testclient', reason='httpx is not installed: pip install httpx')


@pytest.fixture
def study(tmp_path):
  """The folder of a study of two arms and three seeds whose last run is not done."""
  folder = tmp_path / 'runs' / 'positions'
  planned = ablation_study.study(('learned', 'alibi'), seeds=3)
  planned['question'] = NASTY
  ablation_study.write(folder, planned)
  for row in ablation_study.rows(planned, folder, samples=False):
    place = Path(row['folder'])
    if row['arm'].endswith('alibi') and row['seed'] == 2:
      write_run(place, steps=30, done=False, total=60)
    else:
      write_run(place, **row['result'])
  return folder


def test_a_study_under_way_is_judged_by_what_is_known(study):
  client = testclient.TestClient(app.build_app(study.parent), base_url=ORIGIN)
  [row] = get(client, '/api/studies')['studies']
  assert (row['name'], row['done'], row['runs']) == ('positions', 8, 9)
  page = get(client, '/api/study', study='positions')
  assert '<svg' in page['html']
  assert 'positions=learned' in page['html']
  assert NASTY not in page['html']
  assert page['left']['runs'] == 1
  assert 10 < page['left']['seconds'] < 20  # half of a run of 31 seconds
  arms = {arm['name']: arm['runs'] for arm in page['arms']}
  assert arms['base']['0']['status'] == 'done'
  assert arms['positions=alibi']['2']['status'] == 'unfinished'
  assert arms['positions=alibi']['2']['step'] == 30
  assert arms['positions=alibi']['2']['run'].startswith('positions/runs/')
  with records.locked(study / 'runs' / 'positions-alibi' / 'seed2'):
    page = get(client, '/api/study', study='positions')
    assert {arm['name']: arm['runs'] for arm in page['arms']}['positions=alibi']['2']['state'] == 'running'
  assert not (study / 'analysis.json').exists()  # nothing is written
  assert not (study / 'report.html').exists()
  assert client.get('/api/study', params={'study': '..'}).status_code == 404


def test_a_broken_study_does_not_hide_the_others(study):
  (study.parent / 'broken').mkdir()
  (study.parent / 'broken' / 'study.json').write_text('{"arms": 3}')
  client = testclient.TestClient(app.build_app(study.parent), base_url=ORIGIN)
  rows = {row['name']: row for row in get(client, '/api/studies')['studies']}
  assert 'cannot be read' in rows['broken']['headline']
  assert rows['positions']['done'] == 8
  assert client.get('/api/study', params={'study': 'broken'}).status_code == 400


@pytest.mark.slow
def test_in_a_browser(study, tmp_path, tmp_path_factory):
  """Filter, compare, open a study, look inside a picture and its answer, sample; run no script of theirs."""
  sync_api = pytest.importorskip('playwright.sync_api', reason='playwright is not installed')
  chromium = shutil.which('chromium')
  if not chromium:
    pytest.skip('chromium is not installed')
  write_run(study.parent / NASTY, done=False)
  shutil.copytree(tiny_runs.media_finished(tmp_path_factory), study.parent / 'media')
  shutil.copytree(study.parent / 'media', study.parent / 'again')
  pixels = np.random.default_rng(0).integers(0, 255, (8, 8, 1), np.uint8)
  (tmp_path / 'picture.png').write_bytes(media_io.to_png(pixels))
  command = [sys.executable, 'launch.py', 'lab', f'--root={study.parent}', '--port=0']
  problems = []
  with (
    subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server,
    sync_api.sync_playwright() as play,
  ):
    address = server.stdout.readline().split()[1]
    browser = play.chromium.launch(executable_path=chromium, args=['--no-sandbox', '--disable-gpu'])
    page = browser.new_page()
    page.set_default_timeout(120_000)  # models are compiled meanwhile
    page.on('console', lambda message: problems.append(message.text) if message.type == 'error' else None)
    page.on('pageerror', lambda error: problems.append(str(error)))
    page.on('dialog', lambda dialog: problems.append(f'a script of a run opened {dialog.message}'))
    page.goto(address)
    page.wait_for_selector('table.runs tbody tr')
    assert page.locator('table.runs tbody tr').count() == 12
    page.fill('input[type=search]', "state = 'done' and folder like 'positions%'")
    page.click('text=Filter')
    page.wait_for_selector('text=8 of 12 runs')
    for box in range(2):
      page.locator('table.runs input[type=checkbox]').nth(box).check()
    page.click('text=Compare 2')
    page.wait_for_selector('.charts svg path')
    page.wait_for_selector('.side pre')
    with page.expect_download() as download:
      page.click('.chart >> nth=0 >> text=CSV')
    assert Path(download.value.path()).read_text().startswith('run,steps,loss\n')
    page.click('nav >> text=Studies')
    page.click('h2 a')
    page.wait_for_selector('.grid')
    page.wait_for_selector('.report svg')
    page.goto(f'{address}/#/data')
    page.wait_for_selector('select')
    page.goto(f'{address}/#/compare?run=media&run=again')
    page.click('text=Compare activations')
    page.wait_for_selector('.activations')
    assert page.locator('.activations tbody tr').count() == 5  # three of a block, a norm, the logits
    page.locator('.activations').screenshot(path=tmp_path / 'activations.png')
    page.goto(f'{address}/#/inside?run=media')
    page.set_input_files('input[type=file][accept^=image]', tmp_path / 'picture.png')
    page.wait_for_selector('.chip img')
    page.fill('[aria-label=answer]', 'seven')
    page.click('form >> text=Look inside')
    page.wait_for_selector('.strip-tokens .tok')
    assert page.locator('.strip-tokens .tok.image').count() == 16
    page.screenshot(path=tmp_path / 'inside.png', full_page=True)
    page.goto(f'{address}/#/playground?run=media')
    page.fill('[aria-label=prompt]', 'seven')
    page.select_option('label:has-text("make") select', 'image')
    page.click('button:text-is("Sample")')
    page.wait_for_selector('.card img')
    page.screenshot(path=tmp_path / 'playground.png', full_page=True)
    page.goto(f'{address}/#/run?run={json.dumps(NASTY)[1:-1]}')
    page.wait_for_selector('.report h1')
    assert page.locator('.report img[src="x"]').count() == 0
    time.sleep(0.2)
    browser.close()
    server.terminate()
  assert not problems
