// The table of runs: conditions, columns, live states, and the tree of which run comes from which.
import { duration, failure, field, fill, get, h, link, number } from './dom.js';
import { csv } from './export.js';
import { save } from './dom.js';
import { remember } from './main.js';
import { tree } from './tree.js';

export const TITLE = 'Runs';
const POLL = 3000; // milliseconds
const STATES = ['running', 'hung', 'failed', 'stopped', 'done', 'imported'];

export function badge(run) {
  return h('span', { class: `state ${run.state}`, title: run.note || '' }, run.state);
}

export function progress(run) {
  const { step, steps, state, eta } = run;
  if (step === null || step === undefined) return '';
  const share = steps ? Math.min(1, step / steps) : 1;
  return h('span', { class: 'progress' },
    h('i', { style: { width: `${Math.round(100 * share)}%` }, class: state }),
    h('span', {}, `${number(step)}${steps && state !== 'done' ? ` of ${number(steps)}` : ''}`,
      eta !== null && eta !== undefined ? h('em', {}, ` ${duration(eta)} left`) : null));
}

export async function show(page, params) {
  const view = { where: params.get('where') || '', columns: params.getAll('column'), sort: null, chosen: new Set() };
  const body = h('tbody'), head = h('thead'), count = h('span', { class: 'count' }), message = h('div');
  const where = h('input', { type: 'search', value: view.where, spellcheck: false, size: 60,
    placeholder: "status = 'done' and optim.lr > 1e-3", 'aria-label': 'condition' });
  const selected = h('a', { class: 'button', href: link('compare') }, 'Compare');
  const picker = h('details', { class: 'picker' }, h('summary', {}, 'Columns'));
  const saver = h('button', { class: 'quiet', type: 'button', title: 'save as CSV' }, 'CSV');
  let data = null, timer = null, last = '';

  const form = h('form', { class: 'controls', onsubmit: (event) => { event.preventDefault(); view.where = where.value; load(); } },
    field('Runs where', where), h('button', { type: 'submit' }, 'Filter'), picker, selected, saver, count);
  fill(page, h('h1', {}, 'Runs'), form, message,
    h('div', { class: 'scroll' }, h('table', { class: 'runs' }, head, body)), h('div', { id: 'tree' }));
  saver.addEventListener('click', () => data && save('runs.csv', csv(['run', 'state', 'step', ...data.columns],
    data.rows.map((row) => [row.name, row.state, row.step, ...row.cells])), 'text/csv'));

  function choose() {
    const names = [...view.chosen];
    selected.href = link('compare', { run: names });
    selected.textContent = names.length ? `Compare ${names.length}` : 'Compare';
    selected.classList.toggle('off', !names.length);
  }

  function sorted() {
    if (!view.sort) return data.rows;
    const [i, sign] = view.sort;
    const key = (row) => (i === -1 ? row.name : i === -2 ? STATES.indexOf(row.state) : i === -3 ? row.step : row.cells[i]);
    const rank = (value) => (value === null || value === undefined ? 2 : typeof value === 'number' ? 0 : 1);
    return [...data.rows].sort((a, b) => {
      const [x, y] = [key(a), key(b)];
      if (rank(x) !== rank(y)) return rank(x) - rank(y);
      return sign * (typeof x === 'number' ? x - y : String(x ?? '').localeCompare(String(y ?? ''), undefined, { numeric: true }));
    });
  }

  function draw() {
    const heading = (label, i, kind = 'word') => h('th', { class: kind, 'aria-sort': view.sort && view.sort[0] === i
      ? (view.sort[1] > 0 ? 'ascending' : 'descending') : null },
    h('button', { class: 'quiet', type: 'button', onclick: () => {
      view.sort = view.sort && view.sort[0] === i ? [i, -view.sort[1]] : [i, 1];
      draw();
    } }, label, view.sort && view.sort[0] === i ? (view.sort[1] > 0 ? ' \u2191' : ' \u2193') : ''));
    const isNumber = data.columns.map((_, i) => data.rows.some((row) => typeof row.cells[i] === 'number'));
    fill(head, h('tr', {}, h('th'), heading('run', -1), heading('state', -2), heading('step', -3),
      data.columns.map((name, i) => heading(name, i, isNumber[i] ? 'number' : 'word'))));
    fill(body, sorted().map((row) => h('tr', {},
      h('td', {}, h('input', { type: 'checkbox', checked: view.chosen.has(row.name), 'aria-label': `choose ${row.name}`,
        onchange: (event) => { view.chosen[event.target.checked ? 'add' : 'delete'](row.name); choose(); } })),
      h('td', { class: 'name' }, h('a', { href: link('run', { run: row.name }) }, row.name)),
      h('td', {}, badge(row)), h('td', {}, progress(row)),
      row.cells.map((cell, i) => h('td', { class: isNumber[i] ? 'number' : 'word' }, number(cell))))));
    const live = data.rows.filter((row) => row.state === 'running').length;
    fill(count, `${data.rows.length} of ${data.count} runs in `, h('code', {}, data.root), live ? `, ${live} running` : '');
  }

  function fillPicker() {
    const search = h('input', { type: 'search', placeholder: 'find a column', 'aria-label': 'find a column' });
    const list = h('div', { class: 'list' });
    const options = () => fill(list, data.known.filter((name) => name.includes(search.value) && name !== 'folder')
      .slice(0, 150).map((name) => h('label', {}, h('input', { type: 'checkbox', checked: data.columns.includes(name),
        onchange: (event) => {
          view.columns = event.target.checked ? [...data.columns, name] : data.columns.filter((x) => x !== name);
          load();
        } }), name)));
    search.addEventListener('input', options);
    fill(picker, h('summary', {}, 'Columns'), search, list);
    options();
  }

  async function load() {
    clearTimeout(timer);
    try {
      const next = await get('/api/runs', { where: view.where, column: view.columns });
      const text = JSON.stringify(next);
      if (text !== last) {
        const isNew = !data || data.columns.join() !== next.columns.join();
        data = next;
        last = text;
        draw();
        if (isNew && !picker.contains(document.activeElement)) fillPicker();
      }
      fill(message, data.count ? null : h('p', { class: 'note' }, 'No runs here yet. Train one: ',
        h('code', {}, 'launch.py train --workdir=runs/demo')));
      remember('runs', { where: view.where, column: view.columns });
    } catch (error) {
      fill(message, failure(error));
      last = '';
    }
    if (page.isConnected && timer !== -1) timer = setTimeout(() => (document.hidden ? retry() : load()), POLL);
  }

  function retry() {
    if (timer !== -1) timer = setTimeout(() => (document.hidden ? retry() : load()), POLL);
  }

  choose();
  await load();
  get('/api/tree').then((reply) => fill(document.getElementById('tree'), tree(reply)), () => null);
  return () => { clearTimeout(timer); timer = -1; };
}
