// Studies: what is planned, done and still to run, and the report of what is known so far.
import { duration, fill, get, h, link, rendered } from './dom.js';

export const TITLE = 'Studies';
const POLL = 5000;

export async function show(page, params) {
  const study = params.get('study');
  return study ? showStudy(page, study) : showList(page);
}

async function showList(page) {
  const { studies } = await get('/api/studies');
  fill(page, h('h1', {}, 'Studies'), studies.length ? studies.map((study) => h('section', { class: 'study' },
    h('h2', {}, h('a', { href: link('studies', { study: study.name }) }, study.title), h('small', {}, ` ${study.name}`)),
    study.question ? h('p', { class: 'question' }, study.question) : null,
    h('p', {}, h('strong', {}, study.headline)), meter(study.done, study.runs)))
    : h('p', { class: 'note' }, 'No studies here yet. Run one: ',
      h('code', {}, 'launch.py ablate --config=experiments/ablations/norms.py')));
  return null;
}

function meter(done, runs) {
  return h('span', { class: 'progress wide-meter' },
    h('i', { class: done === runs ? 'done' : 'running', style: { width: `${Math.round((100 * done) / Math.max(1, runs))}%` } }),
    h('span', {}, `${done} of ${runs} runs are done`));
}

const LABELS = { done: 'done', missing: 'to run', unfinished: 'begun', failed: 'failed', diverged: 'diverged', killed: 'killed',
  hung: 'hung', corrupt: 'unreadable' };

function grid({ arms, seeds, left }) {
  const cell = (run) => {
    if (!run) return h('td', {}, '');
    const live = run.state === 'running' || run.state === 'hung' ? run.state : '';
    const label = live || LABELS[run.status] || run.status;
    const text = h('span', { class: `cell ${live || run.status}`, title: run.message || '' }, label,
      live && run.steps ? ` ${Math.round((100 * (run.step || 0)) / run.steps)} %` : '',
      live && run.eta !== null ? h('small', {}, ` ${duration(run.eta)}`) : '');
    return h('td', {}, run.run ? h('a', { href: link('run', { run: run.run }) }, text) : text);
  };
  const columns = [...new Set([...seeds, ...arms.flatMap((arm) => Object.keys(arm.runs))])];
  const rest = left.runs ? `${left.runs} runs are left${left.seconds !== null ? `, about ${duration(left.seconds)} of work` : ''}.`
    : 'All runs have ended.';
  return [h('div', { class: 'heading' }, h('h2', {}, 'Runs'), h('span', { class: 'count' }, rest)),
    h('div', { class: 'scroll' }, h('table', { class: 'grid' },
      h('thead', {}, h('tr', {}, h('th', {}, 'arm'), columns.map((seed) => h('th', {}, `seed ${seed}`)))),
      h('tbody', {}, arms.map((arm) => h('tr', {}, h('td', {}, arm.name, arm.is_baseline && arm.name !== 'base' ? ' (baseline)' : ''),
        columns.map((seed) => cell(arm.runs[seed])))))))];
}

async function showStudy(page, study) {
  const matrix = h('section'), report = h('div');
  let timer = null, last = '';
  fill(page, h('div', { class: 'controls' }, h('a', { href: link('studies') }, 'Studies'), h('code', {}, study)), report);

  async function load() {
    const reply = await get('/api/study', { study });
    if (reply.html !== last) {
      fill(report, rendered(reply.html));
      const top = report.querySelector('header');
      if (top) top.after(matrix);
    }
    last = reply.html;
    fill(matrix, grid(reply));
    if (reply.left.runs && timer !== -1) timer = setTimeout(load, POLL);
  }
  await load();
  return () => { clearTimeout(timer); timer = -1; };
}
