// One run: its report, made now, and where to go from here.
import { duration, fill, get, h, link, rendered } from './dom.js';
import { badge, progress } from './runs.js';

export const TITLE = 'Run';
const POLL = 5000;

export async function show(page, params) {
  const run = params.get('run');
  const status = h('span', { class: 'status' }), report = h('div');
  let timer = null, last = '';
  fill(page, h('div', { class: 'controls' }, h('a', { href: link('runs') }, 'Runs'), h('code', {}, run), status,
    h('a', { class: 'button', href: link('compare', { run }) }, 'Compare'), h('a', { class: 'button', href: link('inside', { run }) }, 'Look inside'),
    h('a', { class: 'button', href: link('data', { run }) }, 'Data'), h('a', { class: 'button', href: link('playground', { run }) }, 'Playground')), report);

  async function load() {
    const { html, state } = await get('/api/run', { run });
    fill(status, badge(state), ' ', progress(state), state.note ? ` ${state.note}` : '',
      state.state === 'running' && state.silence > 5 ? ` last record ${duration(state.silence)} ago` : '');
    if (html !== last) fill(report, rendered(html));
    last = html;
    if (['running', 'hung'].includes(state.state) && timer !== -1) timer = setTimeout(load, POLL);
  }
  await load();
  return () => { clearTimeout(timer); timer = -1; };
}
